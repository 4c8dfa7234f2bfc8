//! What the user types. Exactly that: nothing here opens a file or decides anything.

mod bench;
mod compute;
mod eplb;
mod kernels;
mod ranks;
mod serve;
mod tune;

use std::path::PathBuf;

use artel_moe::quant::Format;
pub use bench::*;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use compute::*;
pub use eplb::*;
pub use kernels::*;
pub use ranks::*;
pub use serve::*;
pub use tune::*;

/// Release and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("ARTEL_COMMIT"), ")");

/// Mixture-of-experts inference from one binary.
#[derive(Debug, Parser)]
#[command(name = "artel", version = VERSION, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
    /// What to report on standard error [default: warn; info when serving]
    #[arg(long, global = true, value_enum, value_name = "LEVEL")]
    pub log: Option<LogLevel>,
}

/// How much the program tells about what it does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// What may surprise.
    Warn,
    /// One line a decision.
    Info,
    /// Everything.
    Debug,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a prompt, or chat
    Run(RunArgs),
    /// Serve a model over HTTP, as clients of OpenAI's API expect it
    Serve(ServeArgs),
    /// Show what a checkpoint is, what it needs and how it would be computed
    Inspect(InspectArgs),
    /// Write the logits of a sequence of token ids
    Logits(LogitsArgs),
    /// Write a checkpoint again with quantised weights
    Quantize(QuantizeArgs),
    /// Measure how well a model solves problems
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Compare placements of experts on recorded or made-up load
    #[command(subcommand)]
    Eplb(EplbCommand),
    /// Make and show packs of compiled GPU kernels
    #[command(subcommand)]
    Kernels(KernelsCommand),
    /// Measure every way to serve a batch on a GPU, for plans that follow the times
    Tune(TuneArgs),
}

/// Which model, and in which number format.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Folder with config.json, safetensors and tokenizer.json [default: the bundled model, tally]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Convert the weights of experts and linear layers while loading [default: as stored]
    #[arg(long, value_parser = number_format(), value_name = "FORMAT")]
    pub format: Option<Format>,
    /// What the weights are; dummy ones need no files but config.json
    #[arg(long, value_enum, value_name = "WAY", default_value_t = LoadFormat::Auto)]
    pub load_format: LoadFormat,
    /// Take faster kernels for few tokens, which round in another way: what is answered may then
    /// depend on what else is answered at the same time
    #[arg(long)]
    pub fast: bool,
}

impl ModelArgs {
    /// A model as it is stored.
    pub fn of(model: Option<PathBuf>) -> Self {
        Self { model, format: None, load_format: LoadFormat::Auto, fast: false }
    }
}

/// What the weights of a model are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// Those of the checkpoint.
    Auto,
    /// Random numbers of the same shapes and types, for measurements.
    Dummy,
}

/// Number formats by name.
pub fn number_format() -> impl TypedValueParser<Value = Format> {
    let value = |format: Format| {
        let value = PossibleValue::new(format.name()).help(format.description());
        if format == Format::Fp8Block128 { value.alias("fp8") } else { value }
    };
    PossibleValuesParser::new(Format::ALL.map(value)).try_map(|name| match name.as_str() {
        "fp8" => Ok(Format::Fp8Block128),
        name => name.parse(),
    })
}

/// How tokens are chosen. Defaults come from the model's generation_config.json.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the most likely token [default: the model's, else 0]
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
    /// Keep the N most likely tokens (0: all) [default: the model's, else 0]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Keep the most likely tokens that together reach this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this share of the most likely one
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens already seen (1: off)
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens already generated (0: off)
    #[arg(long, value_name = "X")]
    pub presence_penalty: Option<f32>,
    /// Subtract for each time a token was generated (0: off)
    #[arg(long, value_name = "X")]
    pub frequency_penalty: Option<f32>,
    /// Seed of the random choice; the same seed gives the same text [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Stop after this many tokens [default: until the model ends or the context is full]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Go on when the model says that it is done
    #[arg(long)]
    pub ignore_eos: bool,
}

/// `artel run`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to answer; without it a chat begins, or standard input is read
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// System message, for models whose chat template has one
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// `artel inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Context length to give the memory for [default: the model's maximum]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences at that length
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sequences: usize,
    /// What would compute: cpu, cuda or cuda:N, whose memory is then asked for
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Also show how a GPU of this architecture would compute the experts; needs no GPU
    #[arg(long, value_enum, value_name = "ARCH")]
    pub arch: Option<GpuArchitecture>,
    /// GPUs that share every expert, for --arch and --device cuda
    #[arg(long, value_name = "N", default_value = "1")]
    pub tensor_parallel: std::num::NonZeroUsize,
}

/// `artel quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Folder with config.json, safetensors and tokenizer.json [default: the bundled model, tally]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Number format of the weights of experts and linear layers; one with codes
    #[arg(long, value_parser = number_format(), value_name = "FORMAT")]
    pub format: Format,
    /// Neighbours in a row that share a scale: int4-w4a16 and int8-w8a16
    #[arg(long, value_name = "N", default_value = "128")]
    pub group_size: std::num::NonZeroUsize,
    /// Give every group of int4-w4a16 a zero point
    #[arg(long)]
    pub zero_points: bool,
    /// Choose scales for the smallest error of outputs when the model reads these texts
    ///
    /// UTF-8; every line is a text or, if the first line is a JSON object, every line is one with a text in
    /// its field "text" or "prompt". The model reads them as they are, without its chat template. Formats
    /// of four bits gain; those of eight lose little either way.
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Tokens of the texts that the model reads, from the first on
    #[arg(long, value_name = "N", default_value = "16384", requires = "calibrate")]
    pub calibrate_tokens: std::num::NonZeroUsize,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    pub output: PathBuf,
}

/// `artel logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required_unless_present = "text")]
    pub ids: Vec<u32>,
    /// Text to encode instead of ids
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    pub text: Option<String>,
    /// File to write: float32 [tokens, vocabulary] in NumPy's format
    #[arg(long, short, value_name = "FILE.npy")]
    pub output: PathBuf,
}

/// `artel eval`.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Arithmetic word problems, made from a seed and never seen in training
    Arithmetic(ArithmeticArgs),
    /// GSM8K with five worked examples, as lm-eval does it
    Gsm8k(Gsm8kArgs),
}

/// `artel eval arithmetic`.
#[derive(Debug, Args)]
pub struct ArithmeticArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Problems to solve
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub num_problems: usize,
    /// Seed of the problems
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: usize,
    /// Ask a server instead of loading a model
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "format", "write"])]
    pub url: Option<String>,
    /// Key for that server
    #[arg(long, value_name = "KEY", env = "ARTEL_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Write problems as JSON lines instead of solving them
    #[arg(long, value_name = "FILE", requires = "split")]
    pub write: Option<PathBuf>,
    /// Which problems to write
    #[arg(long, value_enum, requires = "write")]
    pub split: Option<SplitArg>,
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// The two halves of all arithmetic problems.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SplitArg {
    /// What a model may learn from.
    Training,
    /// What it is measured on.
    HeldOut,
}

/// `artel eval gsm8k`.
#[derive(Debug, Args)]
pub struct Gsm8kArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Folder with train.jsonl and test.jsonl
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Problems to solve, from the first on [default: all]
    #[arg(long, value_name = "N")]
    pub num_problems: Option<usize>,
    /// Which five worked problems come before each
    #[arg(long, value_enum, default_value_t = ExamplesArg::Drawn)]
    pub examples: ExamplesArg,
    #[command(flatten)]
    pub evaluation: EvaluationArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Where the worked problems of a prompt come from.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ExamplesArg {
    /// Drawn for each problem as lm-eval draws them with its default seed.
    Drawn,
    /// The first ones of the training set for every problem.
    First,
}

/// How an evaluation runs and what it leaves behind.
#[derive(Debug, Args)]
pub struct EvaluationArgs {
    /// Problems solved side by side
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch_size: usize,
    /// Write the score as JSON
    #[arg(long, value_name = "FILE.json")]
    pub save_result: Option<PathBuf>,
    /// Write every problem, answer and verdict as JSON lines
    #[arg(long, value_name = "FILE.jsonl")]
    pub save_samples: Option<PathBuf>,
}
