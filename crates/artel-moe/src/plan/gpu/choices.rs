//! All ways to serve a batch, with their times.

use super::candidates;
use super::device::GpuCeilings;
use super::kernel::{ExpertKernels, GemmKernel, GpuPath, GpuProduct, Way};
use super::model;
use super::record::{Known, TuningRecord};
use super::work::ExpertsShape;
use crate::MoeError;
use crate::config::MoeConfig;
use crate::quant::Format;

/// One way with its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub(super) way: Way,
    pub(super) microseconds: f64,
    pub(super) tuned: bool,
}

/// Every way to serve a batch, fastest first. Measured times and modelled ones are never compared:
/// where any way was measured, the others are left out.
pub(super) fn choices(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    record: Option<&TuningRecord>,
    tokens: usize,
) -> Result<Vec<Choice>, MoeError> {
    let ways = modelled_ways(gpu, config, format, tokens)?;
    let measured = |way: &Way| match record?.known(way, tokens) {
        Known::Microseconds(microseconds) => Some(microseconds),
        Known::Nothing | Known::Wrong => None,
    };
    let tuned = ways.iter().filter_map(|(way, _)| {
        measured(way).map(|microseconds| Choice { way: *way, microseconds, tuned: true })
    });
    let mut choices: Vec<Choice> = tuned.collect();
    if choices.is_empty() {
        let modelled = |(way, microseconds)| Choice { way, microseconds, tuned: false };
        choices = ways.into_iter().map(modelled).collect();
    }
    choices.sort_by(|a, b| a.microseconds.total_cmp(&b.microseconds));
    Ok(choices)
}

/// Every way to serve a batch with the microseconds that the model gives it, fastest first.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels on that GPU.
pub(super) fn modelled_ways(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    tokens: usize,
) -> Result<Vec<(Way, f64)>, MoeError> {
    let shape = ExpertsShape::of(config, format);
    let mut ways = Vec::new();
    for first in candidates::kernels(&shape, GpuProduct::GateUp) {
        for path in candidates::paths(config, first, tokens) {
            let product = |product, kernel| {
                model::product_seconds(gpu, &shape, product, path, kernel, tokens)
            };
            let start =
                model::assign_seconds(path, &shape, tokens) + product(GpuProduct::GateUp, first)?;
            for second in second_kernels(config, format, path, first, tokens) {
                let seconds = start + product(GpuProduct::Down, second)?;
                let way = Way { path, kernels: ExpertKernels { first, second } };
                ways.push((way, seconds * 1e6));
            }
        }
    }
    ways.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(ways)
}

/// The kernels of the second product that work on the assignment of the first one's.
pub(super) fn second_kernels(
    config: &MoeConfig,
    format: Format,
    path: GpuPath,
    first: GemmKernel,
    tokens: usize,
) -> Vec<GemmKernel> {
    let mut seconds = candidates::kernels(&ExpertsShape::of(config, format), GpuProduct::Down);
    seconds.retain(|second| {
        second.tile.rows == first.tile.rows
            && candidates::paths(config, *second, tokens).contains(&path)
    });
    seconds
}
