//! The definition, in float64: every logit, then softmax, then the weighted sum.

use rayon::prelude::*;

use super::{Attention, ValueStorage};

/// Attention of the last `queries.len() / query_width` tokens of one sequence over all its `keys`
/// `[tokens, kv_heads * key_dim]` and `values` `[tokens, kv_heads * value_dim]`.
pub fn forward(attention: &Attention, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
    let shape = attention.shape;
    let cached = keys.len() / shape.key_width() - queries.len() / shape.query_width();
    let rows = queries.par_chunks_exact(shape.key_dim).enumerate();
    let attended = rows.flat_map_iter(|(row, query)| {
        let (token, head) = (row / shape.query_heads, row % shape.query_heads);
        let kv_head = head / (shape.query_heads / shape.kv_heads);
        let key = |j: usize| &keys[(j * shape.kv_heads + kv_head) * shape.key_dim..];
        let value = |j: usize| match shape.values {
            ValueStorage::Own => &values[(j * shape.kv_heads + kv_head) * shape.value_dim..],
            ValueStorage::KeyPrefix => key(j),
        };
        let position = cached + token;
        let visible = (0..=position).filter(|j| position - j < attention.window);
        let logits: Vec<(usize, f64)> =
            visible.map(|j| (j, f64::from(attention.scale) * product(query, key(j)))).collect();
        let sink = attention.sinks.get(head).map(|&sink| f64::from(sink));
        weighted(&logits, sink, value, shape.value_dim)
    });
    attended.collect()
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// `Σ softmax(logit) * value`; zeros when every logit is negative infinity.
fn weighted<'a>(
    logits: &[(usize, f64)],
    sink: Option<f64>,
    value: impl Fn(usize) -> &'a [f32],
    value_dim: usize,
) -> Vec<f64> {
    let all = logits.iter().map(|&(_, logit)| logit).chain(sink);
    let largest = all.clone().fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0f64; value_dim];
    if all.clone().all(|logit| logit == f64::NEG_INFINITY) {
        return out;
    }
    let denominator: f64 = all.map(|logit| (logit - largest).exp()).sum();
    for &(j, logit) in logits {
        let probability = (logit - largest).exp() / denominator;
        for (out, &value) in out.iter_mut().zip(value(j)) {
            *out += probability * f64::from(value);
        }
    }
    out
}
