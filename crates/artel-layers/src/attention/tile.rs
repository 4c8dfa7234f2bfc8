//! Softmax in one pass over the keys, for the rows of a tile.
//!
//! Keys come in runs at fixed positions, so that the sums of a row do not depend on which other
//! rows are computed with it.

use std::ops::Range;

use super::rows::{Rows, add_weighted, products};
use crate::vector;

/// Rows of a tile: their state stays in the first cache beside a run of keys.
pub(super) const ROWS_MAX: usize = 16;

/// Keys between two corrections of the running maximum: some whole blocks of the cache.
const KEYS: usize = 64;

/// Some tokens of one sequence and some heads that share a key-value head. Rows are numbered token
/// by token, head by head.
pub(super) struct Tile<'a> {
    pub(super) scale: f32,
    pub(super) window: usize,
    /// `[tokens, key_dim]`.
    pub(super) keys: Rows<'a>,
    /// `[tokens, value_dim]`, possibly the first columns of the keys.
    pub(super) values: Rows<'a>,
    /// One a head, or empty.
    pub(super) sinks: &'a [f32],
    /// Position of the first token; the others follow it.
    pub(super) position: usize,
    pub(super) heads: usize,
    /// `[rows, key_dim]`.
    pub(super) queries: Vec<f32>,
    /// `[heads * value_dim]` of each token.
    pub(super) outputs: Vec<&'a mut [f32]>,
}

/// The running softmax of all rows.
struct Running {
    largest: [f32; ROWS_MAX],
    denominators: [f32; ROWS_MAX],
    /// Weighted values, `[rows, value_dim]`.
    sums: Vec<f32>,
}

impl Tile<'_> {
    #[inline(always)]
    pub(super) fn attend(&mut self) {
        let mut running = self.begin();
        let first_key = self.first_visible(0) / KEYS * KEYS;
        for start in (first_key..self.position + self.outputs.len()).step_by(KEYS) {
            for row in 0..self.rows() {
                let visible = self.visible(row, start);
                if !visible.is_empty() {
                    self.add_keys(row, start, visible, &mut running);
                }
            }
        }
        self.divide(&running);
    }

    fn rows(&self) -> usize {
        self.outputs.len() * self.heads
    }

    /// First key that the row's token sees.
    fn first_visible(&self, row: usize) -> usize {
        (self.position + row / self.heads + 1).saturating_sub(self.window)
    }

    /// Keys of the run at `start` that the row sees, counted from there.
    #[inline(always)]
    fn visible(&self, row: usize, start: usize) -> Range<usize> {
        let end = (self.position + row / self.heads + 1).clamp(start, start + KEYS);
        self.first_visible(row).clamp(start, end) - start..end - start
    }

    #[inline(always)]
    fn begin(&self) -> Running {
        let sink = |row: usize| self.sinks.get(row % self.heads).copied();
        let largest = std::array::from_fn(|row| sink(row).unwrap_or(f32::NEG_INFINITY));
        let weigh = |sink: f32| if sink == f32::NEG_INFINITY { 0.0 } else { 1.0 };
        let denominators = largest.map(weigh);
        Running { largest, denominators, sums: vec![0.0; self.rows() * self.values.width] }
    }

    /// Adds the `visible` keys of the run at `start` to a row: products, then weights relative to
    /// the largest product so far (what was summed before is corrected), then weighted values. Keys
    /// that the row does not see are not touched: their values could be infinite.
    #[inline(always)]
    fn add_keys(&self, row: usize, start: usize, visible: Range<usize>, running: &mut Running) {
        let query = &self.queries[row * self.keys.width..][..self.keys.width];
        let mut weights = [f32::NEG_INFINITY; KEYS];
        products(query, self.keys.from(start), visible.clone(), &mut weights);
        weights[visible.clone()].iter_mut().for_each(|logit| *logit *= self.scale);

        let before = running.largest[row];
        let largest = before.max(vector::max(&weights));
        if largest == f32::NEG_INFINITY && !weights.iter().any(|logit| logit.is_nan()) {
            return;
        }
        let correction = vector::exp(before - largest);
        weights.iter_mut().for_each(|logit| *logit = vector::exp(*logit - largest));
        running.largest[row] = largest;
        let denominator = running.denominators[row] * correction;
        running.denominators[row] = denominator + vector::sum(&weights);

        let width = self.values.width;
        let sums = &mut running.sums[row * width..(row + 1) * width];
        if correction != 1.0 {
            sums.iter_mut().for_each(|sum| *sum *= correction);
        }
        add_weighted(&weights, self.values.from(start), visible, sums);
    }

    /// Turns weighted sums into means; a row that saw nothing stays zero.
    #[inline(always)]
    fn divide(&mut self, running: &Running) {
        let width = self.values.width;
        let outputs = self.outputs.iter_mut().flat_map(|output| output.chunks_exact_mut(width));
        for (row, (output, sums)) in outputs.zip(running.sums.chunks_exact(width)).enumerate() {
            let denominator = running.denominators[row];
            for (output, sum) in output.iter_mut().zip(sums) {
                *output = if denominator == 0.0 { 0.0 } else { sum / denominator };
            }
        }
    }
}
