//! The definition, in float64.

use super::Slots;

/// `rows` is `[T * K, H]`; returns `[T, H]`.
pub fn combine(slots: &Slots<'_>, hidden_size: usize, rows: &[f64]) -> Vec<f64> {
    let tokens = slots.ids.len() / slots.top_k;
    let mut out = vec![0.0; tokens * hidden_size];
    for (pair, &expert) in slots.ids.iter().enumerate() {
        if !slots.locality.computes(expert) {
            continue;
        }
        let token = pair / slots.top_k;
        for column in 0..hidden_size {
            out[token * hidden_size + column] +=
                f64::from(slots.weights.of(pair)) * rows[pair * hidden_size + column];
        }
    }
    out
}
