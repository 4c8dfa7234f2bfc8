//! `artel bench` and what it shares with other commands of the machine room.

mod dataset;
mod offline;
mod serve;

use std::path::PathBuf;
use std::str::FromStr;

use artel_moe::quant::Format;
use clap::{Args, Subcommand, ValueEnum};
pub use dataset::*;
pub use offline::*;
pub use serve::*;

use super::number_format;

/// `artel bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One mixture-of-experts layer of published sizes, by batch size
    Layer(BenchLayerArgs),
    /// How long one batch takes, without a server
    Latency(BenchLatencyArgs),
    /// How much many requests get through, without a server
    Throughput(Box<BenchThroughputArgs>),
    /// A server that speaks OpenAI's protocol, under load
    Serve(Box<BenchServeArgs>),
    /// The small kernels of a layer on a GPU, by batch size
    Steps(BenchStepsArgs),
}

/// `artel bench steps`.
#[derive(Debug, Args)]
pub struct BenchStepsArgs {
    /// Packs to load kernels from; what they lack is compiled where the toolkit is installed
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub kernels: Vec<PathBuf>,
    /// Measure only these: route, gate, rows, norm, linear, attention, sample [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub only: Vec<String>,
    /// Only compile the kernels into a pack, for a GPU on a machine without the toolkit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "save_result"])]
    pub prepare: Option<PathBuf>,
    /// Write the measurements as JSON
    #[arg(long, value_name = "FILE.json")]
    pub save_result: Option<PathBuf>,
}

/// `artel bench layer`.
#[derive(Debug, Args)]
pub struct BenchLayerArgs {
    /// What computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Layers to measure; a wrong name lists them [default: all on the CPU, the first two on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub shape: Vec<String>,
    /// Batch sizes [default: powers of two to 2048 on the CPU, to 8192 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub tokens: Vec<std::num::NonZeroUsize>,
    /// Write the measurements as JSON: a file for the CPU, a folder with a file a shape for a GPU
    #[arg(long, value_name = "PATH")]
    pub save_result: Option<PathBuf>,
    /// Options of the CPU.
    #[command(flatten)]
    pub cpu: BenchCpuArgs,
    /// Options of a GPU.
    #[command(flatten)]
    pub gpu: BenchGpuArgs,
}

/// What only the measurement on the CPU asks for.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --device cpu")]
pub struct BenchCpuArgs {
    /// Number formats of the experts [default: bf16,fp8-block128]
    #[arg(long, value_parser = number_format(), value_delimiter = ',', value_name = "FORMATS")]
    pub format: Vec<Format>,
    /// Least time for each batch size
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub seconds: f64,
    /// Memory for weights; a layer that is larger is measured with fewer experts
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub weights_mib: usize,
    /// Strongest instruction set to use [default: the processor's]
    #[arg(long, value_enum, value_name = "SET")]
    pub instruction_set: Option<InstructionSet>,
}

/// What only the measurement on a GPU asks for.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --device cuda")]
pub struct BenchGpuArgs {
    /// Kernel packs; what they lack is compiled where a toolkit is installed
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub kernels: Vec<PathBuf>,
    /// Only compile the kernels into a pack, for a GPU on a machine without the toolkit
    #[arg(long, value_name = "FILE")]
    pub prepare: Option<PathBuf>,
    /// How simulated tokens choose their experts
    #[arg(long, value_enum, value_delimiter = ',', default_value = "uniform,zipf")]
    pub routing: Vec<RoutingArg>,
    /// How pairs come to their experts, where more than one way can serve a batch
    #[arg(long, value_enum, default_value_t = AssignmentArg::Planned)]
    pub assignment: AssignmentArg,
    /// Folder of records made by `artel tune` to plan by [default: those of the program]
    #[arg(long, value_name = "FOLDER")]
    pub tuning: Option<PathBuf>,
    /// Times of another implementation to print and draw beside ours
    #[arg(long, value_name = "FILE.json")]
    pub compare: Option<PathBuf>,
    /// Draw a picture of each shape into this folder
    #[arg(long, value_name = "FOLDER")]
    pub plot: Option<PathBuf>,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse);
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err("expected cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// How simulated tokens choose.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoutingArg {
    /// Every expert alike.
    Uniform,
    /// The n-th most popular in proportion to 1/n.
    Zipf,
}

/// How pairs come to their experts.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AssignmentArg {
    /// As the plan says.
    Planned,
    /// One pair a block, nothing is sorted.
    Direct,
    /// Sorted by expert.
    Aligned,
}

/// Instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum InstructionSet {
    /// Any processor.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 with bfloat16.
    Avx512,
    /// AMX tiles.
    Amx,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_everywhere() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
