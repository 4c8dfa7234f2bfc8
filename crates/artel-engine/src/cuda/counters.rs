//! Which experts had how many tokens, from counters that the device only ever adds to.
//!
//! They are read after two of 32 steps that follow each other: the second difference is of one step, which
//! tells how many experts a step uses.

use artel_device::cuda::{Context, PinnedBuffer};

use crate::Result;

/// Steps from one pair of readings to the next.
const STEPS: u64 = 32;

/// What was read, and what of it has not been told yet.
pub(super) struct ExpertCounters {
    /// One for each slot of the runner.
    pub(super) read: [PinnedBuffer<i32>; 2],
    /// As of the latest reading, `[layers, experts]`.
    known: Vec<i32>,
    known_steps: u64,
    pairs: Vec<Vec<i32>>,
    pairs_steps: u64,
    /// Whether they were told.
    are_told: bool,
    launched: u64,
}

impl ExpertCounters {
    /// `[layers with experts, experts]`.
    pub(super) fn new(context: &Context, [layers, experts]: [usize; 2]) -> Result<Self> {
        let buffer = || PinnedBuffer::zeroed(context, layers * experts);
        Ok(Self {
            read: [buffer()?, buffer()?],
            known: vec![0; layers * experts],
            known_steps: 0,
            pairs: vec![vec![0; experts]; layers],
            pairs_steps: 0,
            are_told: false,
            launched: 0,
        })
    }

    /// Counts a step; says after which one counters are to be read now, if they are.
    pub(super) fn launched(&mut self) -> Option<u64> {
        self.launched += 1;
        let is_due = self.launched % STEPS >= STEPS - 2;
        (is_due && !self.known.is_empty()).then_some(self.launched)
    }

    /// Takes in what was read after so many steps into a slot.
    pub(super) fn take(&mut self, steps: u64, slot: usize) {
        // A step that was waited for may overtake the one before it.
        if steps <= self.known_steps {
            return;
        }
        if std::mem::take(&mut self.are_told) {
            self.pairs.iter_mut().for_each(|pairs| pairs.fill(0));
            self.pairs_steps = 0;
        }
        let counters = self.read[slot].as_slice();
        let mut counters = self.known.iter_mut().zip(counters);
        for pairs in self.pairs.iter_mut().flatten() {
            let (known, &now) = counters.next().expect("this is a bug: counters of experts");
            *pairs += now.wrapping_sub(*known);
            *known = now;
        }
        self.pairs_steps += steps - self.known_steps;
        self.known_steps = steps;
    }

    /// Pairs of each expert that were not told yet, and the steps they are of.
    pub(super) fn news(&mut self) -> (&[Vec<i32>], u64) {
        match std::mem::replace(&mut self.are_told, true) {
            false if self.pairs_steps > 0 => (&self.pairs, self.pairs_steps),
            _ => (&[], 0),
        }
    }
}
