//! Few activation rows: dot products with bfloat16 pairs, no tiles.
//!
//! With up to [`FEW_ROWS`] rows an expert, weights go from memory through registers once and the
//! processor only has to keep up with memory. Activations stay row-major; four weight rows are read
//! side by side, and the four behind them are asked for in advance.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::fp8_decode::Decoder;
use super::fp8_quantize::quantize_block;
use crate::grouped_gemm::{GatheredRows, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{BLOCK, DenseMatrix, Fp8BlockMatrix, WeightMatrix};

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
pub(super) fn pack_fp8(rows: GatheredRows<'_, bf16>, words: &mut [f32], scales: &mut [f32]) {
    let pitch = rows.columns().next_multiple_of(BLOCK);
    let words = bytemuck::cast_slice_mut::<f32, bf16>(words);
    for (index, out) in words.chunks_exact_mut(pitch).take(rows.len()).enumerate() {
        let groups = out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(rows.row(index).chunks(BLOCK));
        for (block, (out, group)) in groups.enumerate() {
            // SAFETY: this function's features.
            scales[block * TILE_ROWS + index] = unsafe { quantize_block(group, out) };
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
fn as_bf16(vector: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes in which every pattern is a value.
    unsafe { std::mem::transmute(vector) }
}

/// One panel times 1 to [`FEW_ROWS`] rows. A panel lies in one row of blocks.
///
/// # Safety
/// The processor must have AVX-512 with VBMI and bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
pub(super) unsafe fn multiply_fp8(
    weights: &Fp8BlockMatrix,
    panel: Range<usize>,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let columns = weights.columns();
    let blocks = columns.div_ceil(BLOCK);
    let codes = &weights.codes()[panel.start * columns..panel.end * columns];
    let scales = &weights.scales()[panel.start / BLOCK * blocks..][..blocks];
    let (words, x_scales) = x.tile(0).split_at(TILE_ROWS * blocks * BLOCK / 2);
    let x_rows: &[bf16] = bytemuck::cast_slice(words);
    assert!(x.rows() <= FEW_ROWS && x_scales.len() >= blocks * TILE_ROWS);
    // SAFETY: the caller's.
    let decoder = unsafe { Decoder::new() };
    let mut first = 0;
    while first < panel.len() {
        let step = if first + 4 <= panel.len() { 4 } else { 1 };
        let codes = &codes[first * columns..(first + step) * columns];
        let rows = Fp8Rows { decoder, codes, columns, scales, x: x_rows, x_scales };
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
    columns: usize,
    scales: &'a [f32],
    x: &'a [bf16],
    x_scales: &'a [f32],
}

/// `R` weight rows times `C` activation rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// As for [`multiply_fp8`]; `codes` has `R` rows of `columns`, `x` `C` rows of whole blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
unsafe fn dots_fp8<const R: usize, const C: usize>(rows: Fp8Rows<'_>, out: &mut [f32]) {
    let Fp8Rows { decoder, codes, columns, scales, x, x_scales } = rows;
    let pitch = columns.next_multiple_of(BLOCK);
    let mut totals = [[_mm512_setzero_ps(); C]; R];
    for (block, &scale) in scales.iter().enumerate() {
        for (r, totals) in totals.iter_mut().enumerate() {
            let mut sums = [_mm512_setzero_ps(); C];
            for start in [block * BLOCK, block * BLOCK + 64] {
                let count = columns.saturating_sub(start).min(64);
                let mask = if count == 0 { 0 } else { u64::MAX >> (64 - count) };
                // SAFETY: the caller's; the mask keeps codes inside their row, rows of `x` are
                // padded. Prefetching never faults.
                unsafe {
                    let from = codes.as_ptr().wrapping_add(r * columns + start);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(4 * columns).cast());
                    let weights = decoder.widen_64(_mm512_maskz_loadu_epi8(mask, from.cast()));
                    for (half, weights) in weights.into_iter().enumerate() {
                        for (c, sum) in sums.iter_mut().enumerate() {
                            let x = x.as_ptr().add(c * pitch + start + 32 * half);
                            let x = as_bf16(_mm512_loadu_si512(x.cast()));
                            *sum = _mm512_dpbf16_ps(*sum, as_bf16(weights), x);
                        }
                    }
                }
            }
            for (c, (total, sum)) in totals.iter_mut().zip(sums).enumerate() {
                let scale = _mm512_set1_ps(scale * x_scales[block * TILE_ROWS + c]);
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
