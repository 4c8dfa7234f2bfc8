//! One row times a few keys in registers.
//!
//! Each product and each weighted sum is computed in the order of [`vector::dot`] and key by key,
//! so what is held in registers decides about speed only.

use std::ops::Range;

use super::cache::{BLOCK_TOKENS, BlockId};
use crate::vector::{self, LANES};

/// Keys whose products with a query are summed side by side: enough to hide the latency of an
/// addition, few enough for 16 registers.
pub(super) const KEYS_TOGETHER: usize = 4;

/// Equally long rows in the blocks of a sequence, `stride` elements apart within a block.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) blocks: &'a [Box<[f32]>],
    /// The block of rows 0-15, of rows 16-31 and so on.
    pub(super) table: &'a [BlockId],
    /// Where the first row of a block begins.
    pub(super) offset: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// The rows without the first `count`, which are whole blocks.
    pub(super) fn from(self, count: usize) -> Self {
        debug_assert!(count.is_multiple_of(BLOCK_TOKENS));
        Self { table: &self.table[count / BLOCK_TOKENS..], ..self }
    }

    /// The rows of one block.
    #[inline(always)]
    fn block(&self, index: usize) -> BlockRows<'a> {
        let block = &self.blocks[self.table[index] as usize];
        let elements = &block[self.offset..][..BLOCK_TOKENS * self.stride];
        BlockRows { elements, stride: self.stride, width: self.width }
    }
}

/// The rows of one block.
#[derive(Clone, Copy)]
struct BlockRows<'a> {
    elements: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> BlockRows<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.elements[row * self.stride..][..self.width]
    }
}

/// The blocks that a range of rows touches: number of the block and rows within it.
#[inline(always)]
fn by_block(rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    (rows.start / BLOCK_TOKENS..rows.end.div_ceil(BLOCK_TOKENS)).map(move |block| {
        let first = block * BLOCK_TOKENS;
        let end = rows.end.min(first + BLOCK_TOKENS);
        (block, rows.start.max(first) - first..end - first)
    })
}

/// Products of a query with the keys of `range`, written to the same places of `out`.
#[inline(always)]
pub(super) fn products(query: &[f32], keys: Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    for (block, range) in by_block(range) {
        let out = &mut out[block * BLOCK_TOKENS..];
        products_of_block(query, keys.block(block), range, out);
    }
}

#[inline(always)]
fn products_of_block(query: &[f32], keys: BlockRows<'_>, range: Range<usize>, out: &mut [f32]) {
    let mut key = range.start;
    while key + KEYS_TOGETHER <= range.end {
        let rows = std::array::from_fn(|index| keys.row(key + index));
        out[key..key + KEYS_TOGETHER].copy_from_slice(&products_together(query, rows));
        key += KEYS_TOGETHER;
    }
    for (index, out) in out[key..range.end].iter_mut().enumerate() {
        *out = vector::dot(query, keys.row(key + index));
    }
}

#[inline(always)]
fn products_together(query: &[f32], keys: [&[f32]; KEYS_TOGETHER]) -> [f32; KEYS_TOGETHER] {
    let (query, query_tail) = query.as_chunks::<LANES>();
    let keys = keys.map(|key| key.as_chunks::<LANES>());
    let mut sums = [[0f32; LANES]; KEYS_TOGETHER];
    for (chunk, query) in query.iter().enumerate() {
        for (sums, key) in sums.iter_mut().zip(&keys) {
            let key = &key.0[chunk];
            for lane in 0..LANES {
                sums[lane] += query[lane] * key[lane];
            }
        }
    }
    for (sums, key) in sums.iter_mut().zip(&keys) {
        query_tail.iter().zip(key.1).zip(sums).for_each(|((query, key), sum)| *sum += query * key);
    }
    sums.map(vector::sum_lanes)
}

/// Adds `weights[key] * values[key]` for each key of `range` to `sums`.
#[inline(always)]
pub(super) fn add_weighted(
    weights: &[f32],
    values: Rows<'_>,
    range: Range<usize>,
    sums: &mut [f32],
) {
    let mut column = 0;
    while column + 64 <= values.width {
        add_columns::<64>(weights, values, range.clone(), column, sums);
        column += 64;
    }
    while column + 16 <= values.width {
        add_columns::<16>(weights, values, range.clone(), column, sums);
        column += 16;
    }
    while column < values.width {
        add_columns::<1>(weights, values, range.clone(), column, sums);
        column += 1;
    }
}

#[inline(always)]
fn add_columns<const WIDTH: usize>(
    weights: &[f32],
    values: Rows<'_>,
    range: Range<usize>,
    column: usize,
    sums: &mut [f32],
) {
    let sums = &mut sums[column..column + WIDTH];
    let mut held = [0f32; WIDTH];
    held.copy_from_slice(sums);
    for (block, range) in by_block(range) {
        let values = values.block(block);
        let weights = &weights[block * BLOCK_TOKENS..];
        for key in range {
            let value = &values.elements[key * values.stride + column..][..WIDTH];
            let weight = weights[key];
            for lane in 0..WIDTH {
                held[lane] += weight * value[lane];
            }
        }
    }
    sums.copy_from_slice(&held);
}
