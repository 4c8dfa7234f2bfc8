//! The definition, in float64.

use super::super::LatentProjection;
use crate::rms_norm::{RmsNorm, reference as norm_reference};
use crate::rope::{Rope, RopeTarget, reference as rope_reference};

/// Rows `[T, query_columns + rank + rope_dim]` to normed query latents `[T, query_columns]`, if they have a norm, and rows of the cache
/// `[T, rank + rope_dim]`: the normed latent vector and the turned rotary key.
pub fn forward(
    shape: &LatentProjection,
    norms: (Option<&RmsNorm>, &RmsNorm),
    (rope, positions): (&Rope, &[usize]),
    rows: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let LatentProjection { query_columns, rank, rope_dim, .. } = *shape;
    let (mut queries, mut keys) = (Vec::new(), Vec::new());
    let rows = rows.chunks_exact(query_columns + rank + rope_dim);
    for (row, &position) in rows.zip(positions) {
        let (query, key) = row.split_at(query_columns);
        let (latent, rotary) = key.split_at(rank);
        if let Some(norm) = norms.0 {
            queries.extend(norm_reference::forward(norm, query));
        }
        keys.extend(norm_reference::forward(norms.1, latent));
        let target = RopeTarget::heads(1, rope_dim);
        keys.extend(rope_reference::apply(rope, &[position], &target, rotary));
    }
    (queries, keys)
}
