//! `artel bench serve`: options and defaults are those of vLLM's serving benchmark.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::DatasetArgs;

/// `artel bench serve`.
#[derive(Debug, Args)]
#[command(infer_long_args = true)]
pub struct BenchServeArgs {
    /// Where requests go.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What they ask.
    #[command(flatten)]
    pub dataset: DatasetArgs,
    /// When they are sent.
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: ServeSamplingArgs,
    /// What is told about them.
    #[command(flatten)]
    pub report: ServeReportArgs,
}

/// Where requests go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Which of OpenAI's interfaces to use
    #[arg(long, value_enum, default_value_t = BackendArg::Openai)]
    pub backend: BackendArg,
    /// Address of the server, instead of host and port
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the server
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of the interface [default: /v1/completions, or /v1/chat/completions]
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,
    /// Headers to send with every request
    #[arg(long, value_name = "KEY=VALUE", num_args = 0..)]
    pub header: Vec<KeyValue>,
    /// Name of the model [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// Name of the model in requests, where that is another
    #[arg(long, value_name = "MODEL", requires = "model")]
    pub served_model_name: Option<String>,
    /// Choose one of these names at random for each request
    #[arg(long, value_name = "NAMES", num_args = 1..)]
    pub lora_modules: Vec<String>,
    /// Folder of the model's tokenizer [default: the model's, where it is on this machine]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Work without a tokenizer: token counts are the server's
    #[arg(long, conflicts_with = "tokenizer")]
    pub skip_tokenizer_init: bool,
    /// Taken for the sake of command lines that have it: no code comes with a tokenizer
    #[arg(long, hide = true)]
    pub trust_remote_code: bool,
    /// Taken likewise: tokenizer.json says which kind it is
    #[arg(long, hide = true, value_parser = ["auto", "hf"])]
    pub tokenizer_mode: Option<String>,
    /// Wait this long for a first answer before the measurement (0: do not wait)
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub ready_check_timeout_sec: u64,
}

/// Interfaces of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// Completions.
    #[value(alias = "vllm")]
    Openai,
    /// Chat completions.
    OpenaiChat,
}

/// When requests are sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficArgs {
    /// Requests a second; inf sends all at once
    #[arg(long, value_name = "RPS", default_value_t = f64::INFINITY)]
    pub request_rate: f64,
    /// Shape of the gamma distribution of arrivals: 1 is a Poisson process, less comes in bursts
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub burstiness: f64,
    /// Requests that may run at the same time [default: no limit]
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<std::num::NonZeroUsize>,
    /// Requests before the measurement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_warmups: usize,
    /// Send the load without and with this share of malformed requests among it, in turns, and tell
    /// what they do to the gaps between tokens of the others
    #[arg(long, value_name = "SHARE", conflicts_with = "ramp_up_strategy")]
    pub malformed_rate: Option<f64>,
    /// How often, for --malformed-rate
    #[arg(long, value_name = "N", default_value = "4", requires = "malformed_rate")]
    pub malformed_rounds: std::num::NonZeroUsize,
    /// Raise the request rate over the run
    #[arg(
        long,
        value_enum,
        value_name = "STRATEGY",
        requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"],
        conflicts_with = "request_rate"
    )]
    pub ramp_up_strategy: Option<RampUpArg>,
    /// Rate to begin with
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy")]
    pub ramp_up_start_rps: Option<std::num::NonZeroU32>,
    /// Rate to end with
    #[arg(long, value_name = "RPS", requires = "ramp_up_strategy")]
    pub ramp_up_end_rps: Option<std::num::NonZeroU32>,
}

/// How the rate rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RampUpArg {
    /// By the same amount with each request.
    Linear,
    /// By the same factor.
    Exponential,
}

/// Fields of a request.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct ServeSamplingArgs {
    /// Go on when the model says that it is done; always so for random prompts
    #[arg(long)]
    pub ignore_eos: bool,
    /// Randomness [default: the server's]
    #[arg(long, value_name = "X")]
    pub temperature: Option<f64>,
    /// Keep the most likely tokens that together reach this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Keep the N most likely tokens
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_k: Option<i64>,
    /// Drop tokens less likely than this share of the most likely one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// Subtract for each time a token was generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// Subtract for tokens already generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Divide the logits of tokens already seen
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,
    /// Log-probabilities to ask for with every token
    #[arg(long, value_name = "N")]
    pub logprobs: Option<u32>,
    /// Further fields of every request, as a JSON object
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<JsonObject>,
}

/// What is told about the run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Report")]
pub struct ServeReportArgs {
    /// Measures to report [default: ttft,tpot,itl]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    pub percentile_metrics: Vec<MeasureArg>,
    /// Percentiles of each measure
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS", default_value = "99")]
    pub metric_percentiles: Vec<f64>,
    /// Limits in milliseconds that a good request keeps: ttft, tpot, e2el
    #[arg(long, value_name = "NAME:MS", num_args = 1..)]
    pub goodput: Vec<Objective>,
    /// Name of the run in the result [default: the backend]
    #[arg(long)]
    pub label: Option<String>,
    /// Write the result as JSON
    #[arg(long)]
    pub save_result: bool,
    /// Also write lengths, times, texts and errors of every request
    #[arg(long)]
    pub save_detailed: bool,
    /// Add the result to the end of the file
    #[arg(long)]
    pub append_result: bool,
    /// Folder of the result [default: the current one]
    #[arg(long, value_name = "DIR")]
    pub result_dir: Option<PathBuf>,
    /// File of the result [default: {label}-{rate}qps-{model}-{date}.json]
    #[arg(long, value_name = "FILE")]
    pub result_filename: Option<PathBuf>,
    /// Further fields of the result
    #[arg(long, value_name = "KEY=VALUE", num_args = 0..)]
    pub metadata: Vec<KeyValue>,
    /// Draw latencies over time and their distributions
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Show no progress bar
    #[arg(long)]
    pub disable_tqdm: bool,
}

/// What is measured of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeasureArg {
    /// Time to the first token.
    Ttft,
    /// Time for each further token.
    Tpot,
    /// Gaps between tokens.
    Itl,
    /// Time to the last token.
    E2el,
    /// Time that --max-concurrency held a request back.
    #[value(name = "client_queue_time")]
    ClientQueueTime,
    /// Time to the last token with that time.
    #[value(name = "e2el_including_client_queue")]
    E2elIncludingClientQueue,
}

/// A pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Before the first `=`.
    pub key: String,
    /// After it.
    pub value: String,
}

impl FromStr for KeyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

/// A limit that a good request keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Of what: ttft, tpot or e2el.
    pub measure: MeasureArg,
    /// The limit.
    pub milliseconds: f64,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected ttft:MS, tpot:MS or e2el:MS with a number of at least 0".into();
        let (name, limit) = text.split_once(':').ok_or_else(expected)?;
        let measure = match name {
            "ttft" => MeasureArg::Ttft,
            "tpot" => MeasureArg::Tpot,
            "e2el" => MeasureArg::E2el,
            _ => return Err(expected()),
        };
        match limit.parse() {
            Ok(milliseconds) if milliseconds >= 0.0 => Ok(Self { measure, milliseconds }),
            _ => Err(expected()),
        }
    }
}

/// A JSON object.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonObject(pub serde_json::Map<String, serde_json::Value>);

impl FromStr for JsonObject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(Self).map_err(|why| format!("expected a JSON object: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_and_pairs_are_read_or_refused() {
        let objective = |text: &str| text.parse::<Objective>();
        assert_eq!(objective("tpot:12.5").unwrap().milliseconds, 12.5);
        for wrong in ["ttft", "itl:5", "ttft:-1", "ttft:x", "ttft:nan", ""] {
            assert!(objective(wrong).is_err(), "{wrong}");
        }
        let pair: KeyValue = "tp = 1=2".parse().unwrap();
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("tp", "1=2"));
        assert!("tp".parse::<KeyValue>().is_err());
        assert!("[1]".parse::<JsonObject>().is_err());
        assert_eq!("{\"a\": 1}".parse::<JsonObject>().unwrap().0["a"], 1);
    }
}
