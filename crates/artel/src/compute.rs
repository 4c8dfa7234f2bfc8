//! What computes a model, as flags describe it.

#[cfg(feature = "cuda")]
mod gpu;

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use artel_engine::{Engine, EngineConfig, Runner};
use artel_model::{Checkpoint, Model, Tokenizer};
use artel_moe::plan::gpu::GpuCeilings;
#[cfg(not(feature = "cuda"))]
use artel_moe::plan::gpu::{ExpertsShape, GpuPlan, TOKENS_PER_STEP, TuningRecord};

use crate::cli::{ComputeArgs, Device, ModelArgs};
#[cfg(not(feature = "cuda"))]
use crate::shapes::NamedLayer;
use crate::{ranks, source};

/// Tokens of a step on a GPU, unless the user wants otherwise: enough to keep it busy.
const GPU_STEP_TOKENS: usize = 8192;

/// The same where nobody waits for the next token of an answer meanwhile: experts have more rows each, and
/// fewer steps end with the rest of a prompt.
const GPU_BATCH_TOKENS: usize = 16384;

/// Where a model comes from and what computes it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The model, and in which format.
    pub model: &'a ModelArgs,
    /// What computes it.
    pub compute: &'a ComputeArgs,
    /// The model's files.
    pub checkpoint: &'a Checkpoint,
}

/// `config` with the usual size of a step of the device.
pub fn usual_steps(args: &ComputeArgs, config: EngineConfig) -> EngineConfig {
    with_steps(args, config, GPU_STEP_TOKENS)
}

/// The same for batches whose requests are all there from the beginning.
pub fn batch_steps(args: &ComputeArgs, config: EngineConfig) -> EngineConfig {
    with_steps(args, config, GPU_BATCH_TOKENS)
}

fn with_steps(args: &ComputeArgs, config: EngineConfig, gpu_tokens: usize) -> EngineConfig {
    let tokens = match args.device.device {
        Device::Cpu => config.max_num_batched_tokens,
        Device::Cuda(_) => gpu_tokens,
    };
    EngineConfig { max_num_batched_tokens: tokens.max(config.max_num_seqs), ..config }
}

/// Loads the model and makes an engine of it.
///
/// # Errors
/// When the model does not load, a flag makes no sense for it, or the device is not there or has not
/// enough memory.
pub fn engine(
    subject: Subject<'_>,
    tokenizer: &Tokenizer,
    config: EngineConfig,
) -> Result<(Arc<Model>, Engine)> {
    let Subject { model: args, compute, checkpoint } = subject;
    let (model, runner): (Arc<Model>, Box<dyn Runner>) = match compute.device.device {
        Device::Cpu => {
            let model = source::load(args, checkpoint)?;
            let (model, runner) = ranks::runner(&compute.ranks, model, &checkpoint.name())?;
            tracing::info!("device: CPU, {} threads", rayon::current_num_threads());
            (model, Box::new(runner))
        }
        Device::Cuda(ordinal) => on_gpu(subject, ordinal, &config)?,
    };
    let started = Instant::now();
    let engine = Engine::new(runner, tokenizer.clone(), config)?;
    if compute.device.device != Device::Cpu {
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!("cache and graphs: made and recorded in {seconds:.1} s");
    }
    Ok((model, engine))
}

/// What the GPU can do at most; `None` for the CPU, or for a GPU of which that is not known.
///
/// # Errors
/// When the GPU is not there.
pub fn ceilings(args: &ComputeArgs) -> Result<Option<GpuCeilings>> {
    match args.device.device {
        Device::Cpu => Ok(None),
        Device::Cuda(ordinal) => ceilings_of_gpu(ordinal),
    }
}

/// A GPU of this machine.
#[derive(Debug, Clone)]
pub struct GpuState {
    /// Its number.
    pub ordinal: usize,
    /// What it is sold as.
    pub name: String,
    /// Whose kernels it runs.
    pub architecture: String,
    /// Bytes that nobody uses.
    pub free: u64,
    /// Bytes of its memory.
    pub total: u64,
}

#[cfg(feature = "cuda")]
pub use gpu::{experts_plan, state as gpu_state};

/// GPU number `ordinal`.
///
/// # Errors
/// Always: there is no GPU support.
#[cfg(not(feature = "cuda"))]
pub fn gpu_state(ordinal: usize) -> Result<GpuState> {
    Err(crate::commands::without_gpu_support(&format!("--device cuda:{ordinal}")))
}

/// What serves which batch size of a layer on a GPU of `architecture`, as far as a program without
/// kernels can say: it does not see which measured times are of other kernels.
///
/// # Errors
/// When that GPU has no kernels for the layer.
#[cfg(not(feature = "cuda"))]
pub fn experts_plan(architecture: &str, layer: &NamedLayer) -> Result<GpuPlan> {
    let gpu = GpuCeilings::of_architecture(architecture);
    let gpu = gpu.expect("this is a bug: an architecture without ceilings");
    let shape = ExpertsShape::of(&layer.config, layer.format);
    let record = TuningRecord::bundled(gpu.architecture, &shape)?;
    Ok(GpuPlan::new(gpu, &layer.config, layer.format, record.as_ref(), TOKENS_PER_STEP)?)
}

#[cfg(feature = "cuda")]
use gpu::ceilings as ceilings_of_gpu;

#[cfg(not(feature = "cuda"))]
fn ceilings_of_gpu(_ordinal: usize) -> Result<Option<GpuCeilings>> {
    Ok(None)
}

#[cfg(feature = "cuda")]
fn on_gpu(
    subject: Subject<'_>,
    ordinal: usize,
    config: &EngineConfig,
) -> Result<(Arc<Model>, Box<dyn Runner>)> {
    let (model, runner) = gpu::runner(subject, ordinal, config)?;
    Ok((model, Box::new(runner)))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(
    _subject: Subject<'_>,
    ordinal: usize,
    _config: &EngineConfig,
) -> Result<(Arc<Model>, Box<dyn Runner>)> {
    Err(crate::commands::without_gpu_support(&format!("--device cuda:{ordinal}")))
}
