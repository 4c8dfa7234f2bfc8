use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::MoeError;

/// Whether the next step records its load: one switch for all layers and ranks of a model. Copies
/// of it are the same switch. It is turned between steps only.
#[derive(Debug, Clone, Default)]
pub struct RecordFlag(Arc<AtomicBool>);

impl RecordFlag {
    /// A switch that is on or off.
    pub fn new(recording: bool) -> Self {
        Self(Arc::new(AtomicBool::new(recording)))
    }

    /// Turns it on or off.
    pub fn set(&self, recording: bool) {
        // What orders a step after the turn is whatever starts the step.
        self.0.store(recording, Ordering::Relaxed);
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Tokens that each physical expert has computed.
#[derive(Debug, Clone, Default)]
pub struct ExpertLoad {
    counts: Vec<i32>,
    flag: RecordFlag,
}

impl ExpertLoad {
    /// Switches recording on or off, for all that follow the same flag.
    pub fn record(&mut self, recording: bool) {
        self.flag.set(recording);
    }

    /// Records from now on whenever `flag` is on.
    pub fn follow(&mut self, flag: &RecordFlag) {
        self.flag = flag.clone();
    }

    /// The counts, `[P]`, and whether to add to them.
    pub(crate) fn counts(&mut self, physical_experts: usize) -> (&mut [i32], bool) {
        self.counts.resize(physical_experts, 0);
        (&mut self.counts, self.flag.is_on())
    }

    /// Counts pairs by their experts, ids beyond the experts left out.
    pub(crate) fn add(&mut self, experts: usize, ids: &[i32]) {
        let (counts, recording) = self.counts(experts);
        if recording {
            for &id in ids {
                let count = usize::try_from(id).ok().and_then(|id| counts.get_mut(id));
                count.into_iter().for_each(|count| *count += 1);
            }
        }
    }

    /// Adds the counts since the last time to those of a step `[P]`, and begins anew.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for another number of slots; nothing is added then.
    pub fn drain_into(&mut self, slot_loads: &mut [i32]) -> Result<(), MoeError> {
        if self.counts.is_empty() {
            return Ok(());
        }
        MoeError::check_shape("load of a layer", slot_loads.len(), self.counts.len())?;
        for (sum, count) in slot_loads.iter_mut().zip(&mut self.counts) {
            *sum = sum.saturating_add(std::mem::take(count));
        }
        Ok(())
    }

    /// Takes the counts since the last time.
    pub fn take(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flag_switches_all_that_follow_it() {
        let flag = RecordFlag::new(false);
        let mut layers = [ExpertLoad::default(), ExpertLoad::default()];
        layers.iter_mut().for_each(|layer| layer.follow(&flag));
        for (recording, expected) in [(false, 0), (true, 2), (false, 0)] {
            flag.set(recording);
            for layer in &mut layers {
                layer.add(3, &[1, 1, -1, 3]);
                assert_eq!(layer.take(), [0, expected, 0]);
            }
        }
        let mut alone = ExpertLoad::default();
        alone.record(true);
        assert!(!flag.is_on());
    }

    #[test]
    fn the_load_of_ranks_adds_up() {
        let mut ranks = [ExpertLoad::default(), ExpertLoad::default(), ExpertLoad::default()];
        let mut sum = vec![0, 0, i32::MAX];
        for rank in &mut ranks[..2] {
            rank.record(true);
            rank.add(3, &[0, 2, 2]);
        }
        // The third has never seen a token.
        ranks.iter_mut().for_each(|rank| rank.drain_into(&mut sum).unwrap());
        assert_eq!(sum, [2, 0, i32::MAX]);
        ranks.iter_mut().for_each(|rank| rank.drain_into(&mut sum).unwrap());
        assert_eq!(sum, [2, 0, i32::MAX], "and once only");
        assert!(ranks[0].drain_into(&mut [0; 2]).is_err());
    }
}
