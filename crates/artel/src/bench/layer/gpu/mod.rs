//! `artel bench layer --device cuda`: the experts of one layer on a GPU, batch size by batch size.
//!
//! Time is from bfloat16 hidden states, ids and weights to bfloat16 output. Several routings are
//! recorded into one CUDA graph, each with its own tokens, so that the weights that a step needs
//! are not in the cache; the median of many replays is taken.

mod compare;
mod cuda;
mod plot;
mod report;
mod timing;
pub mod tune;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use artel_device::cuda::{Architecture, Compiler, Context, KernelPack, Kernels, compile_all};
use artel_moe::cuda::shipped;
use artel_moe::plan::gpu::{GpuPlan, TOKENS_PER_STEP, usual_way};
use artel_moe::router::simulator::Workload;
pub use compare::Peer;
pub use cuda::{load_ceilings, load_ways};
pub use report::{Row, ShapeReport};

use crate::record;
use crate::shapes::NamedLayer;

/// Batch sizes that are measured unless others are asked for.
pub const TOKENS: [usize; 14] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// How simulated tokens choose their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutingKind {
    /// Every expert alike.
    Uniform,
    /// The n-th most popular expert in proportion to `1 / n`.
    Zipf,
}

impl RoutingKind {
    /// Name in tables and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf-1.0",
        }
    }

    fn workload(self) -> Workload {
        match self {
            Self::Uniform => Workload::Uniform,
            Self::Zipf => Workload::Zipf { exponent: 1.0 },
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of the GPU.
    pub ordinal: usize,
    /// Experts.
    pub shapes: Vec<NamedLayer>,
    /// Batch sizes.
    pub tokens: Vec<usize>,
    /// How tokens choose.
    pub routings: Vec<RoutingKind>,
    /// Kernel packs.
    pub packs: Vec<PathBuf>,
    /// Only compile the kernels into this pack, without a GPU.
    pub prepare: Option<PathBuf>,
    /// Only this form of assignment, where it can serve the batch.
    pub path: Option<ForcedPath>,
    /// Folder of tuning records to plan by, in place of those of the program.
    pub tuning: Option<PathBuf>,
    /// Times of another implementation, measured on the same machine.
    pub compare: Option<PathBuf>,
    /// Folder for the records: `experts-NAME.json` for each shape.
    pub save_result: Option<PathBuf>,
    /// Folder for the pictures: `experts-NAME.svg` for each shape.
    pub plot: Option<PathBuf>,
}

/// A form of assignment that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForcedPath {
    /// One pair a block.
    Direct,
    /// Sorted by expert.
    Aligned,
}

/// Measures, prints tables as it goes, writes records and pictures.
///
/// # Errors
/// Without a GPU or its kernels, for an option out of range, for files that cannot be written, and
/// when a result is wrong.
pub fn run(options: &Options) -> Result<()> {
    ensure!(!options.tokens.contains(&0), "a batch has at least one token");
    if let Some(path) = &options.prepare {
        return prepare(options, path);
    }
    let peer = options.compare.as_deref().map(Peer::load).transpose()?;
    let context = Context::new(options.ordinal)?;
    let read_terabytes_per_second =
        cuda::read_rate(&context, &mut open_kernels(options, &context)?)?;
    for shape in &options.shapes {
        let mut report = ShapeReport::new(&context, shape, read_terabytes_per_second)?;
        report.print_head(peer.as_ref());
        let mut kernels = open_kernels(options, &context)?;
        let measured = cuda::measure(options, &context, &mut kernels, shape, |row| {
            report.add(row, peer.as_ref());
        });
        if let Some(folder) = &options.save_result {
            record::save(&file(folder, shape, "json"), &report)?;
        }
        if let Some(folder) = &options.plot {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            plot::draw(&file(folder, shape, "svg"), &report, peer.as_ref())?;
        }
        // What was right is kept before the error is told.
        measured?;
    }
    Ok(())
}

fn file(folder: &Path, shape: &NamedLayer, extension: &str) -> PathBuf {
    folder.join(format!("experts-{}.{extension}", shape.name))
}

/// The plan of a shape for batches of up to `tokens` tokens, or the way that was asked for.
fn plan(
    options: &Options,
    architecture: Architecture,
    shape: &NamedLayer,
    tokens: usize,
) -> Result<GpuPlan> {
    let (config, format) = (&shape.config, shape.format);
    let steps = tokens.next_power_of_two().min(TOKENS_PER_STEP);
    let plan = match &options.tuning {
        None => shipped::plan_in_steps(architecture, config, format, steps)?,
        Some(folder) => {
            let record = tune::read(&folder.join(format!("{shape}.json")))?;
            shipped::plan_by(architecture, config, format, steps, record)?
        }
    };
    if !plan.is_tuned() {
        tracing::warn!(
            "{shape}: not all kernels were measured at these sizes; a model chooses (`artel tune`)"
        );
    }
    Ok(match options.path {
        None => plan,
        Some(path) => plan.with_way(usual_way(config, format, path == ForcedPath::Direct, tokens)?),
    })
}

/// Compiles what the measurement would launch on a Hopper GPU.
fn prepare(options: &Options, path: &Path) -> Result<()> {
    let mut kernels = Kernels::list(Architecture::Sm90);
    cuda::load(options, &mut kernels)?;
    let mut pack = KernelPack::default();
    let architecture = kernels.architecture();
    for kernel in compile_all(&Compiler::find()?, kernels.specs(), architecture, |_| {})? {
        pack.insert(kernel);
    }
    pack.save(path)?;
    println!("{} kernels for {architecture} in {}", pack.len(), path.display());
    Ok(())
}

/// The packs that were given; what they lack is compiled if a toolkit is installed.
fn open_kernels(options: &Options, context: &Context) -> Result<Kernels> {
    let packs = options.packs.iter().map(|path| KernelPack::load(path));
    let packs = packs.collect::<Result<Vec<_>, _>>()?;
    Ok(Kernels::open(context, packs, Compiler::find().ok()))
}
