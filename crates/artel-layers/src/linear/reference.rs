//! The definition, in float64 over the exact values of the stored weight.

use super::Linear;

/// `rows` `[T, K]` mapped to `[T, N]`.
pub fn forward(linear: &Linear, tokens: usize, rows: &[f32]) -> Vec<f64> {
    let (outputs, inputs) = (linear.outputs(), linear.inputs());
    let mut out = vec![0f64; tokens * outputs];
    let mut weight = vec![0f32; inputs];
    for output in 0..outputs {
        linear.weight.dequantize_row(output, &mut weight);
        for token in 0..tokens {
            let row = &rows[token * inputs..(token + 1) * inputs];
            let products = row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
            let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
            out[token * outputs + output] = products.sum::<f64>() + bias;
        }
    }
    out
}
