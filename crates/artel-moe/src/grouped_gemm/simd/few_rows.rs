//! Few activation rows: dot products with bfloat16 pairs, no tiles.
//!
//! With up to [`FEW_ROWS`] rows an expert, weights go from memory through registers once and the
//! processor only has to keep up with memory. Activations stay row-major; four weight rows are read
//! side by side, and the four behind them are asked for in advance.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::fp8_decode::Decoder;
use super::fp8_quantize::{quantize_block, row_scale};
use crate::grouped_gemm::{GatheredRows, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{self, ActivationScales, BLOCK, DenseMatrix, Fp8Panel, Segment, WeightMatrix};

/// Groups with more rows are faster on tiles: a dot product takes eight times a tile's time per
/// row, and from here on more than memory does.
pub(super) const FEW_ROWS: usize = 4;

/// Columns that one instruction takes.
const STEP: usize = 32;

/// Rows as they are, padded with zeros to whole steps.
pub(super) fn pack_bf16(rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
    let pitch = rows.columns().next_multiple_of(STEP);
    let words = bytemuck::cast_slice_mut::<f32, bf16>(tile);
    for (index, out) in words.chunks_exact_mut(pitch).take(rows.len()).enumerate() {
        let (values, padding) = out.split_at_mut(rows.columns());
        values.copy_from_slice(rows.row(index));
        padding.fill(bf16::ZERO);
    }
}

/// Quantised rows as they are, padded with zeros to whole blocks, and their scales `[blocks][16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pack_fp8(
    rows: GatheredRows<'_, bf16>,
    activation_scales: ActivationScales,
    words: &mut [f32],
    scales: &mut [f32],
) {
    let pitch = rows.columns().next_multiple_of(BLOCK);
    let words = bytemuck::cast_slice_mut::<f32, bf16>(words);
    for (index, out) in words.chunks_exact_mut(pitch).take(rows.len()).enumerate() {
        let row = rows.row(index);
        // SAFETY: this function's features.
        let dynamic = || unsafe { row_scale(row) };
        let row_scale = quant::row_scale(activation_scales, rows.input_scale(), dynamic);
        let groups = out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(row.chunks(BLOCK));
        for (block, (out, group)) in groups.enumerate() {
            // SAFETY: as above.
            scales[block * TILE_ROWS + index] = unsafe { quantize_block(group, row_scale, out) };
        }
    }
}

/// One panel times 1 to [`FEW_ROWS`] rows.
///
/// # Safety
/// The processor must have AVX-512 with bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply_bf16(
    weights: &DenseMatrix<bf16>,
    panel: Range<usize>,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let columns = weights.columns();
    let weights = &weights.elements()[panel.start * columns..panel.end * columns];
    let x_rows: &[bf16] = bytemuck::cast_slice(x.tile(0));
    assert!(x.rows() <= FEW_ROWS && x_rows.len() >= x.rows() * columns.next_multiple_of(STEP));
    let mut first = 0;
    while first < panel.len() {
        let step = if first + 4 <= panel.len() { 4 } else { 1 };
        let weights = &weights[first * columns..(first + step) * columns];
        let out = &mut out[first..];
        // SAFETY: the caller's; `step` weight rows and all rows of `x` are there (checked above).
        unsafe {
            match (step, x.rows()) {
                (4, 1) => dots::<4, 1>(weights, columns, x_rows, out),
                (4, 2) => dots::<4, 2>(weights, columns, x_rows, out),
                (4, 3) => dots::<4, 3>(weights, columns, x_rows, out),
                (4, _) => dots::<4, 4>(weights, columns, x_rows, out),
                (_, 1) => dots::<1, 1>(weights, columns, x_rows, out),
                (_, 2) => dots::<1, 2>(weights, columns, x_rows, out),
                (_, 3) => dots::<1, 3>(weights, columns, x_rows, out),
                (..) => dots::<1, 4>(weights, columns, x_rows, out),
            }
        }
        first += step;
    }
}

/// `R` weight rows times `C` activation rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// As for [`multiply_bf16`]; `weights` has `R` rows of `columns`, `x` `C` padded rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn dots<const R: usize, const C: usize>(
    weights: &[bf16],
    columns: usize,
    x: &[bf16],
    out: &mut [f32],
) {
    let pitch = columns.next_multiple_of(STEP);
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    let last_mask = u32::MAX >> (pitch - columns);
    for start in (0..columns).step_by(STEP) {
        let mask = if start + STEP <= columns { u32::MAX } else { last_mask };
        // SAFETY: the caller's; the mask keeps weights inside their row, rows of `x` are padded.
        // Prefetching never faults.
        unsafe {
            let x: [__m512bh; C] = std::array::from_fn(|c| {
                as_bf16(_mm512_loadu_si512(x.as_ptr().add(c * pitch + start).cast()))
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let from = weights.as_ptr().add(r * columns + start);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4 * columns).cast());
                let weight = as_bf16(_mm512_maskz_loadu_epi16(mask, from.cast()));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm512_dpbf16_ps(*sum, weight, x);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, &sum) in sums.iter().enumerate() {
            out[c * PANEL_ROWS + r] = _mm512_reduce_add_ps(sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn as_bf16(vector: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes in which every pattern is a value.
    unsafe { std::mem::transmute(vector) }
}

/// One panel times 1 to [`FEW_ROWS`] rows.
///
/// # Safety
/// The processor must have AVX-512 with VBMI and bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) unsafe fn multiply_fp8(panel: Fp8Panel<'_>, x: Operand<'_>, out: &mut [f32]) {
    let columns = panel.columns;
    let groups = columns.div_ceil(BLOCK);
    let (words, x_scales) = x.tile(0).split_at(TILE_ROWS * groups * BLOCK / 2);
    let x_rows: &[bf16] = bytemuck::cast_slice(words);
    assert!(x.rows() <= FEW_ROWS && x_scales.len() >= groups * TILE_ROWS);
    // SAFETY: the caller's.
    let decoder = unsafe { Decoder::new() };
    let mut first = 0;
    while first < panel.rows {
        let step = if first + 4 <= panel.rows { 4 } else { 1 };
        let codes = &panel.codes[first * columns..(first + step) * columns];
        let rows = Fp8Rows { decoder, codes, panel: &panel, x: x_rows, x_scales };
        let out = &mut out[first..];
        // SAFETY: the caller's; `step` weight rows and all rows of `x` are there (checked above).
        unsafe {
            match (step, x.rows()) {
                (4, 1) => dots_fp8::<4, 1>(rows, out),
                (4, 2) => dots_fp8::<4, 2>(rows, out),
                (4, 3) => dots_fp8::<4, 3>(rows, out),
                (4, _) => dots_fp8::<4, 4>(rows, out),
                (_, 1) => dots_fp8::<1, 1>(rows, out),
                (_, 2) => dots_fp8::<1, 2>(rows, out),
                (_, 3) => dots_fp8::<1, 3>(rows, out),
                (..) => dots_fp8::<1, 4>(rows, out),
            }
        }
        first += step;
    }
}

#[derive(Clone, Copy)]
struct Fp8Rows<'a> {
    decoder: Decoder,
    codes: &'a [u8],
    panel: &'a Fp8Panel<'a>,
    x: &'a [bf16],
    x_scales: &'a [f32],
}

/// `R` weight rows times `C` activation rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// As for [`multiply_fp8`]; `codes` has `R` rows of the panel's columns, `x` `C` rows of whole
/// blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn dots_fp8<const R: usize, const C: usize>(rows: Fp8Rows<'_>, out: &mut [f32]) {
    let Fp8Rows { decoder, codes, panel, x, x_scales } = rows;
    let columns = panel.columns;
    let pitch = columns.next_multiple_of(BLOCK);
    let mut totals = [[_mm512_setzero_ps(); C]; R];
    for segment in panel.segments.iter() {
        let (group, scale) = (segment.group, panel.scale(&segment));
        let masks = half_masks(&segment);
        for (r, totals) in totals.iter_mut().enumerate() {
            let mut sums = [_mm512_setzero_ps(); C];
            for (half, mask) in masks.into_iter().enumerate() {
                let start = group * BLOCK + 64 * half;
                // SAFETY: the caller's; the mask keeps codes inside their row, rows of `x` are
                // padded. Prefetching never faults.
                unsafe {
                    let from = codes.as_ptr().wrapping_add(r * columns + start);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4 * columns).cast());
                    let weights = decoder.widen_64(_mm512_maskz_loadu_epi8(mask, from.cast()));
                    for (quarter, weights) in weights.into_iter().enumerate() {
                        for (c, sum) in sums.iter_mut().enumerate() {
                            let x = x.as_ptr().add(c * pitch + start + 32 * quarter);
                            let x = as_bf16(_mm512_loadu_si512(x.cast()));
                            *sum = _mm512_dpbf16_ps(*sum, as_bf16(weights), x);
                        }
                    }
                }
            }
            for (c, (total, sum)) in totals.iter_mut().zip(sums).enumerate() {
                let scale = _mm512_set1_ps(scale * x_scales[group * TILE_ROWS + c]);
                *total = _mm512_fmadd_ps(sum, scale, *total);
            }
        }
    }
    for (r, totals) in totals.iter().enumerate() {
        for (c, &total) in totals.iter().enumerate() {
            out[c * PANEL_ROWS + r] = _mm512_reduce_add_ps(total);
        }
    }
}

/// Which codes of the two halves of a group a segment has.
#[inline(always)]
fn half_masks(segment: &Segment) -> [u64; 2] {
    if segment.columns.len() == BLOCK { [u64::MAX; 2] } else { partial_masks(segment) }
}

/// Out of the way of the whole groups, of which there are many more.
#[cold]
#[inline(never)]
fn partial_masks(segment: &Segment) -> [u64; 2] {
    let places = segment.in_group();
    let below = |place: usize| if place == BLOCK { u128::MAX } else { (1 << place) - 1 };
    let mask = below(places.end) & !below(places.start);
    [mask as u64, (mask >> 64) as u64]
}
