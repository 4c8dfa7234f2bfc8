use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::Slots;
use crate::MoeError;
use crate::quant::Element;

/// Columns that are summed at a time: the sums stay in the first-level cache.
const CHUNK: usize = 256;

/// Below so many numbers read in all, one thread is faster than waking another.
const SERIAL_NUMBERS: usize = 32768;

/// Sums `rows` `[T * K, H]` into `out` `[T, H]`.
///
/// # Errors
/// [`MoeError`] when the shapes do not belong together.
pub fn combine<A: Element>(
    features: CpuFeatures,
    slots: Slots<'_>,
    rows: &[A],
    out: &mut [A],
) -> Result<(), MoeError> {
    let hidden_size = slots.hidden_size(rows.len(), out.len())?;
    if hidden_size == 0 {
        return Ok(());
    }
    let tokens_per_thread = (SERIAL_NUMBERS / (hidden_size * slots.top_k)).max(1);
    out.par_chunks_exact_mut(hidden_size)
        .enumerate()
        .with_min_len(tokens_per_thread)
        .for_each(|(token, out)| features.vectorize(Token { slots: &slots, token, rows, out }));
    Ok(())
}

struct Token<'a, A> {
    slots: &'a Slots<'a>,
    token: usize,
    rows: &'a [A],
    out: &'a mut [A],
}

impl<A: Element> Vectorized for Token<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let hidden_size = self.out.len();
        let first_pair = self.token * self.slots.top_k;
        for (index, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0.0f32; CHUNK];
            for pair in first_pair..first_pair + self.slots.top_k {
                if !self.slots.locality.computes(self.slots.ids[pair]) {
                    continue;
                }
                let weight = self.slots.weights.of(pair);
                let start = pair * hidden_size + index * CHUNK;
                let row = &self.rows[start..start + out.len()];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += weight * value.to_f32();
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = A::from_f32(sum);
            }
        }
    }
}
