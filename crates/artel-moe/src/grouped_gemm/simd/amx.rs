//! AMX tiles: 16 rows of weights times 16 rows of activations, 32 columns at a time.
//!
//! Weights are the left side, row-major. They pass through a small panel in the first-level cache:
//! a tile read from an address that is not a multiple of 64 takes six times as long, and checkpoints
//! align to 8 bytes at best; the copy also asks for the weights that come next, and FP8 is widened in
//! it. Activations are the right side, prepared once as pairs of columns `[K / 2][16][2]`. 32 weight
//! rows meet two operand tiles at a time: four sums, two tiles of weights and two of activations fill
//! the eight registers. Sums over a block of FP8 are scaled before they are added.
//!
//! Groups of at most `DOT_ROWS` rows take the dot products of `few_rows.rs` instead, which round in
//! another way; with 0 all groups take tiles, and a row's bits do not depend on its group.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::few_rows;
use super::fp8_decode::Decoder;
use super::fp8_quantize::{quantize_block, row_scale};
use super::tiles::{self, Sums, Weights};
use super::transpose::{transpose, write_tokens};
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{self, ActivationScales, BLOCK, Bf16, DenseMatrix, WeightMatrix};
use crate::quant::{Fp8Format, Fp8Panel, Segment};

/// Columns that one tile instruction sums over.
pub(super) const STEP: usize = 32;

/// float32 words of one step of an operand tile.
pub(super) const STEP_WORDS: usize = TILE_ROWS * STEP / 2;

/// Columns of the panel that bfloat16 weights pass through: 16 KiB, beside 16 KiB of activations.
pub(super) const PANEL_COLUMNS: usize = 256;

/// Operand tiles whose sums are kept at a time.
const TILES_MAX: usize = 2 * PAIRS_MAX;

/// Pairs of operand tiles whose sums are kept at a time.
const PAIRS_MAX: usize = 4;

/// Weights of 32 rows, padded with zeros. Filled by the vectors that are copied in.
#[repr(align(64))]
pub(super) struct Panel<const COLUMNS: usize>(pub [[bf16; COLUMNS]; PANEL_ROWS]);

impl<const COLUMNS: usize> Panel<COLUMNS> {
    /// A panel of which the first `rows` rows will be written before they are read.
    #[inline(always)]
    fn for_rows(rows: usize) -> MaybeUninit<Self> {
        if rows == PANEL_ROWS { MaybeUninit::uninit() } else { MaybeUninit::zeroed() }
    }

    #[inline(always)]
    fn weights(panel: &MaybeUninit<Self>) -> Weights {
        Weights { first: panel.as_ptr().cast(), pitch: COLUMNS * size_of::<bf16>() }
    }
}

pub(super) struct Amx<const DOT_ROWS: usize>;

impl<const DOT_ROWS: usize> Amx<DOT_ROWS> {
    const NAME: &'static str = match DOT_ROWS {
        0 => "amx",
        few_rows::FEW_ROWS => "amx, dots to 4 rows",
        _ => panic!("dot products are made for 0 or FEW_ROWS rows"),
    };
}

impl<const DOT_ROWS: usize> Kernel<Bf16> for Amx<DOT_ROWS> {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn tile_words(&self, columns: usize) -> usize {
        columns.div_ceil(STEP) * STEP_WORDS
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        if rows.group_rows() <= DOT_ROWS {
            return few_rows::pack_bf16(rows, tile);
        }
        // SAFETY: this kernel is only handed out where the processor has AVX-512.
        unsafe { pack_bf16(rows, tile) };
    }

    fn multiply(
        &self,
        weights: &DenseMatrix<bf16>,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        assert!(out.len() >= x.rows() * PANEL_ROWS && panel.end <= weights.rows());
        if x.group_rows() <= DOT_ROWS {
            // SAFETY: this kernel is only handed out where the processor has AVX-512 and AMX.
            return unsafe { few_rows::multiply_bf16(weights, panel, x, out) };
        }
        let columns = weights.columns();
        let elements = &weights.elements()[panel.start * columns..panel.end * columns];
        // SAFETY: as above.
        unsafe { multiply_panels(&PlainSource { elements, columns }, x, out) };
    }
}

/// Rows to pairs of columns, one step of 32 columns after the other.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_bf16(rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
    let columns = rows.columns();
    let sources: [&[bf16]; TILE_ROWS] =
        std::array::from_fn(|index| if index < rows.len() { rows.row(index) } else { &[] });
    for (step, out) in tile.as_chunks_mut::<STEP_WORDS>().0.iter_mut().enumerate() {
        let (start, count) = (step * STEP, (columns - step * STEP).min(STEP));
        let mask = u32::MAX >> (STEP - count);
        let mut lines = [_mm512_setzero_si512(); TILE_ROWS];
        for (line, source) in lines.iter_mut().zip(&sources[..rows.len()]) {
            let source = &source[start..start + count];
            // SAFETY: the mask reads `count` numbers.
            *line = unsafe { _mm512_maskz_loadu_epi16(mask, source.as_ptr().cast()) };
        }
        store_step(lines, out);
    }
}

/// Sixteen rows of 32 columns, turned into pairs of columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_step(lines: [__m512i; TILE_ROWS], out: &mut [f32; STEP_WORDS]) {
    for (out, line) in out.as_chunks_mut::<16>().0.iter_mut().zip(transpose(lines)) {
        // SAFETY: sixteen words are a vector.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
    }
}

/// Weights of up to 32 rows that become bfloat16 in the panel.
pub(super) trait PanelSource {
    /// At most [`PANEL_ROWS`].
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    /// Writes up to [`PANEL_COLUMNS`] columns of all rows, to the end of the step that they end in, and
    /// asks for what comes next.
    ///
    /// # Safety
    /// The processor must have AVX-512 and AMX; `to` must be writable.
    unsafe fn write(&self, columns: Range<usize>, to: *mut Panel<PANEL_COLUMNS>);
}

/// Plain numbers.
struct PlainSource<'a> {
    elements: &'a [bf16],
    columns: usize,
}

impl PanelSource for PlainSource<'_> {
    fn rows(&self) -> usize {
        self.elements.len() / self.columns.max(1)
    }

    fn columns(&self) -> usize {
        self.columns
    }

    #[inline(always)]
    unsafe fn write(&self, columns: Range<usize>, to: *mut Panel<PANEL_COLUMNS>) {
        // SAFETY: the caller's.
        unsafe { copy_panel(self.elements, self.columns, columns, to) };
    }
}

/// One panel times all operand tiles.
///
/// # Safety
/// The processor must have AVX-512 and AMX.
pub(super) unsafe fn multiply_panels(source: &impl PanelSource, x: Operand<'_>, out: &mut [f32]) {
    assert!(out.len() >= x.rows() * PANEL_ROWS && source.rows() <= PANEL_ROWS);
    for first in (0..x.tiles()).step_by(TILES_MAX) {
        let x = x.slice(first..(first + TILES_MAX).min(x.tiles()));
        let out = &mut out[first * TILE_ROWS * PANEL_ROWS..];
        // SAFETY: the caller's.
        unsafe {
            match x.tiles() {
                1 | 2 => multiply_bf16::<1>(source, x, out),
                _ => multiply_bf16::<PAIRS_MAX>(source, x, out),
            }
        }
    }
}

/// One panel times up to `2 * PAIRS` operand tiles.
///
/// # Safety
/// The processor must have AVX-512 and AMX.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn multiply_bf16<const PAIRS: usize>(
    source: &impl PanelSource,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let columns = source.columns();
    let mut totals = [const { Sums::ZERO }; PAIRS];
    let mut copy = Panel::<PANEL_COLUMNS>::for_rows(source.rows());
    // SAFETY: the caller's. The panel holds whole steps of all 32 rows, and operand tiles are
    // padded to whole steps.
    unsafe {
        tiles::configure();
        tiles::zero();
        for first in (0..columns).step_by(PANEL_COLUMNS) {
            let range = first..(first + PANEL_COLUMNS).min(columns);
            source.write(range.clone(), copy.as_mut_ptr());
            for (pair, totals) in totals.iter_mut().enumerate().take(x.tiles().div_ceil(2)) {
                let x = x.slice(2 * pair..(2 * pair + 2).min(x.tiles()));
                // A single pair keeps its sums in the tiles from panel to panel.
                if PAIRS > 1 {
                    tiles::load(totals);
                }
                add(Panel::weights(&copy), x, first / STEP, range.len().div_ceil(STEP));
                if PAIRS > 1 || range.end == columns {
                    tiles::store(totals);
                }
            }
        }
        tiles::release();
        write_tiles(&totals, x, out);
    }
}

/// Copies columns `range` of all rows and asks for the columns that are copied next.
///
/// # Safety
/// The processor must have AVX-512; `copy` must be writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn copy_panel(
    elements: &[bf16],
    columns: usize,
    range: Range<usize>,
    copy: *mut Panel<PANEL_COLUMNS>,
) {
    // After the last columns of these rows come the first ones of the rows behind them.
    let next = if range.end < columns {
        PANEL_COLUMNS as isize
    } else {
        (PANEL_ROWS * columns) as isize - range.start as isize
    };
    let (whole, rest) = (range.len() / STEP, range.len() % STEP);
    for (index, row) in elements.chunks_exact(columns).enumerate() {
        let row = &row[range.clone()];
        // SAFETY: the caller's; whole steps and then `rest` numbers are inside the row and fit the
        // panel, which is padded to whole steps. Prefetching never faults.
        unsafe {
            let mut from = row.as_ptr();
            let mut to: *mut bf16 = (&raw mut (*copy).0[index]).cast();
            for _ in 0..whole {
                _mm_prefetch::<_MM_HINT_T1>(from.wrapping_offset(next).cast());
                _mm512_store_si512(to.cast(), _mm512_loadu_si512(from.cast()));
                (from, to) = (from.add(STEP), to.add(STEP));
            }
            if rest > 0 {
                let line = _mm512_maskz_loadu_epi16(u32::MAX >> (STEP - rest), from.cast());
                _mm512_store_si512(to.cast(), line);
            }
        }
    }
}

/// Sums of all tiles to `out` `[token][PANEL_ROWS]`.
///
/// # Safety
/// The processor must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_tiles(totals: &[Sums], x: Operand<'_>, out: &mut [f32]) {
    for tile in 0..x.tiles() {
        let Sums(totals) = &totals[tile / 2];
        let out = &mut out[tile * TILE_ROWS * PANEL_ROWS..];
        // SAFETY: the caller's.
        unsafe {
            write_tokens([&totals[tile % 2], &totals[2 + tile % 2]], x.tile_rows(tile), out);
        }
    }
}

/// Adds `steps` steps from step `first` of the operand.
///
/// # Safety
/// As for [`tiles::add_two`].
#[inline(always)]
unsafe fn add(weights: Weights, x: Operand<'_>, first: usize, steps: usize) {
    let start = first * STEP_WORDS;
    assert!(x.tile(0).len() >= start + steps * STEP_WORDS);
    // SAFETY: the caller's, and the operand tiles are long enough (checked above).
    unsafe {
        let tile = x.tile(0).as_ptr().add(start);
        if x.tiles() == 2 {
            tiles::add_two(weights, tile, x.tile(1).as_ptr().add(start), steps);
        } else {
            tiles::add_one(weights, tile, steps);
        }
    }
}

/// Operand tile: steps of whole blocks, then one scale per block and row, `[blocks][16]`.
impl<F: Fp8Format, const DOT_ROWS: usize> Kernel<F> for Amx<DOT_ROWS> {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn tile_words(&self, columns: usize) -> usize {
        columns.div_ceil(BLOCK) * (BLOCK / STEP * STEP_WORDS + TILE_ROWS)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        // SAFETY: this kernel is only handed out where the processor has AVX-512.
        unsafe { pack_fp8::<DOT_ROWS>(rows, F::ACTIVATION_SCALES, tile) };
    }

    fn multiply(&self, weights: &F::Matrix, panel: Range<usize>, x: Operand<'_>, out: &mut [f32]) {
        assert!(out.len() >= x.rows() * PANEL_ROWS && panel.end <= weights.rows());
        let weights = Fp8Panel::new(weights, panel);
        if x.group_rows() <= DOT_ROWS {
            // SAFETY: this kernel is only handed out where the processor has AVX-512 and AMX.
            unsafe { few_rows::multiply_fp8(weights, x, out) };
            return weights.scale_rows(out, PANEL_ROWS);
        }
        for first in (0..x.tiles()).step_by(TILES_MAX) {
            let x = x.slice(first..(first + TILES_MAX).min(x.tiles()));
            let out = &mut out[first * TILE_ROWS * PANEL_ROWS..];
            // SAFETY: as above.
            unsafe {
                match x.tiles() {
                    1 | 2 => multiply_fp8::<1>(weights, x, out),
                    _ => multiply_fp8::<PAIRS_MAX>(weights, x, out),
                }
            }
        }
        weights.scale_rows(out, PANEL_ROWS);
    }
}

/// Quantised rows to pairs of columns, one block of 128 columns after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack_fp8<const DOT_ROWS: usize>(
    rows: GatheredRows<'_, bf16>,
    activation_scales: ActivationScales,
    tile: &mut [f32],
) {
    let blocks = rows.columns().div_ceil(BLOCK);
    let (words, scales) = tile.split_at_mut(blocks * BLOCK / STEP * STEP_WORDS);
    if rows.group_rows() <= DOT_ROWS {
        return few_rows::pack_fp8(rows, activation_scales, words, scales);
    }
    let mut row_scales = [None; TILE_ROWS];
    for (index, scale) in row_scales.iter_mut().enumerate().take(rows.len()) {
        // SAFETY: this function's features.
        let dynamic = || unsafe { row_scale(rows.row(index)) };
        *scale = quant::row_scale(activation_scales, rows.input_scale(), dynamic);
    }
    let words = words.as_chunks_mut::<{ BLOCK / STEP * STEP_WORDS }>().0;
    let mut lines = [[bf16::ZERO; BLOCK]; TILE_ROWS];
    for (block, scales) in scales.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
        let columns = block * BLOCK..((block + 1) * BLOCK).min(rows.columns());
        *scales = [0.0; TILE_ROWS];
        for (index, scale) in scales.iter_mut().enumerate().take(rows.len()) {
            let group = &rows.row(index)[columns.clone()];
            // SAFETY: this function's features.
            *scale = unsafe { quantize_block(group, row_scales[index], &mut lines[index]) };
        }
        for (step, out) in words[block].as_chunks_mut().0.iter_mut().enumerate() {
            let mut vectors = [_mm512_setzero_si512(); TILE_ROWS];
            for (vector, line) in vectors.iter_mut().zip(&lines) {
                // SAFETY: a line holds four steps of a vector each.
                *vector = unsafe { _mm512_loadu_si512(line.as_ptr().add(step * STEP).cast()) };
            }
            store_step(vectors, out);
        }
    }
}

/// One panel times up to `2 * PAIRS` operand tiles.
///
/// # Safety
/// The processor must have AVX-512 with VBMI, and AMX.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn multiply_fp8<const PAIRS: usize>(panel: Fp8Panel<'_>, x: Operand<'_>, out: &mut [f32]) {
    let mut totals = [const { Sums::ZERO }; PAIRS];
    // A tile that was stored cannot be read at once: the sums before the last are scaled meanwhile.
    let mut sums = [const { Sums::ZERO }; 2];
    let mut widened = Panel::<BLOCK>::for_rows(panel.rows);
    let pairs = x.tiles().div_ceil(2);
    let segments = panel.segments.len();
    // SAFETY: the caller's. The panel holds a block's four steps of all 32 rows, and operand
    // tiles are padded to whole blocks.
    unsafe {
        let decoder = Decoder::new();
        tiles::configure();
        for turn in 0..=segments * pairs {
            let (index, pair) = (turn / pairs, turn % pairs);
            if index < segments {
                let segment = panel.segments.get(index);
                if pair == 0 {
                    widen_panel(decoder, &panel, &segment, widened.as_mut_ptr());
                }
                tiles::zero();
                let x = x.slice(2 * pair..(2 * pair + 2).min(x.tiles()));
                add(Panel::weights(&widened), x, segment.group * BLOCK / STEP, BLOCK / STEP);
                tiles::store(&mut sums[turn % 2]);
            }
            if let Some(turn) = turn.checked_sub(1) {
                let (segment, pair) = (panel.segments.get(turn / pairs), turn % pairs);
                let x = x.slice(2 * pair..(2 * pair + 2).min(x.tiles()));
                let scale = (panel.scale(&segment), segment.group);
                scale_and_add(&sums[turn % 2], scale, x, &mut totals[pair]);
            }
        }
        tiles::release();
        write_tiles(&totals, x, out);
    }
}

/// Widens one segment of all rows and asks for the codes that are widened next.
///
/// # Safety
/// The processor must have AVX-512 with VBMI; `widened` must be writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn widen_panel(
    decoder: Decoder,
    panel: &Fp8Panel<'_>,
    segment: &Segment,
    widened: *mut Panel<BLOCK>,
) {
    let range = segment.columns.clone();
    // After the last codes of these rows come the first ones of the rows behind them.
    let next = if range.end < panel.columns {
        range.len() as isize
    } else {
        (PANEL_ROWS * panel.columns) as isize - range.start as isize
    };
    for (index, codes) in panel.codes.chunks_exact(panel.columns).enumerate() {
        let codes = &codes[range.clone()];
        let ahead = codes.as_ptr().wrapping_offset(next);
        // SAFETY: the caller's; prefetching never faults.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
            let out = (&raw mut (*widened).0[index]).cast();
            decoder.widen(codes, segment.in_group().start, out);
        }
    }
}

/// `totals[row][token] += sums[row][token] * (scale * scales[block][token])` for the tiles of a
/// pair.
#[inline]
#[target_feature(enable = "avx512f")]
fn scale_and_add(sums: &Sums, (scale, block): (f32, usize), x: Operand<'_>, totals: &mut Sums) {
    for tile in 0..x.tiles() {
        let words = x.tile(tile);
        let blocks = words.len() / (BLOCK / STEP * STEP_WORDS + TILE_ROWS);
        let scales = &words[blocks * BLOCK / STEP * STEP_WORDS..][block * TILE_ROWS..][..TILE_ROWS];
        for half in [0, 2] {
            let (sums, totals) = (&sums.0[half + tile], &mut totals.0[half + tile]);
            // SAFETY: sixteen vectors each, and one of scales.
            unsafe {
                let scales = _mm512_mul_ps(_mm512_loadu_ps(scales.as_ptr()), _mm512_set1_ps(scale));
                for row in 0..16 {
                    let total = totals.as_mut_ptr().add(16 * row);
                    let sum = _mm512_load_ps(sums.as_ptr().add(16 * row));
                    _mm512_store_ps(total, _mm512_fmadd_ps(sum, scales, _mm512_load_ps(total)));
                }
            }
        }
    }
}
