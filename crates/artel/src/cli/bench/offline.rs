//! `artel bench latency` and `artel bench throughput`: options and defaults are those of vLLM's
//! benchmarks of the same names.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::DatasetArgs;
use crate::cli::{ComputeArgs, ModelArgs};

/// `artel bench latency`.
#[derive(Debug, Args)]
#[command(infer_long_args = true)]
pub struct BenchLatencyArgs {
    /// What computes.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value = "32")]
    pub input_len: NonZeroUsize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value = "128")]
    pub output_len: NonZeroUsize,
    /// Prompts in the batch; several sizes are measured one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "8")]
    pub batch_size: Vec<NonZeroUsize>,
    /// Answers to each prompt
    #[arg(short, long = "n", value_name = "N", default_value = "1")]
    pub n: NonZeroUsize,
    /// Runs before the measurement
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub num_iters_warmup: usize,
    /// Runs that are measured
    #[arg(long, value_name = "N", default_value = "30")]
    pub num_iters: NonZeroUsize,
    /// Seed of prompts and answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Tokens of one step; longer prompts are computed in chunks
    #[arg(long, value_name = "N")]
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE.json")]
    pub output_json: Option<PathBuf>,
    /// What computes it.
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// `artel bench throughput`.
#[derive(Debug, Args)]
#[command(infer_long_args = true)]
pub struct BenchThroughputArgs {
    /// What computes.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Requests that run at the same time
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens of one step; longer prompts are computed in chunks
    #[arg(long, value_name = "N")]
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE.json")]
    pub output_json: Option<PathBuf>,
    /// What is asked.
    #[command(flatten)]
    pub dataset: DatasetArgs,
    /// What computes it.
    #[command(flatten)]
    pub compute: ComputeArgs,
}
