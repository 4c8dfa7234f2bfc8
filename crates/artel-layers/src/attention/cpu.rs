//! Tasks of a few tokens and the heads that share a key-value head, spread over all cores.

use artel_device::cpu::{CpuFeatures, Vectorized};
use rayon::prelude::*;

use super::tile::{ROWS_MAX, Tile};
use super::{Attention, KvCache, SequenceTokens};

/// Attends for every tile.
pub(super) fn attend(features: CpuFeatures, tiles: &mut [Tile<'_>]) {
    match tiles {
        [] => {}
        [tile] => features.vectorize(Attend(tile)),
        many => many.par_iter_mut().for_each(|tile| features.vectorize(Attend(tile))),
    }
}

/// One tile, compiled for each instruction set: the same arithmetic in the same order.
struct Attend<'a, 'b>(&'a mut Tile<'b>);

impl Vectorized for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.0.attend();
    }
}

/// Cuts the rows `[token, head]` into tiles of at most [`ROWS_MAX`] that share their keys.
pub(super) fn tiles<'a>(
    attention: &'a Attention,
    queries: &[f32],
    (cache, layer): (&'a KvCache, usize),
    sequences: &[SequenceTokens<'a>],
    out: &'a mut [f32],
) -> Vec<Tile<'a>> {
    let shape = &attention.shape;
    let group = shape.query_heads / shape.kv_heads;
    let heads = heads_per_tile(group);
    let parts = shape.query_heads / heads;
    // The outputs of a token and of the heads of a tile lie side by side.
    let mut outputs: Vec<Option<&mut [f32]>> =
        out.chunks_exact_mut(heads * shape.value_dim).map(Some).collect();
    let mut take_output = |token: usize, part: usize| {
        let output = outputs[token * parts + part].take();
        output.unwrap_or_else(|| panic!("this is a bug: token {token} is in two tiles"))
    };
    let query = |token: usize, part: usize| {
        &queries[token * shape.query_width()..][part * heads * shape.key_dim..]
            [..heads * shape.key_dim]
    };
    let mut tiles = Vec::new();
    let mut first = 0;
    for &SequenceTokens { blocks: table, cached, tokens } in sequences {
        for start in (0..tokens).step_by(ROWS_MAX / heads) {
            let rows = first + start..first + tokens.min(start + ROWS_MAX / heads);
            for part in 0..parts {
                let (keys, values) = cache.head(layer, part * heads / group, table);
                tiles.push(Tile {
                    scale: attention.scale,
                    window: attention.window,
                    keys,
                    values,
                    sinks: attention.sinks.get(part * heads..(part + 1) * heads).unwrap_or(&[]),
                    position: cached + start,
                    heads,
                    queries: rows.clone().flat_map(|token| query(token, part)).copied().collect(),
                    outputs: rows.clone().map(|token| take_output(token, part)).collect(),
                });
            }
        }
        first += tokens;
    }
    tiles
}

/// The largest divisor of the group that fits a tile, so that a tile has whole tokens.
fn heads_per_tile(group: usize) -> usize {
    (1..=group.min(ROWS_MAX)).rev().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1)
}
