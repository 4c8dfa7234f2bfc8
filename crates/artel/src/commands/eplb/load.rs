//! Steps of load from a trace or made up.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::Context;
use artel_moe::eplb::Cluster;
use artel_moe::eplb::simulate::{Synthetic, by_step};
use artel_moe::eplb::trace::{TraceError, TraceReader, TraceRecord, TraceShape};

use crate::cli::{EplbClusterArgs, EplbLoadArgs};

/// Steps of synthetic load when nobody says how many.
const SYNTHETIC_STEPS: usize = 400;

/// Steps that can be gone through several times.
pub struct Load {
    source: Source,
    shape: TraceShape,
    steps: usize,
    /// What it is, for tables and records.
    pub name: String,
    /// Name of the model, for people.
    pub model: String,
}

enum Source {
    Trace(PathBuf),
    Synthetic(Box<Synthetic>),
}

/// One step after the other.
pub type Steps = Box<dyn Iterator<Item = Result<Vec<TraceRecord>, TraceError>>>;

impl Load {
    /// What the arguments ask for; synthetic load comes from every GPU.
    ///
    /// # Errors
    /// When the trace cannot be read or sizes make no sense.
    pub fn new(args: &EplbLoadArgs, gpus: usize) -> anyhow::Result<Self> {
        match (&args.trace, args.synthetic) {
            (Some(path), _) => Self::of_trace(path, args),
            (None, Some(load)) => {
                let shape = TraceShape {
                    layers: args.layers.get(),
                    experts: args.experts.get(),
                    top_k: args.top_k.get(),
                    source_ranks: gpus,
                };
                let synthetic = Synthetic::new(load, shape, args.tokens.get(), args.seed)?
                    .drifting_every(args.drift_steps)
                    .correlated(args.correlation)?;
                let correlated = match args.correlation {
                    0.0 => String::new(),
                    sigma => format!(", batches correlated by {sigma}"),
                };
                Ok(Self {
                    source: Source::Synthetic(Box::new(synthetic)),
                    shape,
                    steps: args.steps.map_or(SYNTHETIC_STEPS, std::num::NonZeroUsize::get),
                    name: format!("{load}{correlated}"),
                    model: format!("synthetic {load}"),
                })
            }
            (None, None) => anyhow::bail!("name load by --trace or --synthetic"),
        }
    }

    fn of_trace(path: &Path, args: &EplbLoadArgs) -> anyhow::Result<Self> {
        let reader = open(path)?;
        let header = reader.header();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self {
            shape: header.shape(),
            model: header.model().to_owned(),
            source: Source::Trace(path.to_owned()),
            steps: args.steps.map_or(usize::MAX, std::num::NonZeroUsize::get),
            name,
        })
    }

    /// Sizes of the steps.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }

    /// From the first step on. A trace that ends too early ends with a warning.
    ///
    /// # Errors
    /// When the trace cannot be opened.
    pub fn steps(&self) -> anyhow::Result<Steps> {
        Ok(match &self.source {
            Source::Synthetic(synthetic) => {
                Box::new(synthetic.as_ref().clone().map(Ok).take(self.steps))
            }
            Source::Trace(path) => Box::new(by_step(complete(open(path)?)).take(self.steps)),
        })
    }

    /// The GPUs with room for the experts and the redundant slots.
    ///
    /// # Errors
    /// For slots that the GPUs cannot share evenly, or nodes that they cannot.
    pub fn cluster(&self, args: &EplbClusterArgs) -> anyhow::Result<Cluster> {
        let (experts, gpus) = (self.shape.experts, args.gpus.get());
        let slots = experts.saturating_add(args.redundant);
        let cluster = Cluster::of_slots(slots, gpus).with_context(|| {
            let short = slots.next_multiple_of(gpus) - slots;
            let (fewer, more) = (args.redundant.checked_sub(gpus - short), args.redundant + short);
            let nearest = fewer.map_or(String::new(), |fewer| format!("{fewer} or "));
            format!(
                "{experts} experts and --redundant {} do not divide among --gpus {gpus}; nearest: \
                 --redundant {nearest}{more}",
                args.redundant
            )
        })?;
        Ok(cluster.with_nodes(args.nodes.get())?)
    }
}

/// Opens a trace.
///
/// # Errors
/// With the path, when it is none.
pub fn open(path: &Path) -> anyhow::Result<TraceReader<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    TraceReader::new(BufReader::new(file)).with_context(|| format!("in {}", path.display()))
}

/// The records before a cut.
fn complete(
    reader: TraceReader<BufReader<File>>,
) -> impl Iterator<Item = Result<TraceRecord, TraceError>> {
    reader.filter(|record| match record {
        Err(error) if error.is_truncated() => {
            tracing::warn!("{error}; what comes before is used");
            false
        }
        _ => true,
    })
}
