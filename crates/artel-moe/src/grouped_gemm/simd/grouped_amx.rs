//! Weights with a scale per group on AMX tiles: codes are widened and scaled into the panel that tiles
//! are read from, rounded to bfloat16.
//!
//! Scaled codes of FP4 and FP8 with scales of few bits are exact in bfloat16; those of INT4 and INT8 are
//! rounded, as other engines compute them.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::amx::{self, PANEL_COLUMNS, Panel, PanelSource, STEP, STEP_WORDS};
use super::avx512::Lanes16;
use super::grouped::{spread, step_codes, values};
use super::vector::Lanes;
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS};
use crate::quant::{Code, GroupedFormat, GroupedMatrix, GroupedPanel};

/// Scales of a row of the panel in the smallest groups, and one more, which is read but zero.
const SCALES: usize = PANEL_COLUMNS / 16 + 1;

/// Tiles for groups of more than `DOT_ROWS` rows, another kernel for the rest.
pub(super) struct GroupedAmx<Dots, const DOT_ROWS: usize>(pub Dots);

/// float32 words of a tile of bfloat16 pairs.
fn amx_words(columns: usize) -> usize {
    columns.div_ceil(STEP) * STEP_WORDS
}

impl<F: GroupedFormat, Dots: Kernel<F>, const DOT_ROWS: usize> Kernel<F>
    for GroupedAmx<Dots, DOT_ROWS>
{
    fn name(&self) -> &'static str {
        match DOT_ROWS {
            0 => "amx",
            _ => "amx, dots to 4 rows",
        }
    }

    fn tile_words(&self, columns: usize) -> usize {
        self.0.tile_words(columns).max(amx_words(columns))
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        if rows.group_rows() <= DOT_ROWS {
            return self.0.pack(rows, tile);
        }
        let words = amx_words(rows.columns());
        // SAFETY: this kernel is only handed out where the processor has AVX-512.
        unsafe { amx::pack_bf16(rows, &mut tile[..words]) };
    }

    fn multiply(
        &self,
        weights: &GroupedMatrix<F>,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        if x.group_rows() <= DOT_ROWS {
            return self.0.multiply(weights, panel, x, out);
        }
        let panel = GroupedPanel::new(weights, panel);
        let source = GroupedSource { panel, format: std::marker::PhantomData::<F> };
        // SAFETY: this kernel is only handed out where the processor has AVX-512 and AMX.
        unsafe { amx::multiply_panels(&source, x, out) };
        let factor = match F::CODE {
            Code::E4m3 => Lanes16::E4M3_SCALE * panel.global,
            Code::Int4 | Code::E2m1 | Code::Int8 => panel.global,
        };
        if factor != 1.0 {
            out[..x.rows() * PANEL_ROWS].iter_mut().for_each(|out| *out *= factor);
        }
    }
}

struct GroupedSource<'a, F> {
    panel: GroupedPanel<'a>,
    format: std::marker::PhantomData<F>,
}

impl<F: GroupedFormat> PanelSource for GroupedSource<'_, F> {
    fn rows(&self) -> usize {
        self.panel.rows
    }

    fn columns(&self) -> usize {
        self.panel.columns
    }

    #[inline(always)]
    unsafe fn write(&self, columns: Range<usize>, to: *mut Panel<PANEL_COLUMNS>) {
        // SAFETY: the caller's.
        unsafe { widen_panel::<F>(&self.panel, columns, to) };
    }
}

/// Columns `columns` of all rows.
///
/// # Safety
/// The processor must have AVX-512 with bfloat16; `to` must be writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn widen_panel<F: GroupedFormat>(
    panel: &GroupedPanel<'_>,
    columns: Range<usize>,
    to: *mut Panel<PANEL_COLUMNS>,
) {
    let nibbles = const { &F::CODE.nibble_values() };
    let groups = columns.start / panel.group..columns.end.div_ceil(panel.group);
    let (mut scales, mut offsets) = ([0f32; SCALES], [0f32; SCALES]);
    let mut padded = [0; STEP];
    // Even columns are in the first half, odd ones in the second.
    let places: [u16; 32] = std::array::from_fn(|place| (place / 2 + place % 2 * 16) as u16);
    // SAFETY: the caller's; steps of codes are whole or a padded copy, and the panel has whole steps.
    // Prefetching never faults.
    unsafe {
        let places = _mm512_loadu_si512(places.as_ptr().cast());
        for row in 0..panel.rows {
            panel.write_scales(row, groups.clone(), &mut scales);
            panel.write_offsets(row, groups.clone(), &mut offsets);
            let out: *mut bf16 = (&raw mut (*to).0[row]).cast();
            for column in columns.clone().step_by(STEP) {
                let codes = step_codes::<F>(panel, row, column, &mut padded);
                Lanes16::prefetch(codes.wrapping_add(PANEL_COLUMNS * F::CODE.bits() / 8));
                let [a, b] = values::<Lanes16, F>(codes, nibbles);
                let place = column / panel.group - groups.start;
                let of_step = |all: &[f32; SCALES]| match panel.group {
                    16 => spread::<Lanes16, F>(all.as_ptr().add(place), 0),
                    _ => [Lanes16::splat(all[place]); 2],
                };
                let ([s, t], [v, w]) = (of_step(&scales), of_step(&offsets));
                let a = a.add(v).multiply_add(s, Lanes16::zero());
                let b = b.add(w).multiply_add(t, Lanes16::zero());
                let pair = Lanes16::to_bf16(a, b);
                let pair = match F::CODE.bits() {
                    4 => _mm512_permutexvar_epi16(places, pair),
                    _ => pair,
                };
                _mm512_store_si512(out.add(column - columns.start).cast(), pair);
            }
        }
    }
}
