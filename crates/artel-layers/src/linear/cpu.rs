//! Output features in parallel; each row of the weight is widened once and used by all tokens.

use rayon::prelude::*;

use super::Linear;
use crate::{LayersError, vector};

/// Output features that one core takes at a time.
const OUTPUTS_PER_TASK: usize = 32;

pub(super) fn forward(
    linear: &Linear,
    tokens: usize,
    rows: &[f32],
    out: &mut [f32],
) -> Result<(), LayersError> {
    let (outputs, inputs) = (linear.outputs(), linear.inputs());
    // Features outside, so that a task owns what it writes; turned around at the end.
    let mut by_output = vec![0f32; outputs * tokens];
    if tokens > 0 {
        by_output.par_chunks_mut(OUTPUTS_PER_TASK * tokens).enumerate().for_each(|(task, out)| {
            let mut weight = vec![0f32; inputs];
            for (index, out) in out.chunks_exact_mut(tokens).enumerate() {
                linear.weight.dequantize_row(task * OUTPUTS_PER_TASK + index, &mut weight);
                for (token, out) in out.iter_mut().enumerate() {
                    *out = vector::dot(&rows[token * inputs..(token + 1) * inputs], &weight);
                }
            }
        });
    }
    for (index, out) in out.iter_mut().enumerate() {
        let (token, output) = (index / outputs, index % outputs);
        let bias = linear.bias.as_ref().map_or(0.0, |bias| bias[output]);
        *out = by_output[output * tokens + token] + bias;
    }
    Ok(())
}
