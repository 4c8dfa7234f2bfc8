//! `artel bench`: what this machine does.

use anyhow::ensure;
use artel_device::cpu::{CpuFeatures, Isa};
use artel_moe::MoeError;
use artel_moe::quant::Format;
use clap::ValueEnum;

use crate::bench::layer::{self, MINIMAX_M2_5, Options, QWEN3_30B_A3B};
use crate::cli::{
    BenchCommand, BenchLayerArgs, BenchStepsArgs, Device, InstructionSet, ShapeArg, StepsDevice,
    WeightFormat,
};

/// Runs the measurement that was asked for.
///
/// # Errors
/// When an option is out of range or the record cannot be written.
pub fn bench(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Layer(args) => match args.device {
            Device::Cpu => layer::run(&resolve(args)?).map(|_| ()),
        },
        BenchCommand::Steps(args) => match args.device {
            StepsDevice::Cuda => steps(args),
        },
    }
}

#[cfg(feature = "cuda")]
fn steps(args: &BenchStepsArgs) -> anyhow::Result<()> {
    use crate::bench::steps::{self, Options};
    if let Some(path) = &args.prepare {
        return steps::prepare(path);
    }
    steps::run(&Options { packs: args.kernels.clone(), save_result: args.save_result.clone() })
}

#[cfg(not(feature = "cuda"))]
fn steps(_args: &BenchStepsArgs) -> anyhow::Result<()> {
    Err(super::without_gpu_support("artel bench steps"))
}

fn resolve(args: &BenchLayerArgs) -> anyhow::Result<Options> {
    let mut options = Options::default();
    if !args.shape.is_empty() {
        let shape = |shape: &ShapeArg| match shape {
            ShapeArg::Qwen3 => QWEN3_30B_A3B,
            ShapeArg::MiniMax => MINIMAX_M2_5,
        };
        options.shapes = args.shape.iter().map(shape).collect();
    }
    if !args.format.is_empty() {
        options.formats =
            args.format.iter().map(|&format| named(format)).collect::<Result<_, _>>()?;
    }
    if !args.tokens.is_empty() {
        options.tokens = args.tokens.iter().map(|tokens| tokens.get()).collect();
    }
    if let Some(set) = args.instruction_set {
        let (best, wanted) = (CpuFeatures::detect(), isa(set));
        ensure!(wanted <= best.isa(), "this processor has {}, not {wanted}", best.isa());
        options.features = best.at_most(wanted);
    }
    ensure!(args.seconds.is_finite() && args.seconds >= 0.0, "--seconds is a positive number");
    options.seconds_per_row = args.seconds;
    options.weight_bytes_max = args.weights_mib.saturating_mul(1 << 20);
    options.save_result = args.save_result.clone();
    Ok(options)
}

/// The flag's values are the formats' names.
fn named(format: WeightFormat) -> Result<Format, MoeError> {
    let value = format.to_possible_value().expect("this is a bug: a format that is no flag");
    value.get_name().parse()
}

fn isa(set: InstructionSet) -> Isa {
    match set {
        InstructionSet::Portable => Isa::Portable,
        InstructionSet::Avx2 => Isa::Avx2,
        InstructionSet::Avx512 => Isa::Avx512,
        InstructionSet::Amx => Isa::Amx,
    }
}
