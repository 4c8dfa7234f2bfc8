use crate::eplb::trace::{TraceError, TraceRecord};

/// Collects the records of a trace that belong to one step: one of each source rank that had tokens.
/// Ends after the first error.
pub fn by_step(
    records: impl Iterator<Item = Result<TraceRecord, TraceError>>,
) -> impl Iterator<Item = Result<Vec<TraceRecord>, TraceError>> {
    let mut records = records.peekable();
    std::iter::from_fn(move || {
        let mut step = match records.next()? {
            Ok(first) => vec![first],
            Err(error) => return Some(Err(error)),
        };
        let number = step[0].step;
        let same = |next: &Result<TraceRecord, _>| matches!(next, Ok(next) if next.step == number);
        while let Some(Ok(record)) = records.next_if(same) {
            step.push(record);
        }
        Some(Ok(step))
    })
}
