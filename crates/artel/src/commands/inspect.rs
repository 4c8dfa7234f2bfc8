//! `artel inspect`: what a checkpoint is, what it needs and how it would be computed.

use std::io::{self, Write};

use anyhow::Context;
use artel_model::{FormatBytes, Model};
use artel_moe::plan::gpu::{ExpertsShape, GpuCeilings, GpuPlan, TOKENS_PER_STEP, TuningRecord};
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{GpuArchitecture, InspectArgs};
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
    if let Some(architecture) = args.arch {
        write_gpu_plan(&mut out, &model, architecture, args.tensor_parallel.get())?;
    }
    Ok(())
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
    let cache = per_token.saturating_mul(context as u64).saturating_mul(sequences as u64);
    writeln!(out, "\nmemory for {sequences} sequence(s) of {context} tokens:")?;
    writeln!(out, "  weights        {}", HumanBytes(weights))?;
    writeln!(out, "  cache          {} ({per_token} bytes a token)", HumanBytes(cache))?;
    writeln!(out, "  together       {}", HumanBytes(weights.saturating_add(cache)))
}

/// Computed without a GPU, from the tuning record of the program or from a model.
fn write_gpu_plan(
    out: &mut impl Write,
    model: &Model,
    architecture: GpuArchitecture,
    ranks: usize,
) -> anyhow::Result<()> {
    let layer = model.moe_layer().context("the model has no experts to plan for")?;
    let NamedLayer { config, format, .. } = NamedLayer::of_model(String::new(), layer, ranks)?;
    let gpu = GpuCeilings::of_architecture(&architecture.name());
    let gpu = gpu.expect("this is a bug: an architecture without ceilings");
    let shape = ExpertsShape::of(&config, format);
    let record = TuningRecord::bundled(gpu.architecture, &shape)?;
    let plan = GpuPlan::new(gpu, &config, format, record.as_ref(), TOKENS_PER_STEP)?;
    Ok(writeln!(out, "\nGPU plan: {plan}")?)
}
