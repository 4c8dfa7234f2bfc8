//! `artel inspect`: what a checkpoint is, what it needs and how it would be computed.

use std::io::{self, Write};

use anyhow::{Context, ensure};
use artel_model::{FormatBytes, Model};
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{Device, InspectArgs};
use crate::compute::{self, GpuState};
use crate::shapes::NamedLayer;
use crate::source;

/// Prints the description.
///
/// # Errors
/// When the model does not load or standard output cannot be written.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let checkpoint = source::open(&args.model)?;
    let model = source::load_mapped(&args.model, &checkpoint)?;
    let context = args.context.unwrap_or(model.config().max_positions);
    let mut out = io::stdout().lock();
    writeln!(out, "{}", checkpoint.name())?;
    write_architecture(&mut out, &model)?;
    write_parameters(&mut out, &model)?;
    write_memory(&mut out, &model, (context, args.sequences))?;
    if let Some(plan) = model.moe_plan() {
        writeln!(out, "\nplan: {plan}")?;
    }
    match Planned::of(args)? {
        Some(Planned::Architecture(name)) => write_gpu_plan(&mut out, &model, &name, args)?,
        Some(Planned::Gpu(gpu)) => {
            let cache = cache_bytes(&model, (context, args.sequences));
            write_gpu(&mut out, &gpu, model.parameters().bytes() as u64, cache)?;
            write_gpu_plan(&mut out, &model, &gpu.architecture, args)?;
        }
        None => {}
    }
    Ok(())
}

/// What the experts are planned for besides this machine's CPU.
enum Planned {
    /// Any GPU of an architecture.
    Architecture(String),
    /// A GPU of this machine.
    Gpu(GpuState),
}

impl Planned {
    /// An architecture that is named needs no GPU, whatever the device.
    fn of(args: &InspectArgs) -> anyhow::Result<Option<Self>> {
        match (args.arch, args.device) {
            (Some(architecture), _) => Ok(Some(Self::Architecture(architecture.name()))),
            (None, Device::Cuda(ordinal)) => {
                let gpu = compute::gpu_state(ordinal);
                let gpu = gpu.context("--arch NAME plans for a GPU that is not there")?;
                Ok(Some(Self::Gpu(gpu)))
            }
            (None, Device::Cpu) => {
                let ranks = args.tensor_parallel;
                ensure!(
                    ranks.get() == 1,
                    "--tensor-parallel {ranks} is for --arch and --device cuda"
                );
                Ok(None)
            }
        }
    }
}

fn write_architecture(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let config = model.config();
    writeln!(out, "  architecture   {}", config.architecture)?;
    writeln!(out, "  layers         {}", config.layers)?;
    writeln!(out, "  hidden size    {}", config.hidden)?;
    writeln!(out, "  heads          {} ({} key-value)", config.heads, config.kv_heads)?;
    if config.experts > 0 {
        let (experts, used) = (config.experts, config.experts_per_token);
        writeln!(out, "  experts        {experts} a layer, {used} for each token")?;
    }
    writeln!(out, "  vocabulary     {}", config.vocabulary)?;
    writeln!(out, "  context        {} tokens", config.max_positions)
}

fn write_parameters(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let parameters = model.parameters();
    let (total, active) = (parameters.total() as u64, parameters.active() as u64);
    writeln!(out, "\nparameters: {} total, {} active", HumanCount(total), HumanCount(active))?;
    writeln!(out, "  {:<16} {:<14} {:>16} {:>12}", "group", "format", "parameters", "memory")?;
    for (group, format, FormatBytes { parameters, bytes }) in parameters.by_group() {
        let (count, memory) = (HumanCount(parameters as u64), HumanBytes(bytes as u64));
        let (count, memory) = (count.to_string(), memory.to_string());
        writeln!(out, "  {:<16} {format:<14} {count:>16} {memory:>12}", group.name())?;
    }
    Ok(())
}

fn write_memory(
    out: &mut impl Write,
    model: &Model,
    (context, sequences): (usize, usize),
) -> io::Result<()> {
    let weights = model.parameters().bytes() as u64;
    let per_token = model.config().cache_bytes_per_token as u64;
    let cache = cache_bytes(model, (context, sequences));
    writeln!(out, "\nmemory for {sequences} sequence(s) of {context} tokens:")?;
    writeln!(out, "  weights        {}", HumanBytes(weights))?;
    writeln!(out, "  cache          {} ({per_token} bytes a token)", HumanBytes(cache))?;
    writeln!(out, "  together       {}", HumanBytes(weights.saturating_add(cache)))
}

/// Bytes of keys and values.
fn cache_bytes(model: &Model, (context, sequences): (usize, usize)) -> u64 {
    let per_token = model.config().cache_bytes_per_token as u64;
    per_token.saturating_mul(context as u64).saturating_mul(sequences as u64)
}

/// The GPU, and whether `weights` and `cache` bytes fit into its free memory.
fn write_gpu(out: &mut impl Write, gpu: &GpuState, weights: u64, cache: u64) -> anyhow::Result<()> {
    let GpuState { ordinal, name, architecture, free, total } = gpu;
    let (free_text, total) = (HumanBytes(*free), HumanBytes(*total));
    writeln!(out, "\nGPU {ordinal}: {name}, {architecture}, {free_text} of {total} free")?;
    let room = free.saturating_sub(weights);
    let fits = match (weights <= *free, cache <= room) {
        (true, true) => format!("both fit: {} for keys and values", HumanBytes(room)),
        (true, false) => format!("weights fit, the cache does not: {} for it", HumanBytes(room)),
        (false, _) => "the weights do not fit".to_owned(),
    };
    Ok(writeln!(out, "  {fits}, before buffers of the steps")?)
}

/// From the tuning record of the program or from a model of the GPU; the same that serves.
fn write_gpu_plan(
    out: &mut impl Write,
    model: &Model,
    architecture: &str,
    args: &InspectArgs,
) -> anyhow::Result<()> {
    let layer = model.moe_layer().context("the model has no experts to plan for")?;
    let layer = NamedLayer::of_model(String::new(), layer, args.tensor_parallel.get())?;
    let plan = compute::experts_plan(architecture, &layer)?;
    Ok(writeln!(out, "\nGPU plan: {plan}")?)
}
