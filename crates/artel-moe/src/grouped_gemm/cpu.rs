use artel_device::cpu::{CpuFeatures, Vectorized};
use artel_device::memory::AlignedBuffer;
use artel_device::tiles::{TileGrid, TileIndex, TileMut};
use rayon::prelude::*;

use super::schedule::Schedule;
use super::{GatheredRows, GemmFormat, GemmScratch, GroupedGemm, Kernel};
use super::{Operand, PANEL_ROWS, RowWeights, TILE_ROWS};
use crate::MoeError;
use crate::quant::WeightMatrix;
use crate::quant::{AnyMatrix, Element, each_format};

/// Operand tiles that meet a panel at a time: their sums stay in the first-level cache.
const TILES_PER_STEP: usize = 8;

/// Multiply-adds that one thread does before it is worth waking another.
const SERIAL_MULTIPLY_ADDS: usize = 1 << 16;

/// Multiplies every pair's row with its expert's matrix; `out` is `[T * K, N]`.
///
/// # Errors
/// [`MoeError`] when shapes do not belong together or a block names an expert that is not there.
pub fn grouped_gemm<F: GemmFormat>(
    features: CpuFeatures,
    gemm: GroupedGemm<'_, F>,
    out: &mut [F::Activation],
    scratch: &mut GemmScratch,
) -> Result<(), MoeError> {
    let pairs = gemm.assignment.num_pairs;
    let (rows, columns) = (gemm.weights.rows(), gemm.weights.columns());
    MoeError::check_shape("grouped GEMM output", pairs.saturating_mul(rows), out.len())?;
    gemm.row_weights.check(pairs)?;
    let x_rows = pairs.checked_div(gemm.pairs_per_row).unwrap_or(0);
    MoeError::check_shape("grouped GEMM input", x_rows.saturating_mul(columns), gemm.rows.len())?;
    scratch.schedule.group(gemm.assignment, gemm.weights.experts())?;
    scratch.schedule.cut_into_panels(gemm.weights.parts());
    let kernel = F::kernel(features);
    let input_scale = gemm.weights.input_scale();
    let x = Source { rows: gemm.rows, columns, pairs_per_row: gemm.pairs_per_row, input_scale };
    pack(kernel, x, &scratch.schedule, &mut scratch.operand);
    let weights = |expert: usize| ExpertPart {
        parts: gemm.weights.matrix(expert).parts(),
        bias: gemm.weights.bias(expert),
        row_weights: gemm.row_weights,
    };
    multiply::<F, _>(features, columns, weights, out, scratch);
    Ok(())
}

/// `out[t, n] = x[t] . weight[n]`: `x` `[T, K]`, `weight` `[N, K]`, `out` `[T, N]`, float32 at the
/// edges and the precision of the weight's format inside. A grouped GEMM with one group.
/// `x` may be in any precision.
///
/// # Errors
/// [`MoeError::Shape`] when `x` and `out` do not have the same number of rows.
pub fn dense<X: Element>(
    features: CpuFeatures,
    x: &[X],
    weight: &AnyMatrix,
    out: &mut [f32],
    scratch: &mut GemmScratch,
) -> Result<(), MoeError> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let tokens = out.len().checked_div(rows).unwrap_or(0);
    MoeError::check_shape("linear output", tokens * rows, out.len())?;
    MoeError::check_shape("linear input", tokens * columns, x.len())?;
    each_format!(AnyMatrix, weight, |matrix: F| {
        dense_as::<F, X>(features, x, matrix, out, scratch);
    });
    Ok(())
}

fn dense_as<F: GemmFormat, X: Element>(
    features: CpuFeatures,
    x: &[X],
    matrix: &F::Matrix,
    out: &mut [f32],
    scratch: &mut GemmScratch,
) {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let kernel = F::kernel(features);
    let tokens = out.len().checked_div(rows).unwrap_or(0);
    scratch.schedule.group_all(tokens);
    scratch.schedule.cut_into_panels([(rows, matrix.scale_grid())]);
    let narrowed = scratch.narrowed.first_mut::<F::Activation>(x.len());
    features.vectorize(Narrow { x, out: narrowed });
    let input_scale = matrix.input_scale();
    let x = Source { rows: &*narrowed, columns, pairs_per_row: 1, input_scale };
    pack(kernel, x, &scratch.schedule, &mut scratch.operand);
    let parts = std::slice::from_ref(matrix);
    let weights = |_| ExpertPart { parts, bias: None, row_weights: RowWeights::One };
    multiply::<F, _>(features, columns, weights, out, scratch);
}

/// The matrix and the epilogue of one group.
struct ExpertPart<'a, M> {
    parts: &'a [M],
    bias: Option<&'a [f32]>,
    row_weights: RowWeights<'a>,
}

#[derive(Clone, Copy)]
struct Source<'a, A> {
    rows: &'a [A],
    columns: usize,
    pairs_per_row: usize,
    input_scale: Option<f32>,
}

/// Prepares the rows of all groups.
fn pack<F: GemmFormat>(
    kernel: &dyn Kernel<F>,
    x: Source<'_, F::Activation>,
    schedule: &Schedule,
    operand: &mut AlignedBuffer,
) {
    let tile_words = kernel.tile_words(x.columns);
    let operand = operand.first_mut::<f32>(schedule.tile_pairs.len() * tile_words);
    if tile_words == 0 {
        return;
    }
    let tiles_per_thread = (SERIAL_MULTIPLY_ADDS / 4 / tile_words).max(1);
    operand
        .par_chunks_exact_mut(tile_words)
        .zip(&schedule.tile_pairs)
        .with_min_len(tiles_per_thread)
        .for_each(|(tile, &(ref pairs, group_rows))| {
            let pairs = &schedule.pairs[pairs.clone()];
            let Source { rows: source, columns, pairs_per_row, input_scale } = x;
            let rows =
                GatheredRows { source, columns, pairs, pairs_per_row, group_rows, input_scale };
            kernel.pack(rows, tile);
        });
}

/// Every group times every panel.
fn multiply<'a, F: GemmFormat, O: Element>(
    features: CpuFeatures,
    columns: usize,
    weights: impl Fn(usize) -> ExpertPart<'a, F::Matrix> + Sync,
    out: &mut [O],
    scratch: &mut GemmScratch,
) {
    let schedule = &scratch.schedule;
    if schedule.pairs.is_empty() || schedule.panel_parts.is_empty() {
        return;
    }
    let kernel = F::kernel(features);
    let tile_words = kernel.tile_words(columns);
    let operand = scratch.operand.first::<f32>(schedule.tile_pairs.len() * tile_words);
    let grid = TileGrid {
        row_ids: &schedule.pairs,
        group_ends: &schedule.group_ends,
        column_bounds: &schedule.panel_bounds,
    };
    let rows_per_group = schedule.pairs.len().div_ceil(schedule.group_ends.len());
    let grain = SERIAL_MULTIPLY_ADDS / (rows_per_group * PANEL_ROWS * columns.max(1));
    scratch.tiles.run(out, grid, grain, |index, mut tile| {
        let Some(expert) = schedule.experts[index.group] else {
            (0..tile.rows()).for_each(|row| tile.row(row).fill(O::from_f32(0.0)));
            return;
        };
        let tiles = schedule.first_tiles[index.group]..schedule.first_tiles[index.group + 1];
        let words = tiles.start * tile_words..tiles.end * tile_words;
        let x = Operand::new(&operand[words], tile_words, index.rows.len());
        let pairs = &schedule.pairs[index.rows.clone()];
        let place = schedule.panel_parts[index.panel];
        multiply_tile::<F, O>(features, &weights(expert), (x, pairs), (index, place), &mut tile);
    });
}

/// One panel of one group, a few operand tiles at a time.
fn multiply_tile<F: GemmFormat, O: Element>(
    features: CpuFeatures,
    weights: &ExpertPart<'_, F::Matrix>,
    (x, pairs): (Operand<'_>, &[u32]),
    place: (TileIndex, (usize, usize)),
    tile: &mut TileMut<'_, O>,
) {
    if x.tiles() == 1 {
        let mut sums = Sums::<1>::ZERO;
        multiply_tiles::<F, O>(features, weights, (x, pairs, place, &mut sums.0), tile);
    } else {
        let mut sums = Sums::<TILES_PER_STEP>::ZERO;
        multiply_tiles::<F, O>(features, weights, (x, pairs, place, &mut sums.0), tile);
    }
}

fn multiply_tiles<F: GemmFormat, O: Element>(
    features: CpuFeatures,
    weights: &ExpertPart<'_, F::Matrix>,
    (x, pairs, (index, (part, first_row)), sums): Step<'_>,
    tile: &mut TileMut<'_, O>,
) {
    let panel = first_row..first_row + index.columns.len();
    let bias = weights.bias.map(|bias| &bias[index.columns.clone()]);
    let tiles_max = sums.len();
    for first_tile in (0..x.tiles()).step_by(tiles_max) {
        let x = x.slice(first_tile..(first_tile + tiles_max).min(x.tiles()));
        let sums = &mut sums.as_flattened_mut()[..x.rows() * PANEL_ROWS];
        F::kernel(features).multiply(&weights.parts[part], panel.clone(), x, sums);
        let first_row = first_tile * TILE_ROWS;
        let pairs = &pairs[first_row..];
        let row_weights = weights.row_weights;
        features.vectorize(Finish { sums, bias, row_weights, pairs, first_row, tile });
    }
}

/// Operand, its pairs, where the panel is, and memory for sums.
type Step<'a> =
    (Operand<'a>, &'a [u32], (TileIndex, (usize, usize)), &'a mut [[f32; TILE_ROWS * PANEL_ROWS]]);

/// Sums of some operand tiles with one panel.
#[repr(align(64))]
struct Sums<const TILES: usize>([[f32; TILE_ROWS * PANEL_ROWS]; TILES]);

impl<const TILES: usize> Sums<TILES> {
    const ZERO: Self = Self([[0.0; TILE_ROWS * PANEL_ROWS]; TILES]);
}

/// Bias, router weight, cast; for every row of sums.
struct Finish<'a, 'b, O> {
    sums: &'a [f32],
    bias: Option<&'a [f32]>,
    row_weights: RowWeights<'a>,
    pairs: &'a [u32],
    first_row: usize,
    tile: &'a mut TileMut<'b, O>,
}

impl<O: Element> Vectorized for Finish<'_, '_, O> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (row, sums) in self.sums.as_chunks::<PANEL_ROWS>().0.iter().enumerate() {
            let weight = self.row_weights.of(self.pairs[row] as usize);
            let out = self.tile.row(self.first_row + row);
            match self.bias {
                None => {
                    for (out, &sum) in out.iter_mut().zip(sums) {
                        *out = O::from_f32(sum * weight);
                    }
                }
                Some(bias) => {
                    for ((out, &sum), &bias) in out.iter_mut().zip(sums).zip(bias) {
                        *out = O::from_f32((sum + bias) * weight);
                    }
                }
            }
        }
    }
}

/// Rounds to the precision in which the product takes its input.
struct Narrow<'a, X, A> {
    x: &'a [X],
    out: &'a mut [A],
}

impl<X: Element, A: Element> Vectorized for Narrow<'_, X, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = A::from_f32(x.to_f32());
        }
    }
}
