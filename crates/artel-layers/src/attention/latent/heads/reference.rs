//! The definition, in float64.

use super::HeadProductShape;

/// `out[t, h, n]` = the sum over `k` of `weights[h, n, k] * rows[t, h, k]`, `[T, heads, N]`.
pub fn forward(shape: &HeadProductShape, weights: &[f32], rows: &[f32]) -> Vec<f64> {
    let HeadProductShape { heads, inputs, input_stride, input_row, outputs, .. } = *shape;
    let mut out = Vec::new();
    for row in rows.chunks_exact(input_row) {
        for head in 0..heads {
            let x = &row[head * input_stride..][..inputs];
            let matrix = &weights[head * outputs * inputs..][..outputs * inputs];
            let product = |w: &[f32]| -> f64 {
                w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
            };
            out.extend(matrix.chunks_exact(inputs).map(product));
        }
    }
    out
}
