//! The definition, in float64.

use super::RmsNorm;

/// Normalises each row of `rows`.
pub fn forward(norm: &RmsNorm, rows: &[f32]) -> Vec<f64> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(norm.width()) {
        let squares: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
        let root = (squares / row.len() as f64 + f64::from(norm.epsilon)).sqrt();
        for (&value, &weight) in row.iter().zip(&norm.weight) {
            out.push(f64::from(weight) * f64::from(value) / root);
        }
    }
    out
}
