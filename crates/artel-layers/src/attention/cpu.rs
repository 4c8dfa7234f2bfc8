//! Tasks of a few tokens and the heads that share a key-value head, spread over all cores.

use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::Attention;
use super::block::{Block, ROWS_MAX};
use super::cache::LayerCache;

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
    queries: &[f32],
    sequences: &[(&'a LayerCache, usize)],
    out: &'a mut [f32],
) -> Vec<Block<'a>> {
    let shape = &attention.shape;
    let group = shape.query_heads / shape.kv_heads;
    let heads = heads_per_block(group);
    let parts = shape.query_heads / heads;
    // The outputs of a token and of the heads of a block lie side by side.
    let mut outputs: Vec<Option<&mut [f32]>> =
        out.chunks_exact_mut(heads * shape.value_dim).map(Some).collect();
    let mut take_output = |token: usize, part: usize| {
        let output = outputs[token * parts + part].take();
        output.unwrap_or_else(|| panic!("this is a bug: token {token} is in two blocks"))
    };
    let query = |token: usize, part: usize| {
        &queries[token * shape.query_width()..][part * heads * shape.key_dim..]
            [..heads * shape.key_dim]
    };
    let mut blocks = Vec::new();
    let mut first = 0;
    for &(cache, tokens) in sequences {
        for start in (0..tokens).step_by(ROWS_MAX / heads) {
            let rows = first + start..first + tokens.min(start + ROWS_MAX / heads);
            for part in 0..parts {
                let (keys, values) = cache.head(part * heads / group, shape);
                blocks.push(Block {
                    scale: attention.scale,
                    window: attention.window,
                    keys,
                    values,
                    sinks: attention.sinks.get(part * heads..(part + 1) * heads).unwrap_or(&[]),
                    position: cache.tokens - tokens + start,
                    heads,
                    queries: rows.clone().flat_map(|token| query(token, part)).copied().collect(),
                    outputs: rows.clone().map(|token| take_output(token, part)).collect(),
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
