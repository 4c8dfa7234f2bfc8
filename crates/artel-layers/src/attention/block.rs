//! Softmax in one pass over the keys, for the rows of a block.
//!
//! Keys come in blocks at fixed positions, so that the sums of a row do not depend on which other
//! rows are computed with it.

use std::ops::Range;

use crate::vector;

/// Rows of a block: their state stays in the first cache beside a block of keys.
pub(super) const ROWS_MAX: usize = 16;

/// Keys between two corrections of the running maximum.
const KEYS: usize = 64;

/// Some tokens of one sequence and some heads that share a key-value head.
pub(super) struct Block<'a> {
    pub(super) scale: f32,
    pub(super) window: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// `[tokens, key_dim]`.
    pub(super) keys: &'a [f32],
    /// Rows `value_stride` apart, of which the first `value_dim` elements count.
    pub(super) values: &'a [f32],
    pub(super) value_stride: usize,
    /// One a head, or empty.
    pub(super) sinks: &'a [f32],
    /// Position of the first token; the others follow it.
    pub(super) position: usize,
    /// `[heads * key_dim]` of each token.
    pub(super) queries: Vec<&'a [f32]>,
    /// `[heads * value_dim]` of each token.
    pub(super) outputs: Vec<&'a mut [f32]>,
}

/// The running softmax of one row.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    denominator: f32,
}

impl Block<'_> {
    #[inline(always)]
    pub(super) fn attend(&mut self) {
        attend(self);
    }
}

#[inline(always)]
fn attend(block: &mut Block<'_>) {
    let heads = block.queries[0].len() / block.key_dim;
    let mut running = [Running { largest: f32::NEG_INFINITY, denominator: 0.0 }; ROWS_MAX];
    for (row, running) in running.iter_mut().enumerate().take(heads * block.queries.len()) {
        if let Some(&sink) = block.sinks.get(row % heads)
            && sink > f32::NEG_INFINITY
        {
            *running = Running { largest: sink, denominator: 1.0 };
        }
    }
    block.outputs.iter_mut().for_each(|output| output.fill(0.0));

    let last = block.position + block.queries.len() - 1;
    let first_key = (block.position + 1).saturating_sub(block.window) / KEYS * KEYS;
    for start in (first_key..=last).step_by(KEYS) {
        for token in 0..block.queries.len() {
            let position = block.position + token;
            let visible = start.max((position + 1).saturating_sub(block.window))
                ..(start + KEYS).min(position + 1);
            if visible.is_empty() {
                continue;
            }
            for head in 0..heads {
                let running = &mut running[token * heads + head];
                add_keys(block, (token, head), start, visible.clone(), running);
            }
        }
    }
    divide(block, heads, &running);
}

/// Adds the `visible` keys of the block that begins at `start` to the row `(token, head)`.
#[inline(always)]
fn add_keys(
    block: &mut Block<'_>,
    (token, head): (usize, usize),
    start: usize,
    visible: Range<usize>,
    running: &mut Running,
) {
    let query = &block.queries[token][head * block.key_dim..(head + 1) * block.key_dim];
    let mut weights = [f32::NEG_INFINITY; KEYS];
    for key in visible.clone() {
        let row = &block.keys[key * block.key_dim..(key + 1) * block.key_dim];
        weights[key - start] = block.scale * vector::dot(query, row);
    }
    let largest = running.largest.max(vector::max(&weights));
    if largest == f32::NEG_INFINITY && !weights.iter().any(|logit| logit.is_nan()) {
        return;
    }
    let correction = vector::exp(running.largest - largest);
    weights.iter_mut().for_each(|logit| *logit = vector::exp(*logit - largest));
    running.largest = largest;
    running.denominator = running.denominator * correction + vector::sum(&weights);

    let output = &mut block.outputs[token][head * block.value_dim..(head + 1) * block.value_dim];
    output.iter_mut().for_each(|out| *out *= correction);
    for key in visible {
        let weight = weights[key - start];
        let value = &block.values[key * block.value_stride..][..block.value_dim];
        output.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
    }
}

/// Turns weighted sums into means; a row that saw nothing stays zero.
#[inline(always)]
fn divide(block: &mut Block<'_>, heads: usize, running: &[Running]) {
    for (token, output) in block.outputs.iter_mut().enumerate() {
        for (head, output) in output.chunks_exact_mut(block.value_dim).enumerate() {
            let denominator = running[token * heads + head].denominator;
            if denominator != 0.0 {
                output.iter_mut().for_each(|out| *out /= denominator);
            }
        }
    }
    debug_assert_eq!(block.outputs.len(), block.queries.len());
}
