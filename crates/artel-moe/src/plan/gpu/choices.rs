//! All ways to serve a batch, with their times.

use super::candidates;
use super::device::GpuCeilings;
use super::kernel::{GemmKernel, Way};
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

/// The part of the best measured time that a modelled one may take: the model is right to a tenth.
const NEWCOMER: f64 = 0.9;

/// The ways to serve a batch, fastest first: those that were measured, or else the favourite of each
/// path and family with its modelled time. Measured and modelled times are compared only for families
/// of which the record knows nothing, because they are newer or have changed, and then these must be
/// clearly better.
pub(super) fn choices(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    record: Option<&TuningRecord>,
    tokens: usize,
) -> Result<Vec<Choice>, MoeError> {
    let measured = |way: Way| match record?.known(&way, tokens) {
        Known::Microseconds(microseconds) => Some(Choice { way, microseconds, tuned: true }),
        Known::Nothing | Known::Wrong => None,
    };
    let all = candidates::all(gpu, config, format, tokens);
    let mut choices: Vec<Choice> = all.into_iter().filter_map(measured).collect();
    let best = choices.iter().map(|choice| choice.microseconds).min_by(f64::total_cmp);
    let mut ways = candidates::favourites(gpu, config, format, tokens);
    if let (Some(_), Some(record)) = (best, record) {
        let is_new = |kernel: GemmKernel| !record.has_seen(kernel.family);
        ways.retain(|way| is_new(way.kernels.first) && is_new(way.kernels.second));
    }
    let limit = best.map_or(f64::INFINITY, |best| NEWCOMER * best);
    let modelled = modelled_ways(gpu, config, format, ways, tokens)?.into_iter();
    let modelled = modelled.filter(|(_, microseconds)| *microseconds <= limit);
    choices.extend(modelled.map(|(way, microseconds)| Choice { way, microseconds, tuned: false }));
    choices.sort_by(|a, b| a.microseconds.total_cmp(&b.microseconds));
    Ok(choices)
}

/// `ways` with the microseconds that the model gives them, fastest first.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels on that GPU.
pub(super) fn modelled_ways(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    ways: Vec<Way>,
    tokens: usize,
) -> Result<Vec<(Way, f64)>, MoeError> {
    let shape = ExpertsShape::of(config, format);
    let time = |way: Way| Ok((way, model::seconds(gpu, &shape, way, tokens)? * 1e6));
    let mut ways = ways.into_iter().map(time).collect::<Result<Vec<_>, MoeError>>()?;
    ways.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(ways)
}

/// The fastest way of one form of assignment by earlier measurements, whether or not the plan would
/// choose that form; to compare them.
///
/// # Errors
/// [`MoeError::Config`] for more tokens than the direct form's kernels take, or a format without
/// kernels.
pub fn usual_way(
    config: &MoeConfig,
    format: Format,
    is_direct: bool,
    tokens: usize,
) -> Result<Way, MoeError> {
    if is_direct && tokens > candidates::DIRECT_TOKENS_MAX {
        let allowed = format!("at most {}", candidates::DIRECT_TOKENS_MAX);
        return Err(MoeError::config("tokens of the direct form", tokens, allowed));
    }
    candidates::usual(&ExpertsShape::of(config, format), is_direct, tokens)
}
