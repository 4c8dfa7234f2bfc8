//! `artel kernels build`.

use std::time::Instant;

use anyhow::{Context, ensure};
use artel_device::cuda::{Architecture, Compiler, KernelPack, KernelSpec, Kernels, compile_all};
use artel_engine::{CudaRunnerKernels, EngineConfig};
use artel_model::Model;
use artel_moe::cuda::shipped;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::bench::layer::gpu;
use crate::cli::{KernelsBuildArgs, ModelArgs};
use crate::shapes::{NamedLayer, SHIPPED};
use crate::source;

/// Tokens of the largest step that a pack is for.
const STEP_TOKENS_MAX: usize = 1 << 16;

/// Sequences of the largest step.
const SEQUENCES_MAX: usize = 1024;

pub(super) fn build(args: &KernelsBuildArgs) -> anyhow::Result<()> {
    let subject = subject(args)?;
    let compiler = Compiler::find()?;
    let known = known(args);
    if let Some(folder) = args.output.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let mut pack = KernelPack::default();
    for architecture in &args.arch {
        let architecture: Architecture = architecture.name().parse()?;
        let start = Instant::now();
        let Wanted { specs, left_out } = wanted(architecture, &subject, args.tune)?;
        let (mut kept, mut missing) = (Vec::new(), Vec::new());
        for spec in specs {
            let found = known.find(&spec, architecture);
            match found.filter(|kernel| kernel.compiler == compiler.version()) {
                Some(kernel) => kept.push(kernel.clone()),
                None => missing.push(spec),
            }
        }
        let bar = progress_bar(architecture, missing.len());
        let compiled = compile_all(&compiler, &missing, architecture, |spec| {
            bar.set_message(spec.operation());
            bar.inc(1);
        });
        bar.finish_and_clear();
        let compiled = compiled?;
        let (new, old) = (compiled.len(), kept.len());
        let bytes: usize = compiled.iter().chain(&kept).map(|kernel| kernel.cubin.len()).sum();
        compiled.into_iter().chain(kept).for_each(|kernel| pack.insert(kernel));
        let seconds = start.elapsed().as_secs_f64();
        let size = HumanBytes(bytes as u64);
        println!("{architecture}: {new} kernels compiled, {old} kept, {size}, {seconds:.1} s");
        left_out.iter().for_each(|what| println!("{architecture}: without {what}"));
        // After each architecture, so that an interrupted build goes on from here.
        pack.save(&args.output)?;
    }
    ensure!(!pack.is_empty(), "there is no kernel to put into {}", args.output.display());
    println!("{} kernels in {}", pack.len(), args.output.display());
    Ok(())
}

/// What one architecture gets, and what it does not, with the reason.
struct Wanted {
    specs: Vec<KernelSpec>,
    left_out: Vec<String>,
}

/// What kernels are for.
struct Subject {
    layers: Vec<NamedLayer>,
    /// All of a model, unless GPUs share its experts.
    model: Option<Model>,
}

fn subject(args: &KernelsBuildArgs) -> anyhow::Result<Subject> {
    let Some(path) = &args.model else {
        let layers = match args.shapes.as_slice() {
            [] => SHIPPED.iter().map(|name| name.parse()).collect::<anyhow::Result<_>>()?,
            names => names.iter().map(|name| name.parse()).collect::<anyhow::Result<_>>()?,
        };
        return Ok(Subject { layers, model: None });
    };
    let is_bundled = path.as_os_str() == source::BUNDLED_NAME && !path.exists();
    let model = ModelArgs {
        format: args.format,
        load_format: args.load_format,
        ..ModelArgs::of((!is_bundled).then(|| path.clone()))
    };
    let checkpoint = source::open(&model)?;
    let model = source::load_mapped(&model, &checkpoint)?;
    let layer = model.moe_layer().context("the model has no experts")?;
    let ranks = args.tensor_parallel.get();
    let layers = vec![NamedLayer::of_model(checkpoint.name(), layer, ranks)?];
    Ok(Subject { layers, model: (ranks == 1).then_some(model) })
}

/// Steps that kernels of a model serve; those of smaller ones are among them.
fn largest_steps() -> EngineConfig {
    EngineConfig { max_num_batched_tokens: STEP_TOKENS_MAX, ..EngineConfig::offline(SEQUENCES_MAX) }
}

/// What an earlier call made; nothing when there is no such file or it is damaged.
fn known(args: &KernelsBuildArgs) -> KernelPack {
    if !args.output.exists() {
        return KernelPack::default();
    }
    KernelPack::load(&args.output).unwrap_or_else(|error| {
        tracing::warn!("{error}; it is made anew");
        KernelPack::default()
    })
}

/// Every kernel of every layer, asked for by the code that loads them on a GPU.
fn wanted(architecture: Architecture, subject: &Subject, tune: bool) -> anyhow::Result<Wanted> {
    let mut kernels = Kernels::list(architecture);
    gpu::load_ceilings(&mut kernels)?;
    let mut left_out = Vec::new();
    if let Some(model) = &subject.model
        && let Err(error) = CudaRunnerKernels::load(&mut kernels, model, &largest_steps())
    {
        left_out.push(format!("the model as a whole: {error}"));
    }
    for layer in &subject.layers {
        let asked = shipped::load(&mut kernels, &layer.config, &layer.router, layer.format)
            .map_err(anyhow::Error::from)
            .and_then(|()| if tune { gpu::load_ways(&mut kernels, layer) } else { Ok(()) });
        if let Err(error) = asked {
            left_out.push(format!("{layer}: {error}"));
        }
    }
    let (specs, unfit): (Vec<_>, Vec<_>) =
        kernels.specs().iter().cloned().partition(|spec| spec.runs_on(architecture));
    let lacking = |spec: KernelSpec| format!("{}: needs a newer architecture", spec.key());
    left_out.extend(unfit.into_iter().map(lacking));
    Ok(Wanted { specs, left_out })
}

fn progress_bar(architecture: Architecture, kernels: usize) -> ProgressBar {
    let template = "{prefix} {wide_bar} {pos}/{len} {elapsed} {msg}";
    let style = ProgressStyle::with_template(template)
        .expect("this is a bug: the template of the progress bar");
    let bar = ProgressBar::new(kernels as u64).with_style(style);
    bar.with_prefix(format!("compiling for {architecture}"))
}
