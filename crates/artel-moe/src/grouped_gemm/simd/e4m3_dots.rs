//! Few activation rows times FP8 codes with a scale per group of 32: dot products of bfloat16 pairs.
//!
//! Codes are widened by table, 64 at a time; the dot product of a group is scaled before it is added.
//! More rows take the vectors of `grouped.rs`.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::avx512::Lanes16;
use super::few_rows::{self, FEW_ROWS, as_bf16};
use super::fp8_decode::Decoder;
use super::grouped::GroupedKernel;
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS};
use crate::quant::{GroupedMatrix, GroupedPanel, Mxfp8};

/// Columns that share a scale, and that one instruction takes.
const GROUP: usize = 32;

/// Columns whose codes are widened at a time.
const STEP: usize = 2 * GROUP;

/// Columns whose scales are widened at a time.
const CHUNK: usize = 4096;

/// Bytes ahead of those in use that are asked for, into the second cache.
const AHEAD: usize = 8192;

/// The vectors of many rows.
const VECTORS: GroupedKernel<Lanes16> = GroupedKernel::NEW;

/// Dot products up to [`FEW_ROWS`] rows of an expert, vectors beyond.
pub(super) struct E4m3Dots;

fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(GROUP)
}

impl Kernel<Mxfp8> for E4m3Dots {
    fn name(&self) -> &'static str {
        "avx512 fma, bf16 dots to 4 rows"
    }

    /// Sixteen rows of float32 numbers are more than four of bfloat16.
    fn tile_words(&self, columns: usize) -> usize {
        Kernel::<Mxfp8>::tile_words(&VECTORS, columns)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        match rows.group_rows() {
            ..=FEW_ROWS => few_rows::pack_bf16(rows, tile),
            _ => Kernel::<Mxfp8>::pack(&VECTORS, rows, tile),
        }
    }

    fn multiply(
        &self,
        weights: &GroupedMatrix<Mxfp8>,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        if x.group_rows() > FEW_ROWS {
            return Kernel::<Mxfp8>::multiply(&VECTORS, weights, panel, x, out);
        }
        let panel = GroupedPanel::new(weights, panel);
        // SAFETY: this kernel is only handed out where the processor has AVX-512 with VBMI and bfloat16.
        unsafe {
            match x.rows() {
                0 => {}
                1 => multiply::<1>(&panel, x, out),
                2 => multiply::<2>(&panel, x, out),
                3 => multiply::<3>(&panel, x, out),
                _ => multiply::<4>(&panel, x, out),
            }
        }
    }
}

/// One panel times `C` rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// The processor must have AVX-512 with VBMI and bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
unsafe fn multiply<const C: usize>(panel: &GroupedPanel<'_>, x: Operand<'_>, out: &mut [f32]) {
    let pitch = pitch(panel.columns);
    let x_rows: &[bf16] = bytemuck::cast_slice(x.tile(0));
    // A row of fewer columns is one group.
    assert!(panel.group == GROUP || panel.columns <= GROUP);
    assert!(x_rows.len() >= C * pitch && out.len() >= C * PANEL_ROWS);
    let mut scales = [0f32; CHUNK / GROUP];
    // SAFETY: the caller's; the mask keeps codes inside their row, rows of `x` are padded to whole groups
    // (checked above). Prefetching never faults.
    unsafe {
        let decoder = Decoder::new();
        for row in 0..panel.rows {
            let codes = &panel.codes[row * panel.row_bytes..(row + 1) * panel.row_bytes];
            let mut totals = [_mm512_setzero_ps(); C];
            for chunk in (0..panel.columns).step_by(CHUNK) {
                let end = (chunk + CHUNK).min(panel.columns);
                panel.write_scales(row, chunk / GROUP..end.div_ceil(GROUP), &mut scales);
                for column in (chunk..end).step_by(STEP) {
                    let codes = codes[column..].as_ptr();
                    _mm_prefetch::<_MM_HINT_T1>(codes.wrapping_add(AHEAD).cast());
                    let codes = match end - column {
                        STEP.. => _mm512_loadu_si512(codes.cast()),
                        rest => _mm512_maskz_loadu_epi8((1 << rest) - 1, codes.cast()),
                    };
                    let halves = decoder.widen_64(codes).into_iter().enumerate();
                    for (half, weights) in halves.take((end - column).div_ceil(GROUP)) {
                        let column = column + half * GROUP;
                        let scale = _mm512_set1_ps(scales[(column - chunk) / GROUP]);
                        for (c, total) in totals.iter_mut().enumerate() {
                            let x = x_rows.as_ptr().add(c * pitch + column);
                            let x = as_bf16(_mm512_loadu_si512(x.cast()));
                            let sum = _mm512_dpbf16_ps(_mm512_setzero_ps(), as_bf16(weights), x);
                            *total = _mm512_fmadd_ps(sum, scale, *total);
                        }
                    }
                }
            }
            for (c, total) in totals.into_iter().enumerate() {
                out[c * PANEL_ROWS + row] = _mm512_reduce_add_ps(total) * panel.global;
            }
        }
    }
}
