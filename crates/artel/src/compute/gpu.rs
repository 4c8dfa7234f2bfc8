//! A GPU: its kernels, and the model on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use artel_device::cuda::{Compiler, Context, KernelPack, Kernels};
use artel_engine::{CudaRunner, CudaRunnerKernels, EngineConfig};
use artel_model::Model;
use artel_moe::cuda::shipped;
use artel_moe::plan::gpu::{GpuCeilings, GpuPlan};
use indicatif::HumanBytes;

use super::{GpuState, Subject};
use crate::cli::{DeviceArgs, RankArgs};
use crate::shapes::NamedLayer;
use crate::source;

/// The pack that is looked for beside the program.
const PACK_NAME: &str = "kernels.pack";

/// The model of `subject` on GPU number `ordinal`.
///
/// # Errors
/// Without a GPU, its kernels or enough memory, or when a flag is about ranks of the CPU.
pub fn runner(
    subject: Subject<'_>,
    ordinal: usize,
    config: &EngineConfig,
) -> Result<(Arc<Model>, CudaRunner)> {
    let Subject { model: args, compute, checkpoint } = subject;
    refuse_ranks(&compute.ranks)?;
    let started = Instant::now();
    let context = Context::new(ordinal)
        .with_context(|| format!("--device cuda:{ordinal} cannot be opened; --device cpu can"))?;
    let (free, total) = context.memory()?;
    tracing::info!(
        "device: GPU {ordinal}, {}, {}, {} of {} free, CUDA {}, opened in {:.1} s",
        context.name()?,
        context.architecture(),
        HumanBytes(free as u64),
        HumanBytes(total as u64),
        context.driver_version()?,
        started.elapsed().as_secs_f64()
    );
    let started = Instant::now();
    let model = Arc::new(source::load_mapped(args, checkpoint)?);
    tracing::info!("files: mapped in {:.1} s", started.elapsed().as_secs_f64());
    let kernels = kernels(&compute.device, &context, &model, config)?;
    let started = Instant::now();
    let bar = source::progress_bar("uploading", &checkpoint.name());
    let share = compute.device.gpu_memory_utilization;
    let runner = CudaRunner::new((&model, kernels), &context, config, share, &mut |progress| {
        source::show(&bar, progress);
    });
    bar.finish_and_clear();
    let runner = runner?;
    let (left, _) = context.memory()?;
    tracing::info!(
        "memory: {} for weights and buffers, uploaded in {:.1} s",
        HumanBytes(free.saturating_sub(left) as u64),
        started.elapsed().as_secs_f64()
    );
    Ok((model, runner))
}

/// GPU number `ordinal`.
///
/// # Errors
/// When there is no such GPU.
pub fn state(ordinal: usize) -> Result<GpuState> {
    let context = Context::new(ordinal)
        .with_context(|| format!("--device cuda:{ordinal} cannot be opened"))?;
    let (free, total) = context.memory()?;
    Ok(GpuState {
        ordinal,
        name: context.name()?,
        architecture: context.architecture().to_string(),
        free: free as u64,
        total: total as u64,
    })
}

/// What serves which batch size of a layer on a GPU of `architecture`.
///
/// # Errors
/// When that GPU has no kernels for the layer.
pub fn experts_plan(architecture: &str, layer: &NamedLayer) -> Result<GpuPlan> {
    Ok(shipped::plan(architecture.parse()?, &layer.config, layer.format)?)
}

/// What GPU number `ordinal` can do at most, where that is known.
///
/// # Errors
/// When there is no such GPU.
pub fn ceilings(ordinal: usize) -> Result<Option<GpuCeilings>> {
    let architecture = Context::new(ordinal)?.architecture();
    Ok(GpuCeilings::of_architecture(architecture.name()).copied())
}

fn refuse_ranks(args: &RankArgs) -> Result<()> {
    let asked = [
        ("--ranks", args.ranks.is_some_and(|ranks| ranks.get() > 1)),
        ("--enable-eplb", args.enable_eplb),
        ("--eplb-placement", args.eplb_placement.is_some()),
        ("--record-experts", args.record_experts.is_some()),
    ];
    for (flag, is_asked) in asked {
        ensure!(!is_asked, "{flag} is for --device cpu: a GPU holds all experts itself");
    }
    Ok(())
}

/// Loads all kernels that serve the model.
fn kernels(
    args: &DeviceArgs,
    context: &Context,
    model: &Model,
    config: &EngineConfig,
) -> Result<CudaRunnerKernels> {
    let started = Instant::now();
    let paths = match args.kernels.as_slice() {
        [] => beside_the_program().into_iter().collect(),
        paths => paths.to_vec(),
    };
    let packs = paths.iter().map(|path| KernelPack::load(path)).collect::<Result<Vec<_>, _>>()?;
    let mut kernels = Kernels::open(context, packs, Compiler::find().ok());
    let mut listed = Kernels::list(context.architecture());
    CudaRunnerKernels::load(&mut listed, model, config)?;
    kernels.prepare(listed.specs(), |_| {}).context(
        "kernels are missing: `artel kernels build --model MODEL` makes a pack of them, \
         --kernels names it",
    )?;
    let loaded = CudaRunnerKernels::load(&mut kernels, model, config)?;
    tracing::info!(
        "kernels: {} from {}, in {:.1} s",
        listed.specs().len(),
        match paths.as_slice() {
            [] => "the compiler".to_owned(),
            paths =>
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        },
        started.elapsed().as_secs_f64()
    );
    Ok(loaded)
}

/// The pack beside the program, where there is one.
fn beside_the_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name(PACK_NAME);
    path.exists().then_some(path)
}
