//! The data set of a benchmark.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What requests ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data set")]
pub struct DatasetArgs {
    /// Where prompts come from
    #[arg(long, value_enum, default_value_t = DatasetArg::Random)]
    pub dataset_name: DatasetArg,
    /// File of the data set: JSON for sharegpt, JSON lines with "prompt" for custom
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Requests to send
    #[arg(long, value_name = "N", default_value = "1000")]
    pub num_prompts: std::num::NonZeroUsize,
    /// Seed of prompts, lengths and arrivals
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Tokens of a prompt: the same as --random-input-len
    #[arg(long, value_name = "N")]
    pub input_len: Option<usize>,
    /// Tokens of an answer, for every data set
    #[arg(long, value_name = "N")]
    pub output_len: Option<usize>,
    /// random: tokens of a prompt [default: 1024, fewer where the model's context is shorter]
    #[arg(long, value_name = "N")]
    pub random_input_len: Option<usize>,
    /// random: tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub random_output_len: usize,
    /// random: lengths differ by this share at most, below 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// random: tokens that all prompts begin with, before those of --random-input-len
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub random_prefix_len: usize,
    /// random: how tokens are chosen
    #[arg(long, value_enum, default_value_t = RandomTokensArg::Drawn)]
    pub random_tokens: RandomTokensArg,
    /// sharegpt: tokens of an answer [default: as many as the answer in the file]
    #[arg(long, value_name = "N")]
    pub sharegpt_output_len: Option<usize>,
    /// custom: tokens of an answer; -1 takes "output_tokens" of each line
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub custom_output_len: i64,
    /// custom: send prompts as they are, without the model's chat template
    #[arg(long)]
    pub skip_chat_template: bool,
    /// Keep the order of the file
    #[arg(long)]
    pub disable_shuffle: bool,
    /// Send fewer requests where the file has fewer prompts, instead of some twice
    #[arg(long)]
    pub no_oversample: bool,
}

/// Where prompts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatasetArg {
    /// Tokens of the vocabulary, different for every prompt.
    Random,
    /// Conversations of a ShareGPT file.
    Sharegpt,
    /// Prompts of a file.
    Custom,
}

/// How the tokens of random prompts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RandomTokensArg {
    /// Each by itself, so that no two prompts have anything in common.
    Drawn,
    /// Neighbours in the vocabulary, as vLLM has them.
    Runs,
}
