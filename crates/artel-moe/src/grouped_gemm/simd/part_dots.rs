//! Few activation rows times codes of four or eight bits with a scale per group: dot products of integers.
//!
//! The instruction that AVX-512 has for them multiplies unsigned numbers of eight bits with signed ones.
//! Weights are their codes, moved to where they are not negative. A row of activations becomes integers of
//! sixteen bits, the largest of which is `127 * 256`, and each of them two of eight bits, `256 * high + low`.
//! What the weights were moved by, times the sum of the activations, is taken off again. Sums are exact;
//! what is lost are the activations' last bits, 2^-16 of the largest of the row.
//!
//! 64 bytes of codes are a step. Lane `l` of the sums belongs to the columns whose codes are in word `l`,
//! which share a scale, so that one multiplication scales a whole step. Codes of four bits are the even
//! columns of a step first, then the odd ones, and activations are stored in that order once.
//!
//! More rows take the vectors of `grouped.rs`.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::avx512::Lanes16;
use super::few_rows::FEW_ROWS;
use super::grouped::GroupedKernel;
use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS};
use crate::quant::{Code, Element, GroupedFormat, GroupedMatrix, GroupedPanel};

/// Bytes of the codes of a step.
const STEP_BYTES: usize = 64;

/// Columns whose scales are widened at a time.
const CHUNK: usize = 4096;

/// Scales of a chunk in the smallest groups, and a vector more, which is read but does not count.
const SCALES: usize = CHUNK / 16 + 8;

/// Bytes ahead of those in use that are asked for, into the second cache: the first one's buffers for
/// lines on their way are too few for memory's latency.
const AHEAD: usize = 8192;

/// The largest integer of a row of activations: its parts are 127 and 0.
const LARGEST: f32 = 127.0 * 256.0;

/// float32 words that the scale of a row of activations takes, so that rows keep their alignment.
const ROW_SCALE_WORDS: usize = 16;

/// Dot products up to [`FEW_ROWS`] rows of an expert, vectors beyond.
pub(super) struct PartDots<F>(PhantomData<F>);

/// How the codes of a format become unsigned numbers of eight bits.
struct Unsigned {
    /// Vectors of them in a step.
    vectors: usize,
    /// What they are too large by.
    bias: i32,
    /// What one stands for.
    unit: f32,
}

impl Unsigned {
    const fn of<F: GroupedFormat>() -> Self {
        match F::CODE {
            Code::Int4 => Self { vectors: 2, bias: 8, unit: 1.0 },
            // Halves: FP4 ends at 6.
            Code::E2m1 => Self { vectors: 2, bias: 12, unit: 0.5 },
            Code::Int8 => Self { vectors: 1, bias: 128, unit: 1.0 },
            Code::E4m3 => panic!("FP8 is no integer of eight bits"),
        }
    }

    /// Columns of a step.
    const fn columns(&self) -> usize {
        STEP_BYTES * self.vectors
    }

    /// float32 words of a step of a row of activations: high parts, low parts, what is added to the sum of
    /// each lane because of the bias, and the sum of the activations of each lane.
    const fn step_words(&self) -> usize {
        2 * self.vectors * 16 + 32
    }

    /// float32 words of a row of activations.
    const fn row_words(&self, columns: usize) -> usize {
        columns.div_ceil(self.columns()) * self.step_words() + ROW_SCALE_WORDS
    }
}

impl<F: GroupedFormat> PartDots<F> {
    pub const NEW: Self = Self(PhantomData);
    const VECTORS: GroupedKernel<Lanes16> = GroupedKernel::NEW;
    const UNSIGNED: Unsigned = Unsigned::of::<F>();
}

impl<F: GroupedFormat> Kernel<F> for PartDots<F> {
    fn name(&self) -> &'static str {
        "avx512 fma, int8 dots to 4 rows"
    }

    fn tile_words(&self, columns: usize) -> usize {
        let dots = FEW_ROWS * Self::UNSIGNED.row_words(columns);
        Kernel::<F>::tile_words(&Self::VECTORS, columns).max(dots)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        if rows.group_rows() > FEW_ROWS {
            return Kernel::<F>::pack(&Self::VECTORS, rows, tile);
        }
        let row_words = Self::UNSIGNED.row_words(rows.columns());
        for (index, out) in tile.chunks_exact_mut(row_words).enumerate().take(rows.len()) {
            // SAFETY: this kernel is only handed out where the processor has AVX-512 with VNNI.
            unsafe { pack_row::<F>(rows.row(index), out) };
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
        let panel = GroupedPanel::new(weights, panel);
        // SAFETY: this kernel is only handed out where the processor has AVX-512 with VNNI.
        unsafe {
            match (x.rows(), panel.has_zero_points()) {
                (0, _) => {}
                (1, false) => multiply::<F, 1, false>(&panel, x, out),
                (1, true) => multiply::<F, 1, true>(&panel, x, out),
                (2, false) => multiply::<F, 2, false>(&panel, x, out),
                (2, true) => multiply::<F, 2, true>(&panel, x, out),
                (3, false) => multiply::<F, 3, false>(&panel, x, out),
                (3, true) => multiply::<F, 3, true>(&panel, x, out),
                (_, false) => multiply::<F, 4, false>(&panel, x, out),
                (_, true) => multiply::<F, 4, true>(&panel, x, out),
            }
        }
    }
}

/// One row of activations as parts, and its scale at the end. A row that is not finite becomes zeros with
/// a scale that is no number.
///
/// # Safety
/// The processor must have AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pack_row<F: GroupedFormat>(x: &[bf16], out: &mut [f32]) {
    let unsigned = const { &Unsigned::of::<F>() };
    let largest = x.iter().fold(0f32, |largest, x| match Element::to_f32(*x).abs() {
        x if x.is_nan() => f32::INFINITY,
        x => largest.max(x),
    });
    // The inverse of the smallest numbers is infinite: those become zeros, which they nearly are.
    let (scale, inverse) = match (largest / LARGEST, LARGEST / largest) {
        (scale, inverse) if inverse.is_finite() && scale.is_finite() => (scale, inverse),
        _ if largest.is_infinite() => (f32::NAN, 0.0),
        _ => (0.0, 0.0),
    };
    let (steps, row_scale) = out.split_at_mut(out.len() - ROW_SCALE_WORDS);
    row_scale[0] = scale;
    let steps = steps.chunks_exact_mut(unsigned.step_words());
    for (out, x) in steps.zip(x.chunks(unsigned.columns())) {
        let (parts, sums) = out.split_at_mut(2 * unsigned.vectors * 16);
        // SAFETY: the caller's.
        unsafe {
            let parts: &mut [i8] = bytemuck::cast_slice_mut(parts);
            pack_step(x, _mm512_set1_ps(inverse), unsigned.vectors, parts);
            let ones = _mm512_set1_epi8(1);
            let sum_of = |first: usize| {
                let vectors = first..first + unsigned.vectors;
                vectors.fold(_mm512_setzero_si512(), |sum, vector| {
                    let part = _mm512_loadu_si512(parts[vector * STEP_BYTES..].as_ptr().cast());
                    _mm512_dpbusd_epi32(sum, ones, part)
                })
            };
            let (high, low) = (sum_of(0), sum_of(unsigned.vectors));
            let sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
            let moved = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-unsigned.bias));
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), moved);
            _mm512_storeu_ps(sums[16..].as_mut_ptr(), _mm512_cvtepi32_ps(sum));
        }
    }
}

/// High and low parts of up to a step of columns, the rest zero: `[2][vectors][64]`.
///
/// # Safety
/// The processor must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_step(x: &[bf16], inverse: __m512, vectors: usize, parts: &mut [i8]) {
    parts.fill(0);
    let (high, low) = parts.split_at_mut(vectors * STEP_BYTES);
    for (index, x) in x.chunks(16).enumerate() {
        let mask = u16::MAX >> (16 - x.len());
        // SAFETY: the mask reads `x.len()` numbers.
        let (integers, low_parts) = unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x.as_ptr().cast()));
            let x = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
            let integers = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
            (integers, _mm512_srai_epi32(_mm512_slli_epi32(integers, 24), 24))
        };
        let high_parts = _mm512_srai_epi32(_mm512_sub_epi32(integers, low_parts), 8);
        for (out, part) in [(&mut *high, high_parts), (&mut *low, low_parts)] {
            let bytes = _mm512_cvtepi32_epi8(part);
            let mut sixteen = [0i8; 16];
            // SAFETY: sixteen bytes are a vector.
            unsafe { _mm_storeu_si128(sixteen.as_mut_ptr().cast(), bytes) };
            match vectors {
                1 => out[16 * index..16 * index + 16].copy_from_slice(&sixteen),
                _ => {
                    for (place, pair) in sixteen.as_chunks::<2>().0.iter().enumerate() {
                        out[8 * index + place] = pair[0];
                        out[STEP_BYTES + 8 * index + place] = pair[1];
                    }
                }
            }
        }
    }
}

/// One panel times `C` rows; `out` is `[C][PANEL_ROWS]`.
///
/// # Safety
/// The processor must have AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply<F: GroupedFormat, const C: usize, const ZERO_POINTS: bool>(
    panel: &GroupedPanel<'_>,
    x: Operand<'_>,
    out: &mut [f32],
) {
    let unsigned = const { &Unsigned::of::<F>() };
    let row_words = unsigned.row_words(panel.columns);
    let x_rows = x.tile(0);
    assert!(x_rows.len() >= C * row_words && out.len() >= C * PANEL_ROWS);
    let group_bits = panel.group.trailing_zeros();
    let (mut scales, mut offsets) = ([0f32; SCALES], [0f32; SCALES]);
    // SAFETY: the caller's. Steps of codes lie inside their row or are masked, steps of `x` are whole
    // (checked above), and eight scales behind the first of a step are there, used or not.
    unsafe {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // Lane l begins l words of codes into the step, which begins a group or lies inside of one.
        let lane_bits = (unsigned.columns() / 16).trailing_zeros();
        let shift = _mm512_set1_epi32(group_bits.saturating_sub(lane_bits).min(31) as i32);
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
                for column in (chunk..end).step_by(unsigned.columns()) {
                    let place = (column >> group_bits) - groups.start;
                    let spread = |all: &[f32; SCALES]| {
                        let eight = _mm256_loadu_ps(all.as_ptr().add(place));
                        _mm512_permutexvar_ps(places, _mm512_castps256_ps512(eight))
                    };
                    let step = column / unsigned.columns();
                    let x = x_rows.as_ptr().add(step * unsigned.step_words());
                    let weights = step_weights::<F>(&codes[step * STEP_BYTES..]);
                    let scale = spread(&scales);
                    for (c, total) in totals.iter_mut().enumerate() {
                        let x = x.add(c * row_words);
                        let mut sum = _mm512_cvtepi32_ps(dot(&weights[..unsigned.vectors], x));
                        if ZERO_POINTS {
                            let sums = _mm512_loadu_ps(x.add(unsigned.step_words() - 16));
                            sum = _mm512_fmadd_ps(sums, spread(&offsets), sum);
                        }
                        *total = _mm512_fmadd_ps(sum, scale, *total);
                    }
                }
            }
            for (c, total) in totals.into_iter().enumerate() {
                let scale = x_rows[(c + 1) * row_words - ROW_SCALE_WORDS];
                let factor = panel.global * unsigned.unit * scale;
                out[c * PANEL_ROWS + row] = _mm512_reduce_add_ps(total) * factor;
            }
        }
    }
}

/// One step of weights times the step of activations at `x`, a sum for each lane.
///
/// # Safety
/// The processor must have AVX-512 with VNNI; `x` must be a step of a packed row.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot(weights: &[__m512i], x: *const f32) -> __m512i {
    let vectors = weights.len();
    // SAFETY: the caller's.
    unsafe {
        let load = |vector: usize| _mm512_loadu_si512(x.add(16 * vector).cast());
        let (mut high, mut low) = (_mm512_setzero_si512(), load(2 * vectors));
        for (index, &weight) in weights.iter().enumerate() {
            high = _mm512_dpbusd_epi32(high, weight, load(index));
            low = _mm512_dpbusd_epi32(low, weight, load(vectors + index));
        }
        _mm512_add_epi32(_mm512_slli_epi32(high, 8), low)
    }
}

/// The unsigned weights of the step whose codes begin at `codes`; what lies behind the row is code 0.
///
/// # Safety
/// The processor must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn step_weights<F: GroupedFormat>(codes: &[u8]) -> [__m512i; 2] {
    // SAFETY: the caller's; the mask keeps to the row, prefetching never faults.
    let bytes = unsafe {
        _mm_prefetch::<_MM_HINT_T1>(codes.as_ptr().wrapping_add(AHEAD).cast());
        match codes.len() {
            STEP_BYTES.. => _mm512_loadu_si512(codes.as_ptr().cast()),
            rest => _mm512_maskz_loadu_epi8((1 << rest) - 1, codes.as_ptr().cast()),
        }
    };
    let low_bits = _mm512_set1_epi8(15);
    let even = _mm512_and_si512(bytes, low_bits);
    let odd = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_bits);
    match F::CODE {
        Code::Int4 => [even, odd],
        Code::E2m1 => {
            // Twice the value and 12, of the codes without a sign and of those with one.
            let table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
            let table = _mm512_broadcast_i32x4(table);
            [_mm512_shuffle_epi8(table, even), _mm512_shuffle_epi8(table, odd)]
        }
        Code::Int8 => [_mm512_xor_si512(bytes, _mm512_set1_epi8(-128)), bytes],
        Code::E4m3 => unreachable!("refused when the kernel is made"),
    }
}

#[cfg(test)]
mod tests {
    use artel_device::cpu::{CpuFeatures, Isa};

    use super::*;
    use crate::quant::{Int4W4A16, Int8W8A16, Mxfp4};

    /// All unsigned weights of a step whose codes are `codes`, even columns first.
    fn weights_of<F: GroupedFormat>(codes: &[u8; STEP_BYTES]) -> [u8; 2 * STEP_BYTES] {
        // SAFETY: callers check for AVX-512; 64 bytes of any pattern are numbers.
        unsafe { std::mem::transmute(step_weights::<F>(codes)) }
    }

    fn check<F: GroupedFormat>() {
        let unsigned = Unsigned::of::<F>();
        for first in (0..256).step_by(STEP_BYTES) {
            let codes = std::array::from_fn(|index| (first + index) as u8);
            let weights = weights_of::<F>(&codes);
            for column in 0..unsigned.columns() {
                let (byte, half) = (column / unsigned.vectors, column % unsigned.vectors);
                let weight = f32::from(weights[half * STEP_BYTES + byte]) - unsigned.bias as f32;
                let code = codes[byte] >> (4 * half);
                assert_eq!(weight * unsigned.unit, F::CODE.value(code), "{code:#x}");
            }
        }
    }

    #[test]
    fn codes_are_what_they_stand_for() {
        if CpuFeatures::detect().isa() < Isa::Avx512 {
            return;
        }
        check::<Int4W4A16>();
        check::<Mxfp4>();
        check::<Int8W8A16>();
    }

    /// What a row of activations has become, in the order of its columns.
    fn unpacked<F: GroupedFormat>(x: &[bf16]) -> Vec<f32> {
        let unsigned = Unsigned::of::<F>();
        let mut words = vec![f32::MAX; unsigned.row_words(x.len())];
        // SAFETY: callers check for AVX-512 with VNNI.
        unsafe { pack_row::<F>(x, &mut words) };
        let scale = words[words.len() - ROW_SCALE_WORDS];
        let part = |column: usize, low: usize| {
            let (step, column) = (column / unsigned.columns(), column % unsigned.columns());
            let (byte, vector) = (column / unsigned.vectors, column % unsigned.vectors);
            let vector = low * unsigned.vectors + vector;
            let words = &words[step * unsigned.step_words()..];
            f32::from(bytemuck::cast_slice::<f32, i8>(words)[vector * STEP_BYTES + byte])
        };
        (0..x.len()).map(|column| scale * (256.0 * part(column, 0) + part(column, 1))).collect()
    }

    #[test]
    fn parts_keep_sixteen_bits_of_the_largest() {
        if CpuFeatures::detect().isa() < Isa::Avx512 {
            return;
        }
        for columns in [1, 15, 16, 63, 64, 128, 200] {
            let x: Vec<bf16> = (0..columns)
                .map(|column| bf16::from_f32((column as f32 * 0.37).sin() * 3.0))
                .collect();
            let largest = x.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max);
            for found in [unpacked::<Int4W4A16>(&x), unpacked::<Int8W8A16>(&x)] {
                for (found, x) in found.iter().zip(&x) {
                    let error = (found - x.to_f32()).abs();
                    assert!(error <= 0.6 * largest / LARGEST, "{columns}: {found} for {x}");
                }
            }
        }
        let extremes = [bf16::from_f32(-5.0), bf16::from_f32(5.0), bf16::from_f32(0.0)];
        assert_eq!(unpacked::<Mxfp4>(&extremes), [-5.0, 5.0, 0.0]);
        assert_eq!(unpacked::<Mxfp4>(&[bf16::ZERO; 3]), [0.0; 3]);
        assert_eq!(unpacked::<Mxfp4>(&[bf16::from_bits(1); 3]), [0.0; 3]);
        for bad in [bf16::NAN, bf16::INFINITY] {
            assert!(unpacked::<Mxfp4>(&[bf16::ONE, bad]).iter().all(|x| x.is_nan()));
        }
    }
}
