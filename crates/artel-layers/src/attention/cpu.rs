//! Tasks of a few tokens and the heads that share a key-value head, spread over all cores.

use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::block::{Block, ROWS_MAX};
use super::cache::LayerCache;
use super::{Attention, ValueStorage};

/// Attends for every block.
pub(super) fn attend(features: CpuFeatures, blocks: &mut [Block<'_>]) {
    match blocks {
        [] => {}
        [block] => features.vectorize(Attend(block)),
        many => many.par_iter_mut().for_each(|block| features.vectorize(Attend(block))),
    }
}

/// One block, compiled for each instruction set: the same arithmetic in the same order.
struct Attend<'a, 'b>(&'a mut Block<'b>);

impl Vectorized for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.0.attend();
    }
}

/// Cuts the rows `[token, head]` into blocks of at most [`ROWS_MAX`] that share their keys.
pub(super) fn blocks<'a>(
    attention: &'a Attention,
    queries: &'a [f32],
    sequences: &[(&'a LayerCache, usize)],
    out: &'a mut [f32],
) -> Vec<Block<'a>> {
    let shape = &attention.shape;
    let group = shape.query_heads / shape.kv_heads;
    let heads = heads_per_block(group);
    let blocks_per_token = shape.query_heads / heads;
    // The outputs of a token and of the heads of a block lie side by side.
    let mut outputs: Vec<Option<&mut [f32]>> =
        out.chunks_exact_mut(heads * shape.value_dim).map(Some).collect();
    let mut blocks = Vec::new();
    let mut first = 0;
    for &(cache, tokens) in sequences {
        for start in (0..tokens).step_by(ROWS_MAX / heads) {
            let end = tokens.min(start + ROWS_MAX / heads);
            for block in 0..blocks_per_token {
                let head = &cache.heads[block * heads / group];
                let rows = (first + start..first + end).map(|token| {
                    outputs[token * blocks_per_token + block]
                        .take()
                        .unwrap_or_else(|| panic!("this is a bug: token {token} is in two blocks"))
                });
                let rows = rows.collect();
                let query = |token: usize| {
                    let start = token * shape.query_width() + block * heads * shape.key_dim;
                    &queries[start..start + heads * shape.key_dim]
                };
                blocks.push(Block {
                    scale: attention.scale,
                    window: attention.window,
                    key_dim: shape.key_dim,
                    value_dim: shape.value_dim,
                    keys: &head.keys,
                    values: match shape.values {
                        ValueStorage::Own => &head.values,
                        ValueStorage::KeyPrefix => &head.keys,
                    },
                    value_stride: match shape.values {
                        ValueStorage::Own => shape.value_dim,
                        ValueStorage::KeyPrefix => shape.key_dim,
                    },
                    sinks: attention.sinks.get(block * heads..(block + 1) * heads).unwrap_or(&[]),
                    position: cache.tokens - tokens + start,
                    queries: (first + start..first + end).map(query).collect(),
                    outputs: rows,
                });
            }
        }
        first += tokens;
    }
    blocks
}

/// The largest divisor of the group that fits a block, so that a block has whole tokens.
fn heads_per_block(group: usize) -> usize {
    (1..=group.min(ROWS_MAX)).rev().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1)
}
