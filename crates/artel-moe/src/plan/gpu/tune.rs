//! Making a tuning record: what to measure, in which order, and how to go on after an interruption.
//!
//! Batch size by batch size, the first product's kernels are tried with the second kernel that the
//! model likes best, then the second product's kernels with the first one that was measured best, of each
//! family that comes near the fastest: with another second kernel it may overtake it.
//! What comes next follows from the record alone, so an interrupted search goes on where it stopped.

use super::candidates;
use super::choices::modelled_ways;
use super::device::GpuCeilings;
use super::kernel::{GemmFamily, Way};
use super::record::{Known, TuningRecord};
use crate::MoeError;
use crate::config::MoeConfig;
use crate::quant::Format;

/// Ways whose modelled time is more than this times the best one's are not measured.
const HOPELESS: f64 = 1.6;
/// Families whose best time is within this of the fastest way's are searched for second kernels: with the right one INT4 at 64
/// tokens falls by 13 %.
const NEAR: f64 = 1.15;

/// What is searched for.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// Limits of the GPU.
    pub gpu: &'a GpuCeilings,
    /// Sizes and ranks.
    pub config: &'a MoeConfig,
    /// Number format of the experts.
    pub format: Format,
}

impl Search<'_> {
    /// The next way to measure at a batch size; `None` when enough is known.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a format without kernels on that GPU.
    pub fn next(&self, record: &TuningRecord, tokens: usize) -> Result<Option<Way>, MoeError> {
        let firsts = self.firsts(tokens)?;
        let unknown = |way: &Way| record.known(way, tokens) == Known::Nothing;
        if let Some(way) = firsts.iter().copied().find(unknown) {
            return Ok(Some(way));
        }
        let time = |way: &Way| match record.known(way, tokens) {
            Known::Microseconds(time) => time,
            Known::Nothing | Known::Wrong => f64::INFINITY,
        };
        let best_of =
            |ways: &mut dyn Iterator<Item = Way>| ways.min_by(|a, b| time(a).total_cmp(&time(b)));
        let Some(best) = best_of(&mut firsts.iter().copied()) else { return Ok(None) };
        let limit = NEAR * time(&best);
        let others = GemmFamily::ALL.into_iter().filter_map(|family| {
            let of_family = |way: &Way| way.kernels.first.family == family;
            best_of(&mut firsts.iter().copied().filter(of_family))
        });
        let near = std::iter::once(best).chain(others.filter(|way| time(way) <= limit));
        Ok(near.flat_map(|first| self.seconds(first, tokens)).find(unknown))
    }

    /// Every way that a search may come to at a batch size: what a kernel pack for it holds.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn ways(&self, tokens: usize) -> Result<Vec<Way>, MoeError> {
        let firsts = self.firsts(tokens)?;
        Ok(firsts.into_iter().flat_map(|first| self.seconds(first, tokens)).collect())
    }

    /// For each path and first kernel the best second one, by the model; best ways first.
    fn firsts(&self, tokens: usize) -> Result<Vec<Way>, MoeError> {
        let Self { gpu, config, format } = *self;
        let all = candidates::all(gpu, config, format, tokens);
        let ways = modelled_ways(gpu, config, format, all, tokens)?;
        let limit = ways.first().map_or(0.0, |(_, best)| best * HOPELESS);
        let mut firsts: Vec<Way> = Vec::new();
        for (way, _) in ways.into_iter().take_while(|(_, time)| *time <= limit) {
            let same =
                |known: &Way| (known.path, known.kernels.first) == (way.path, way.kernels.first);
            if !firsts.iter().any(same) {
                firsts.push(way);
            }
        }
        Ok(firsts)
    }

    /// The same path and first kernel with every second kernel.
    fn seconds(&self, way: Way, tokens: usize) -> impl Iterator<Item = Way> {
        let same =
            move |other: &Way| (other.path, other.kernels.first) == (way.path, way.kernels.first);
        let all = candidates::all(self.gpu, self.config, self.format, tokens);
        all.into_iter().filter(same)
    }
}

/// What takes the measurements.
pub trait Stopwatch {
    /// What can go wrong besides a wrong result.
    type Error: From<MoeError>;

    /// Checks the result of a way against a trusted one, then times it: microseconds, or `None`
    /// when the result is wrong.
    ///
    /// # Errors
    /// When nothing can be said about the way.
    fn measure(&mut self, way: &Way, tokens: usize) -> Result<Option<f64>, Self::Error>;
}

/// Measures what the record does not know yet; `noted` is called after each, to save the record and
/// to show how far it is.
///
/// # Errors
/// The first error of the stopwatch or of `noted`; the record keeps what was found until then.
pub fn tune<W: Stopwatch>(
    record: &mut TuningRecord,
    search: &Search<'_>,
    tokens: &[usize],
    stopwatch: &mut W,
    mut noted: impl FnMut(&TuningRecord, &Way, usize) -> Result<(), W::Error>,
) -> Result<(), W::Error> {
    for &tokens in tokens {
        while let Some(way) = search.next(record, tokens)? {
            let time = stopwatch.measure(&way, tokens)?;
            record.note(&way, tokens, time);
            noted(record, &way, tokens)?;
        }
    }
    Ok(())
}
