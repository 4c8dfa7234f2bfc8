//! Making a tuning record: what to measure, in which order, and how to go on after an interruption.

use std::collections::BTreeSet;

use super::candidates;
use super::device::GpuCeilings;
use super::kernel::GpuProduct;
use super::model::product_seconds;
use super::record::{Known, Step, TuningRecord};
use super::work::ExpertsShape;
use crate::MoeError;
use crate::config::MoeConfig;

/// Kernels whose modelled time is more than this times the best one's are not measured.
const HOPELESS: f64 = 1.8;

/// One measurement to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// What is measured.
    pub step: Step,
    /// Batch size.
    pub tokens: usize,
}

/// Everything worth measuring: for each batch size in the order given, the kernels with the best
/// outlook first, so that an interrupted record is of use.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels on that GPU.
pub fn tasks(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    shape: &ExpertsShape,
    tokens: &[usize],
) -> Result<Vec<Task>, MoeError> {
    let mut tasks = Vec::new();
    for &tokens in tokens {
        let mut block_sizes = BTreeSet::new();
        for product in GpuProduct::ALL {
            let mut outlook = Vec::new();
            for kernel in candidates::kernels(shape, product) {
                for path in candidates::paths(config, kernel, tokens) {
                    let seconds = product_seconds(gpu, shape, product, path, kernel, tokens)?;
                    outlook.push((seconds, Step::Product { product, path, kernel }));
                }
            }
            outlook.sort_by(|a, b| a.0.total_cmp(&b.0));
            let limit = outlook.first().map_or(0.0, |(best, _)| best * HOPELESS);
            for (_, step) in outlook.into_iter().take_while(|(seconds, _)| *seconds <= limit) {
                if let Step::Product { kernel, .. } = step {
                    block_sizes.insert(kernel.tile.rows);
                }
                tasks.push(Task { step, tokens });
            }
        }
        let align = |block_size| Task { step: Step::Align { block_size }, tokens };
        tasks.extend(block_sizes.into_iter().map(align));
    }
    Ok(tasks)
}

/// What takes the measurements.
pub trait Stopwatch {
    /// What can go wrong besides a wrong result.
    type Error;

    /// Checks the step's result against a trusted one, then times it: microseconds, or `None` when
    /// the result is wrong.
    ///
    /// # Errors
    /// When nothing can be said about the step.
    fn measure(&mut self, task: &Task) -> Result<Option<f64>, Self::Error>;
}

/// Measures what the record does not know yet; `noted` is called after each, to save the record and
/// to show how far it is.
///
/// # Errors
/// The first error of the stopwatch or of `noted`; the record keeps what was found until then.
pub fn tune<W: Stopwatch>(
    record: &mut TuningRecord,
    tasks: &[Task],
    stopwatch: &mut W,
    mut noted: impl FnMut(&TuningRecord, &Task) -> Result<(), W::Error>,
) -> Result<(), W::Error> {
    for task in tasks {
        if record.known(task.step, task.tokens) == Known::Nothing {
            let known = match stopwatch.measure(task)? {
                Some(microseconds) => Known::Microseconds(microseconds),
                None => Known::Wrong,
            };
            record.note(task.step, task.tokens, known);
        }
        noted(record, task)?;
    }
    Ok(())
}
