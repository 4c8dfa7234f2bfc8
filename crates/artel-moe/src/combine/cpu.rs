use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::Combine;
use crate::MoeError;
use crate::quant::Element;

/// Columns that are summed at a time: the sums stay in the first-level cache.
const CHUNK: usize = 256;

/// Below so many numbers read in all, one thread is faster than waking another.
const SERIAL_NUMBERS: usize = 32768;

/// Sums the rows of every token into `out` `[T, H]`.
///
/// # Errors
/// [`MoeError`] when the shapes do not belong together.
pub fn combine<A: Element>(
    features: CpuFeatures,
    work: Combine<'_, A>,
    out: &mut [A],
) -> Result<(), MoeError> {
    let hidden_size = work.hidden_size(out.len())?;
    if hidden_size == 0 {
        return Ok(());
    }
    let tokens_per_thread = (SERIAL_NUMBERS / (hidden_size * work.slots.top_k)).max(1);
    out.par_chunks_exact_mut(hidden_size)
        .enumerate()
        .with_min_len(tokens_per_thread)
        .for_each(|(token, out)| features.vectorize(Token { work: &work, token, out }));
    Ok(())
}

struct Token<'a, A> {
    work: &'a Combine<'a, A>,
    token: usize,
    out: &'a mut [A],
}

impl<A: Element> Vectorized for Token<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let hidden_size = self.out.len();
        let Combine { slots, rows, identity } = self.work;
        let first_pair = self.token * slots.top_k;
        for (index, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0.0f32; CHUNK];
            if let Some(identity) = identity {
                let start = self.token * hidden_size + index * CHUNK;
                let hidden_state = &identity.hidden_states[start..start + out.len()];
                add(&mut sums, identity.weights[self.token], hidden_state);
            }
            for pair in first_pair..first_pair + slots.top_k {
                if !slots.locality.computes(slots.ids[pair]) {
                    continue;
                }
                let start = pair * hidden_size + index * CHUNK;
                add(&mut sums, slots.weights.of(pair), &rows[start..start + out.len()]);
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = A::from_f32(sum);
            }
        }
    }
}

#[inline(always)]
fn add<A: Element>(sums: &mut [f32; CHUNK], weight: f32, row: &[A]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum += weight * value.to_f32();
    }
}
