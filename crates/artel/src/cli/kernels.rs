//! `artel kernels`.

use std::path::PathBuf;

use artel_moe::quant::Format;
use clap::{Args, Subcommand, ValueEnum};

use super::{LoadFormat, number_format};

/// Generations of GPUs that kernels are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GpuArchitecture {
    /// Ampere: A100. No FP8.
    #[value(name = "sm_80")]
    Sm80,
    /// Hopper: H100, H200.
    #[value(name = "sm_90")]
    Sm90,
    /// Blackwell: B200.
    #[value(name = "sm_100")]
    Sm100,
    /// Blackwell: RTX PRO 6000, RTX 5090.
    #[value(name = "sm_120")]
    Sm120,
}

impl GpuArchitecture {
    /// The name that is typed.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("this is a bug: a value without a name");
        value.get_name().to_owned()
    }
}

/// `artel kernels`.
#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// Compile the kernels of layers into a pack; needs the toolkit, but no GPU
    Build(KernelsBuildArgs),
    /// Show what a pack holds
    List(KernelsListArgs),
}

/// `artel kernels build`.
#[derive(Debug, Args)]
pub struct KernelsBuildArgs {
    /// GPUs to compile for
    #[arg(long, value_enum, value_delimiter = ',', required = true, value_name = "ARCHS")]
    pub arch: Vec<GpuArchitecture>,
    /// Layers by name, MODEL[-tpN]-FORMAT [default: m2.5-tp2-fp8,qwen3-30b-bf16,qwen3-30b-fp8]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub shapes: Vec<String>,
    /// All that serves a checkpoint instead, of which config.json is enough with --load-format dummy;
    /// tally: the bundled model
    #[arg(long, value_name = "MODEL", conflicts_with = "shapes")]
    pub model: Option<PathBuf>,
    /// What the weights of the checkpoint are
    #[arg(long, value_enum, value_name = "WAY", default_value_t = LoadFormat::Auto,
          requires = "model")]
    pub load_format: LoadFormat,
    /// Number format that the checkpoint is converted to [default: as stored]
    #[arg(long, value_parser = number_format(), value_name = "FORMAT", requires = "model")]
    pub format: Option<Format>,
    /// GPUs that share every expert of the checkpoint
    #[arg(long, value_name = "N", default_value = "1", requires = "model")]
    pub tensor_parallel: std::num::NonZeroUsize,
    /// Also everything that `artel tune` may try, for a GPU on a machine without the toolkit
    #[arg(long)]
    pub tune: bool,
    /// Pack to write; kernels that are in it and up to date are kept
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

/// `artel kernels list`.
#[derive(Debug, Args)]
pub struct KernelsListArgs {
    /// The pack
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
