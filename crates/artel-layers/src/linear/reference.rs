//! The definition, in float64 over the exact values of the stored weight.

use rayon::prelude::*;

use super::Linear;

/// `rows` `[T, K]` mapped to `[T, N]`.
pub fn forward(linear: &Linear, tokens: usize, rows: &[f32]) -> Vec<f64> {
    let (outputs, inputs) = (linear.outputs(), linear.inputs());
    let of_output = |output: usize| {
        let mut weight = vec![0f32; inputs];
        linear.weight.dequantize_row(output, &mut weight);
        let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
        let products = rows.chunks_exact(inputs).map(|row| {
            let products = row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
            products.sum::<f64>() + bias
        });
        products.collect()
    };
    let columns: Vec<Vec<f64>> = (0..outputs).into_par_iter().map(of_output).collect();
    let pairs = (0..tokens).flat_map(|token| columns.iter().map(move |column| column[token]));
    pairs.collect()
}
