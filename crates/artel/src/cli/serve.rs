//! Flags of `artel serve`.

use std::time::Duration;

use clap::Args;

use super::{ComputeArgs, ModelArgs};

/// `artel serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on; 0.0.0.0 is every address of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes any that is free
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// Names the model answers to, besides `default` [default: the folder's name]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Key that clients must send; may be given several times
    #[arg(long, value_name = "KEY", env = "ARTEL_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// Origin whose web pages may ask, `*` for all; may be given several times [default: none]
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Time that running requests get to finish when the server is stopped, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub shutdown_grace: Duration,
    /// Prefix of metrics that mean what they mean in vLLM
    #[arg(long, value_name = "PREFIX", default_value = "artel", value_parser = prefix)]
    pub metrics_prefix: String,
    /// Largest request body
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = bytes)]
    pub max_body_size: usize,
    /// Log a line for each request
    #[arg(long)]
    pub log_requests: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How much the engine does at a time.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Requests that run at the same time; others wait [default: 64]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step, prompts and answers together [default: 512, on a GPU 8192]
    #[arg(long, value_name = "N")]
    pub max_num_batched_tokens: Option<usize>,
    /// Tokens of a request, prompt and answer together [default: what the model and memory allow]
    #[arg(long, value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Memory for keys and values, such as 2G [default: for every request at full length, up to 4G;
    /// on a GPU what --gpu-memory-utilization leaves]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub kv_cache_memory: Option<usize>,
    /// Requests that wait; more are refused [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_waiting: Option<usize>,
    /// Compute every prompt anew, also where another began alike
    #[arg(long)]
    pub no_prefix_caching: bool,
}

/// A size with K, M, G or T (powers of 1024), or plain bytes.
fn bytes(text: &str) -> Result<usize, String> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches(['B', 'I']);
    let (number, shift) = match number.char_indices().next_back() {
        Some((at, 'K')) => (&number[..at], 10),
        Some((at, 'M')) => (&number[..at], 20),
        Some((at, 'G')) => (&number[..at], 30),
        Some((at, 'T')) => (&number[..at], 40),
        _ => (number, 0),
    };
    let number: f64 = number.trim().parse().map_err(|_| "give a size such as 512M or 2G")?;
    let size = number * (1u64 << shift) as f64;
    match (0.0..9e18).contains(&size) {
        true => Ok(size as usize),
        false => Err("a size is at least 0 and below 8 million T".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "give a number of seconds")?;
    Duration::try_from_secs_f64(number).map_err(|why| why.to_string())
}

fn prefix(text: &str) -> Result<String, String> {
    let sound = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    match text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.chars().all(sound) {
        true => Ok(text.to_owned()),
        false => Err("a prefix is a letter and then letters, digits or _".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, expected) in
            [("0", 0), ("1000", 1000), ("2G", 2 << 30), ("1.5KiB", 1536), ("16 mb", 16 << 20)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "-1", "1e30", "NaN", "2X", "é"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
