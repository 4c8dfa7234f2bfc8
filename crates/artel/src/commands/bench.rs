//! `artel bench`: what this machine does.

mod dataset;
mod offline;
mod serve;

use anyhow::{bail, ensure};
use artel_device::cpu::{CpuFeatures, Isa};

use crate::bench::layer::{self, MINIMAX_M2_5, Options, QWEN3_30B_A3B};
use crate::cli::{BenchCommand, BenchLayerArgs, BenchStepsArgs, Device, InstructionSet};

/// Runs the measurement that was asked for.
///
/// # Errors
/// When an option is out of range or the record cannot be written.
pub fn bench(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Layer(args) => match args.device {
            Device::Cpu => layer::run(&on_cpu(args)?).map(|_| ()),
            Device::Cuda(ordinal) => on_gpu(args, ordinal),
        },
        BenchCommand::Latency(args) => offline::latency(args),
        BenchCommand::Throughput(args) => offline::throughput(args),
        BenchCommand::Serve(args) => serve::serve(args),
        BenchCommand::Steps(args) => steps(args),
    }
}

#[cfg(feature = "cuda")]
fn steps(args: &BenchStepsArgs) -> anyhow::Result<()> {
    use crate::bench::steps::{self, Only, Options};
    if let Some(path) = &args.prepare {
        return steps::prepare(path);
    }
    steps::run(&Options {
        only: Only::new(args.only.clone())?,
        packs: args.kernels.clone(),
        save_result: args.save_result.clone(),
    })
}

#[cfg(not(feature = "cuda"))]
fn steps(_args: &BenchStepsArgs) -> anyhow::Result<()> {
    Err(super::without_gpu_support("artel bench steps"))
}

fn on_cpu(args: &BenchLayerArgs) -> anyhow::Result<Options> {
    let mut options = Options::default();
    if !args.shape.is_empty() {
        let known = [QWEN3_30B_A3B, MINIMAX_M2_5];
        options.shapes.clear();
        for name in &args.shape {
            match known.iter().find(|shape| shape.name.to_lowercase() == *name) {
                Some(shape) => options.shapes.push(shape.clone()),
                None => {
                    let names = known.map(|shape| shape.name.to_lowercase()).join(", ");
                    bail!("--shape {name} is not known on the CPU; expected one of {names}");
                }
            }
        }
    }
    if !args.cpu.format.is_empty() {
        options.formats.clone_from(&args.cpu.format);
    }
    if !args.tokens.is_empty() {
        options.tokens = args.tokens.iter().map(|tokens| tokens.get()).collect();
    }
    if let Some(set) = args.cpu.instruction_set {
        let (best, wanted) = (CpuFeatures::detect(), isa(set));
        ensure!(wanted <= best.isa(), "this processor has {}, not {wanted}", best.isa());
        options.features = best.at_most(wanted);
    }
    let seconds = args.cpu.seconds;
    ensure!(seconds.is_finite() && seconds >= 0.0, "--seconds is a positive number");
    options.seconds_per_row = seconds;
    options.weight_bytes_max = args.cpu.weights_mib.saturating_mul(1 << 20);
    options.save_result = args.save_result.clone();
    Ok(options)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &BenchLayerArgs, _: usize) -> anyhow::Result<()> {
    bail!("this program was built without GPUs; build it with --features cuda")
}

#[cfg(feature = "cuda")]
fn on_gpu(args: &BenchLayerArgs, ordinal: usize) -> anyhow::Result<()> {
    use crate::bench::layer::gpu;
    use crate::cli::{AssignmentArg, RoutingArg};
    use crate::shapes::SHIPPED;

    let shapes = match args.shape.as_slice() {
        [] => SHIPPED[..2].iter().map(|name| name.parse()).collect::<anyhow::Result<_>>()?,
        names => names.iter().map(|name| name.parse()).collect::<anyhow::Result<_>>()?,
    };
    let tokens = match args.tokens.as_slice() {
        [] => gpu::TOKENS.to_vec(),
        tokens => tokens.iter().map(|tokens| tokens.get()).collect(),
    };
    let routing = |routing: &RoutingArg| match routing {
        RoutingArg::Uniform => gpu::RoutingKind::Uniform,
        RoutingArg::Zipf => gpu::RoutingKind::Zipf,
    };
    gpu::run(&gpu::Options {
        ordinal,
        shapes,
        tokens,
        routings: args.gpu.routing.iter().map(routing).collect(),
        packs: args.gpu.kernels.clone(),
        path: match args.gpu.assignment {
            AssignmentArg::Planned => None,
            AssignmentArg::Direct => Some(gpu::ForcedPath::Direct),
            AssignmentArg::Aligned => Some(gpu::ForcedPath::Aligned),
        },
        prepare: args.gpu.prepare.clone(),
        tuning: args.gpu.tuning.clone(),
        compare: args.gpu.compare.clone(),
        save_result: args.save_result.clone(),
        plot: args.gpu.plot.clone(),
    })
}

fn isa(set: InstructionSet) -> Isa {
    match set {
        InstructionSet::Portable => Isa::Portable,
        InstructionSet::Avx2 => Isa::Avx2,
        InstructionSet::Avx512 => Isa::Avx512,
        InstructionSet::Amx => Isa::Amx,
    }
}
