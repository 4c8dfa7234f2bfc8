//! GpuPlan: assignment, kernels and tiles for every batch size of one layer on one GPU.
//!
//! Chosen from measured times where a tuning record of the shape exists, else from a model of the
//! GPU; the plan says which. Pure computation on the host: it needs no GPU and is the same wherever
//! it is made.

mod candidates;
mod choices;
pub mod device;
pub mod kernel;
pub mod model;
pub mod record;
pub mod tune;
pub mod work;
#[cfg(test)]
mod tests;

use std::fmt;

pub use choices::usual_way;
use choices::{Choice, choices};
pub use device::GpuCeilings;
pub use kernel::{ExpertKernels, GemmFamily, GemmKernel, GpuPath, GpuProduct, Tile, Way};
pub use record::{Known, TuningRecord};
pub use work::ExpertsShape;

use crate::MoeError;
use crate::assignment::direct_tokens_max;
use crate::config::MoeConfig;
use crate::quant::Format;

/// A choice that is slower than the best by no more than this stays, so that ranges are long and few
/// kernels are loaded.
const CLOSE: f64 = 1.02;

/// What tiles as high as an expert has rows may take more than tiles of a fixed height. Times are those of tokens
/// that choose all experts alike; where the n-th most popular expert gets 1/n of them, 1024 tokens of Qwen3-30B-A3B in
/// bfloat16 take 420 us in blocks of 80 rows instead of 350.
const UNEVEN: f64 = 1.025;

/// Tokens that pass through the layer at a time unless the caller wants otherwise: enough to keep
/// the matrix units busy, few enough for intermediates of a few gigabytes.
pub const TOKENS_PER_STEP: usize = 16384;

/// How one range of batch sizes is served.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPlanEntry {
    /// Smallest batch, in tokens.
    pub tokens_min: usize,
    /// Largest batch; the times are of this one.
    pub tokens_max: usize,
    /// How pairs come to their experts.
    pub path: GpuPath,
    /// What multiplies.
    pub kernels: ExpertKernels,
    /// Microseconds that no implementation of the two products can go below.
    pub floor: f64,
    /// Microseconds that assignment and products are expected to take; where they were measured,
    /// those of all experts' work, from hidden states to hidden states.
    pub expected: f64,
    /// Whether `expected` was measured.
    pub tuned: bool,
    /// Why this and nothing else.
    pub because: String,
}

/// What serves every batch size of one layer on a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPlan {
    gpu: GpuCeilings,
    format: Format,
    tokens_per_step: usize,
    record: Option<String>,
    entries: Vec<GpuPlanEntry>,
}

impl GpuPlan {
    /// The plan of a layer with experts of `format`. Larger batches than `tokens_per_step` are cut.
    /// `record` holds measured times; one of another shape or architecture is an error of the caller.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the GPU has no kernel for the format or the sizes, with what it has;
    /// or for a record of something else.
    pub fn new(
        gpu: &GpuCeilings,
        config: &MoeConfig,
        format: Format,
        record: Option<&TuningRecord>,
        tokens_per_step: usize,
    ) -> Result<Self, MoeError> {
        let shape = ExpertsShape::of(config, format);
        shape.arithmetic(gpu)?;
        if let Some(record) = record {
            check_record(record, gpu, &shape)?;
        }
        let mut entries: Vec<GpuPlanEntry> = Vec::new();
        for tokens in batch_sizes(config, record, tokens_per_step) {
            let choices = choices(gpu, config, format, record, tokens)?;
            let best = best(&choices, entries.last()).ok_or_else(|| no_kernel(&shape))?;
            let floor = GpuProduct::ALL.iter().map(|product| shape.floor(*product, tokens, gpu));
            let floor = floor.sum::<Result<f64, _>>()? * 1e6;
            let entry = GpuPlanEntry {
                tokens_min: entries.last().map_or(1, |last| last.tokens_max + 1),
                tokens_max: tokens,
                path: best.way.path,
                kernels: best.way.kernels,
                floor,
                expected: best.microseconds,
                tuned: best.tuned,
                because: because(&shape, &choices, &best, tokens, gpu)?,
            };
            match entries.last_mut() {
                Some(last) if same(last, &entry) => {
                    *last = GpuPlanEntry { tokens_min: last.tokens_min, ..entry };
                }
                _ => entries.push(entry),
            }
        }
        let record = record.map(|TuningRecord { origin, .. }| {
            format!("tuned on {} on {} ({})", origin.device, origin.date, origin.compiler)
        });
        Ok(Self { gpu: *gpu, format, tokens_per_step, record, entries })
    }

    /// The same with every batch served in one way, for measurements. Times are those of the entry
    /// that serves the largest batch.
    pub fn with_way(mut self, way: Way) -> Self {
        let last = self.entries.pop().expect("this is a bug: a plan without entries");
        let (path, kernels, because) = (way.path, way.kernels, "asked for".to_owned());
        self.entries = vec![GpuPlanEntry { tokens_min: 1, path, kernels, because, ..last }];
        self
    }

    /// Number format of the experts.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What the plan was made for.
    pub fn gpu(&self) -> &GpuCeilings {
        &self.gpu
    }

    /// Larger batches are cut into steps of so many tokens.
    pub fn tokens_per_step(&self) -> usize {
        self.tokens_per_step
    }

    /// Whether every entry rests on measured times.
    pub fn is_tuned(&self) -> bool {
        self.entries.iter().all(|entry| entry.tuned)
    }

    /// All ranges of batch sizes, ascending and without gaps.
    pub fn entries(&self) -> &[GpuPlanEntry] {
        &self.entries
    }

    /// What serves a step of `tokens` tokens.
    pub fn entry(&self, tokens: usize) -> &GpuPlanEntry {
        let entry = self.entries.iter().find(|entry| tokens <= entry.tokens_max);
        entry.expect("this is a bug: a step longer than the plan's")
    }
}

fn check_record(
    record: &TuningRecord,
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
) -> Result<(), MoeError> {
    if record.origin.architecture != gpu.architecture {
        let found = &record.origin.architecture;
        return Err(MoeError::config("architecture of the tuning record", found, gpu.architecture));
    }
    let wanted = record::RecordShape::from(shape);
    if record.shape != wanted {
        let (found, wanted) = (format!("{:?}", record.shape), format!("{wanted:?}"));
        return Err(MoeError::config("shape of the tuning record", found, wanted));
    }
    Ok(())
}

fn no_kernel(shape: &ExpertsShape) -> MoeError {
    let sizes = format!("{} and {}", shape.hidden_size, shape.intermediate_size);
    MoeError::config("hidden and intermediate size", sizes, "rows of a multiple of 16 bytes")
}

/// Batch sizes that the plan is made at: what was measured; beyond that powers of two; and the last
/// one of the direct form.
fn batch_sizes(config: &MoeConfig, record: Option<&TuningRecord>, limit: usize) -> Vec<usize> {
    let limit = limit.max(1);
    let mut sizes = record.map(TuningRecord::tokens).unwrap_or_default();
    let measured = sizes.last().copied().unwrap_or(0);
    let powers = (0..usize::BITS).map(|power| 1 << power).take_while(|size| *size < limit);
    sizes.extend(powers.filter(|size| *size > measured));
    sizes.push(direct_tokens_max(config.shape().top_k, config.shape().num_experts));
    sizes.push(limit);
    sizes.retain(|size| (1..=limit).contains(size));
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The fastest, or what loses least where some experts get most tokens, or what serves smaller batches,
/// when that is as good.
fn best(choices: &[Choice], previous: Option<&GpuPlanEntry>) -> Option<Choice> {
    let fastest = choices.first()?;
    let steady = choices.iter().find(|choice| {
        let is_near = choice.microseconds <= fastest.microseconds * UNEVEN;
        choice.tuned && choice.way.follows_rows() && is_near
    });
    if let Some(steady) = steady.filter(|_| fastest.way.has_fixed_height()) {
        return Some(*steady);
    }
    let stays = previous.and_then(|previous| {
        choices.iter().find(|choice| {
            choice.way == Way { path: previous.path, kernels: previous.kernels }
                && choice.microseconds <= fastest.microseconds * CLOSE
        })
    });
    Some(*stays.unwrap_or(fastest))
}

fn same(last: &GpuPlanEntry, next: &GpuPlanEntry) -> bool {
    last.path == next.path && last.kernels == next.kernels && last.tuned == next.tuned
}

fn because(
    shape: &ExpertsShape,
    choices: &[Choice],
    best: &Choice,
    tokens: usize,
    gpu: &GpuCeilings,
) -> Result<String, MoeError> {
    let touched = shape.experts_touched(tokens).round();
    let bytes: f64 = GpuProduct::ALL.iter().map(|&product| shape.matrix_bytes(product)).sum();
    let reading = touched * bytes / gpu.read;
    let floor = shape.floor(GpuProduct::GateUp, tokens, gpu)?
        + shape.floor(GpuProduct::Down, tokens, gpu)?;
    let bound = if floor > 1.5 * reading {
        "arithmetic counts".to_owned()
    } else {
        format!("{touched} of {} experts are read", shape.local_experts)
    };
    let best_way = best.way;
    let others = match best_way.path {
        GpuPath::Direct => choices.iter().find(|choice| choice.way.path != GpuPath::Direct),
        GpuPath::Aligned { .. } => choices.iter().find(|Choice { way, .. }| {
            way.kernels.first != best_way.kernels.first || way.path != best_way.path
        }),
    };
    let source = if best.tuned { "measured" } else { "modelled" };
    let next = others.map_or("no other kernel fits".to_owned(), |other| {
        let name = match best_way.path {
            GpuPath::Direct => "sorting first".to_owned(),
            GpuPath::Aligned { .. } => {
                format!("{} {}", other.way.path, other.way.kernels.first.tile)
            }
        };
        format!("{source}; {name} takes {:.1} us", other.microseconds)
    });
    Ok(format!("{bound}; {next}"))
}

impl fmt::Display for GpuPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuCeilings { architecture, device, .. } = self.gpu;
        writeln!(formatter, "experts in {} on {architecture} ({device})", self.format)?;
        writeln!(
            formatter,
            "{:>11}  {:<12} {:<26} {:<26} {:>9} {:>9}  because",
            "tokens", "assignment", "gate_up", "down", "floor us", "us"
        )?;
        for entry in &self.entries {
            let tokens = format!("{}-{}", entry.tokens_min, entry.tokens_max);
            let ExpertKernels { first, second } = entry.kernels;
            let (path, first, second) =
                (entry.path.to_string(), first.to_string(), second.to_string());
            let GpuPlanEntry { floor, expected, because, .. } = entry;
            writeln!(
                formatter,
                "{tokens:>11}  {path:<12} {first:<26} {second:<26} {floor:>9.1} {expected:>9.1}  {because}"
            )?;
        }
        writeln!(formatter, "times are of the largest batch of each range")?;
        match &self.record {
            Some(record) => writeln!(formatter, "{record}")?,
            None => writeln!(
                formatter,
                "no tuning record of these sizes: chosen by a model of the GPU{}",
                if self.gpu.measured { "" } else { ", whose rates are of a data sheet" }
            )?,
        }
        write!(formatter, "larger batches run in steps of {} tokens", self.tokens_per_step)
    }
}
