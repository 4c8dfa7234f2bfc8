//! Grouped GEMM: each expert multiplies its own rows. Used twice, for `w13` and for `w2`.
//!
//! `out[p, n] = (sum over k of x[p / pairs_per_row, k] * w[e(p), n, k] + bias[e(p), n]) * weight[p]`
//! for every pair `p` of the assignment, `e(p)` the expert of its block: summed in float32, cast
//! once. Pairs in a block of expert -1 become rows of zeros; pairs in no block are left alone.
//!
//! Activations enter in the format's precision: float32, float16 and bfloat16 as they are, FP8 as
//! bfloat16 that is quantised on the fly, one scale per row and 128 columns.
//!
//! Example: `T = 2`, `K = 2`, ids `[[1, 0], [1, 1]]`. The pairs of expert 1 are 0, 2 and 3, so with
//! `pairs_per_row = 2` its matrix meets token 0 once and token 1 twice; rows 0, 2 and 3 are written.

mod cpu;
pub mod decode;
mod operand;
pub mod prefill;
pub mod reference;
mod schedule;
mod simd;
#[cfg(test)]
mod tests;
pub mod words;

use artel_device::memory::AlignedBuffer;
use artel_device::tiles::Tiles;
pub use cpu::{dense, grouped_gemm};
pub use operand::{GatheredRows, Operand, TILE_ROWS};
use schedule::Schedule;

use crate::assignment::Assignment;
pub use crate::combine::RowWeights;
use crate::quant::NumberFormat;
use crate::weights::ExpertMatrices;
use artel_device::cpu::CpuFeatures;
use std::ops::Range;

/// Weight rows that a kernel multiplies at a time: a task's share of one expert.
pub const PANEL_ROWS: usize = 32;

/// Columns of FP8 that GPU kernels of sorted batches sum in the first product before the sum goes on in
/// float32. The matrix units align products to the largest and drop what lies some 13 bits below:
/// over 128 columns that moves 1.2 % of the codes to which the activation is quantised, over 64
/// columns 0.7 %. The direct form in tiles, which would lose 5 to 15 % of its speed,
/// sums 128; that of one launch ([`decode::streamed`]) has exact sums.
const EXACT_DEPTH: usize = 64;

/// What is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct GroupedGemm<'a, F: NumberFormat> {
    /// Activations `[rows, K]`.
    pub rows: &'a [F::Activation],
    /// Neighbouring pairs that share a row: top-k for the first product, 1 for the second.
    pub pairs_per_row: usize,
    /// One matrix per expert.
    pub weights: &'a ExpertMatrices<F>,
    /// Which pairs each expert computes.
    pub assignment: &'a Assignment,
    /// What each pair's output is multiplied by before the cast.
    pub row_weights: RowWeights<'a>,
}

/// Memory that one grouped GEMM needs, kept for the next.
#[derive(Debug, Default)]
pub struct GemmScratch {
    schedule: Schedule,
    narrowed: AlignedBuffer,
    operand: AlignedBuffer,
    tiles: Tiles,
}

/// A format that can be multiplied: it has a kernel for every instruction set.
pub trait GemmFormat: NumberFormat {
    /// The best kernel of an instruction set; where rows must not depend on each other, the best
    /// that is the same for any number of rows.
    fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self>;
}

/// A matrix product of one format on one instruction set.
pub trait Kernel<F: NumberFormat>: Send + Sync {
    /// Instruction set and units, for the plan.
    fn name(&self) -> &'static str;

    /// float32 words that [`TILE_ROWS`] prepared rows of `columns` numbers take.
    fn tile_words(&self, columns: usize) -> usize;

    /// Prepares at most [`TILE_ROWS`] rows of one group. Every word that `multiply` reads is written.
    fn pack(&self, rows: GatheredRows<'_, F::Activation>, tile: &mut [f32]);

    /// `out[row * PANEL_ROWS + i] = x[row] . weights[panel.start + i]` for every row of `x` and
    /// every row of the panel, which has at most [`PANEL_ROWS`].
    fn multiply(&self, weights: &F::Matrix, panel: Range<usize>, x: Operand<'_>, out: &mut [f32]);
}
