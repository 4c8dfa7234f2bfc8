//! The definition, in float64, one number at a time.

use rayon::prelude::*;

use super::GroupedGemm;
use crate::quant::{
    Element, NumberFormat, WeightMatrix,
    reference::{LEAST_MAGNITUDE, quantized_row},
};
use crate::weights::ExpertMatrices;

/// Computes `out` `[T * K, N]`; rows of pairs that are in no block stay as they are.
pub fn grouped_gemm<F: NumberFormat>(gemm: &GroupedGemm<'_, F>, out: &mut [f64]) {
    let (rows, columns) = (gemm.weights.rows(), gemm.weights.columns());
    let assignment = gemm.assignment;
    let mut expert_of_pair = vec![None; assignment.num_pairs];
    for position in 0..assignment.num_tokens_post_padded {
        let pair = assignment.sorted_token_ids[position] as usize;
        if pair < assignment.num_pairs {
            expert_of_pair[pair] = Some(assignment.expert_ids[position / assignment.block_size]);
        }
    }
    let pairs = out.par_chunks_mut(rows).zip(expert_of_pair).enumerate();
    pairs.for_each(|(pair, (out, expert))| {
        let Some(expert) = expert else { return };
        let Ok(expert) = usize::try_from(expert) else { return out.fill(0.0) };
        let row = pair / gemm.pairs_per_row;
        let x = &gemm.rows[row * columns..(row + 1) * columns];
        let x = operand::<F>(x, gemm.weights.input_scale());
        expert_row(gemm.weights, expert, &x, out);
        out.iter_mut().for_each(|out| *out *= f64::from(gemm.row_weights.of(pair)));
    });
}

/// One row, as the product sees it, times one expert's weights, plus its bias.
pub fn expert_row<F: NumberFormat>(
    weights: &ExpertMatrices<F>,
    expert: usize,
    x: &[f64],
    out: &mut [f64],
) {
    let mut weight_row = vec![0.0; weights.columns()];
    for (n, out) in out.iter_mut().enumerate() {
        weights.matrix(expert).dequantize_row(n, &mut weight_row);
        let bias = weights.bias(expert).map_or(0.0, |bias| f64::from(bias[n]));
        *out = dot(x, &weight_row) + bias;
    }
}

/// `out[t, n] = x[t] . weights[n]` for dense weights.
pub fn dense<F: NumberFormat>(x: &[f32], weights: &F::Matrix, out: &mut [f64]) {
    let (rows, columns) = (weights.rows(), weights.columns());
    let mut weight_row = vec![0.0; columns];
    for (x, out) in x.chunks(columns).zip(out.chunks_mut(rows)) {
        let narrowed: Vec<F::Activation> = x.iter().map(|&x| Element::from_f32(x)).collect();
        let x = operand::<F>(&narrowed, weights.input_scale());
        for (n, out) in out.iter_mut().enumerate() {
            weights.dequantize_row(n, &mut weight_row);
            *out = dot(&x, &weight_row);
        }
    }
}

fn dot(x: &[f64], weights: &[f32]) -> f64 {
    x.iter().zip(weights).map(|(x, &weight)| x * f64::from(weight)).sum()
}

/// What the product sees of one row of activations.
fn operand<F: NumberFormat>(row: &[F::Activation], input_scale: Option<f32>) -> Vec<f64> {
    let row: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
    quantized_row(F::ACTIVATION_SCALES, input_scale, LEAST_MAGNITUDE, &row)
}
