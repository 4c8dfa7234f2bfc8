//! The random stream behind a problem. Draws are defined here rather than by a library's
//! distributions, so that a seed names the same problem for ever.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A ChaCha8 stream and the few ways in which problems draw from it.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// Stream number `index` of `seed`; streams of one seed are independent.
    pub(super) fn new(seed: u64, index: u64) -> Self {
        let mut stream = ChaCha8Rng::seed_from_u64(seed);
        stream.set_stream(index);
        Dice(stream)
    }

    /// A number in `0..bound`, by the multiply-and-shift method (Lemire 2019, arXiv:1805.10941);
    /// its bias is below 2^-16 for the bounds used here.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        assert!((1..1 << 16).contains(&bound), "this is a bug: bound {bound}");
        ((u64::from(self.0.next_u32()) * bound as u64) >> 32) as usize
    }

    /// A number in `low..=high`, or `low` if that is empty: what a chain then does with a number
    /// that it has no room for is refused by the limits of its calculations.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        let high = high.max(low);
        low + self.below((high - low + 1) as usize) as i64
    }

    /// True `percent` times out of a hundred.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the choices.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Fisher and Yates's shuffle.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
