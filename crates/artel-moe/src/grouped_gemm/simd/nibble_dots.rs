//! Few activation rows times codes of four bits: dot products of bfloat16 pairs, 128 columns at a time.
//!
//! 64 bytes of codes are 32 words of four columns. A word shifted by 0, 4, 8 and 12 bits chooses from a
//! table of bfloat16 values, so that vector `i` holds columns `i, i + 4, i + 8` and so on; activations
//! are stored in that order once. Lane `l` of the sums then belongs to columns `8 l` to `8 l + 7`, which
//! share a scale, so that one multiplication scales a whole step.
//!
//! More rows take the vectors of `grouped.rs`.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::avx512::Lanes16;
use super::few_rows::{FEW_ROWS, as_bf16};
use super::grouped::GroupedKernel;
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS};
use crate::quant::{Element, GroupedFormat, GroupedMatrix, GroupedPanel};

/// Columns of one step; operand rows are padded to whole steps.
const STEP: usize = 128;

/// Bytes of the codes of a step.
const STEP_BYTES: usize = STEP / 2;

/// float32 words of a step of an operand row: bfloat16 numbers, then a sum for each lane.
const STEP_WORDS: usize = STEP / 2 + 16;

/// Columns whose scales are widened at a time.
const CHUNK: usize = 4096;

/// Scales of a chunk in the smallest groups, and a vector more, which is read but does not count.
const SCALES: usize = CHUNK / 16 + 8;

/// Bytes ahead of those in use that are asked for.
const AHEAD: usize = 2048;

/// Dot products up to [`FEW_ROWS`] rows of an expert, vectors beyond.
pub(super) struct NibbleDots<F>(PhantomData<F>);

impl<F> NibbleDots<F> {
    pub const NEW: Self = Self(PhantomData);
    const VECTORS: GroupedKernel<Lanes16> = GroupedKernel::NEW;
}

impl<F: GroupedFormat> Kernel<F> for NibbleDots<F> {
    fn name(&self) -> &'static str {
        "avx512 fma, bf16 dots to 4 rows"
    }

    /// Sixteen rows of float32 numbers are more than four rows of steps.
    fn tile_words(&self, columns: usize) -> usize {
        let dots = FEW_ROWS * columns.div_ceil(STEP) * STEP_WORDS;
        Kernel::<F>::tile_words(&Self::VECTORS, columns).max(dots)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        if rows.group_rows() > FEW_ROWS {
            return Kernel::<F>::pack(&Self::VECTORS, rows, tile);
        }
        let row_words = rows.columns().div_ceil(STEP) * STEP_WORDS;
        for (index, out) in tile.chunks_exact_mut(row_words).enumerate().take(rows.len()) {
            let steps = out.as_chunks_mut::<STEP_WORDS>().0.iter_mut();
            for (out, x) in steps.zip(rows.row(index).chunks(STEP)) {
                let (words, sums) = out.split_at_mut(STEP / 2);
                let words: &mut [bf16] = bytemuck::cast_slice_mut(words);
                words.fill(bf16::ZERO);
                sums.fill(0.0);
                for (column, x) in x.iter().enumerate() {
                    words[column % 4 * (STEP / 4) + column / 4] = *x;
                    sums[column / 8] += Element::to_f32(*x);
                }
            }
        }
    }

    fn multiply(
        &self,
        weights: &GroupedMatrix<F>,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        if x.group_rows() > FEW_ROWS {
            return Kernel::<F>::multiply(&Self::VECTORS, weights, panel, x, out);
        }
        let values = const { &Table::of::<F>() };
        let panel = GroupedPanel::new(weights, panel);
        // SAFETY: this kernel is only handed out where the processor has AVX-512 with bfloat16.
        unsafe {
            match (x.rows(), panel.has_zero_points()) {
                (0, _) => {}
                (1, false) => multiply::<1, false>(&panel, values, x, out),
                (1, true) => multiply::<1, true>(&panel, values, x, out),
                (2, false) => multiply::<2, false>(&panel, values, x, out),
                (2, true) => multiply::<2, true>(&panel, values, x, out),
                (3, false) => multiply::<3, false>(&panel, values, x, out),
                (3, true) => multiply::<3, true>(&panel, values, x, out),
                (_, false) => multiply::<4, false>(&panel, values, x, out),
                (_, true) => multiply::<4, true>(&panel, values, x, out),
            }
        }
    }
}

/// bfloat16 values of the codes, twice: places are chosen by five bits, of which the fifth is not the
/// code's.
#[repr(align(64))]
struct Table([u16; 32]);

impl Table {
    const fn of<F: GroupedFormat>() -> Self {
        let values = F::CODE.nibble_values();
        let mut table = [0; 32];
        let mut place = 0;
        while place < 32 {
            table[place] = (values[place % 16].to_bits() >> 16) as u16;
            place += 1;
        }
        Self(table)
    }
}

/// One panel times `C` rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// The processor must have AVX-512 with bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<const C: usize, const ZERO_POINTS: bool>(
    panel: &GroupedPanel<'_>,
    values: &Table,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let row_words = panel.columns.div_ceil(STEP) * STEP_WORDS;
    let x_rows = x.tile(0);
    assert!(x_rows.len() >= C * row_words && out.len() >= C * PANEL_ROWS);
    let group_bits = panel.group.trailing_zeros();
    let (mut scales, mut offsets) = ([0f32; SCALES], [0f32; SCALES]);
    // SAFETY: the caller's. Steps of codes lie inside their row or are masked, steps of `x` are whole
    // (checked above), and eight scales behind the first of a step are there, used or not.
    unsafe {
        let table = _mm512_load_si512(values.0.as_ptr().cast());
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let shift = _mm512_set1_epi32(group_bits.saturating_sub(3).min(31) as i32);
        // Lane l is 8 l columns into the step, which begins a group or lies inside of one.
        let places = _mm512_srlv_epi32(lanes, shift);
        for row in 0..panel.rows {
            let codes = &panel.codes[row * panel.row_bytes..(row + 1) * panel.row_bytes];
            let mut totals = [_mm512_setzero_ps(); C];
            for chunk in (0..panel.columns).step_by(CHUNK) {
                let end = (chunk + CHUNK).min(panel.columns);
                let groups = chunk >> group_bits..((end - 1) >> group_bits) + 1;
                panel.write_scales(row, groups.clone(), &mut scales);
                panel.write_offsets(row, groups.clone(), &mut offsets);
                // Lanes behind the row are multiplied with them: zeros, whatever came before.
                scales[groups.len()..groups.len() + 8].fill(0.0);
                for column in (chunk..end).step_by(STEP) {
                    let place = (column >> group_bits) - groups.start;
                    let spread = |all: &[f32; SCALES]| {
                        let eight = _mm256_loadu_ps(all.as_ptr().add(place));
                        _mm512_permutexvar_ps(places, _mm512_castps256_ps512(eight))
                    };
                    let x = x_rows.as_ptr().add(column / STEP * STEP_WORDS);
                    let weights = step_weights(&codes[column / 2..], table);
                    let scale = spread(&scales);
                    for (c, total) in totals.iter_mut().enumerate() {
                        let x = x.add(c * row_words);
                        let mut sum = match ZERO_POINTS {
                            true => {
                                let sums = _mm512_loadu_ps(x.add(STEP / 2));
                                _mm512_mul_ps(sums, spread(&offsets))
                            }
                            false => _mm512_setzero_ps(),
                        };
                        for (index, weight) in weights.into_iter().enumerate() {
                            let x = as_bf16(_mm512_loadu_si512(x.add(16 * index).cast()));
                            sum = _mm512_dpbf16_ps(sum, as_bf16(weight), x);
                        }
                        *total = _mm512_fmadd_ps(sum, scale, *total);
                    }
                }
            }
            for (c, total) in totals.into_iter().enumerate() {
                out[c * PANEL_ROWS + row] = _mm512_reduce_add_ps(total) * panel.global;
            }
        }
    }
}

/// The four vectors of the step whose codes begin at `codes`; what lies behind the row is code 0.
///
/// # Safety
/// The processor must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn step_weights(codes: &[u8], table: __m512i) -> [__m512i; 4] {
    let mask = match codes.len() {
        STEP_BYTES.. => u64::MAX,
        rest => (1 << rest) - 1,
    };
    // SAFETY: the caller's; the mask keeps to the row, prefetching never faults.
    let words = unsafe {
        _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(AHEAD).cast());
        _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast())
    };
    [
        _mm512_permutexvar_epi16(words, table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table),
        _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table),
    ]
}
