//! INT8 weights times INT8 activations: products of codes summed as integers, scaled at the end.
//!
//! The instruction that AVX-512 has for it multiplies unsigned numbers with signed ones. Activations are
//! therefore stored 128 too large, and 128 times the sum of the weights is taken off again. Sums of
//! integers are exact, so a row's result does not depend on which other rows are computed with it.

use std::marker::PhantomData;
use std::ops::Range;

use artel_device::cpu::Vectorized;
use half::bf16;

use crate::grouped_gemm::{GatheredRows, Kernel, Operand, PANEL_ROWS, TILE_ROWS};
use crate::quant::{Int8ChannelMatrix, Int8W8A8, quantize_row_to_int8};

/// Columns of one step; operand rows are padded to whole steps.
const STEP: usize = 64;

/// Bytes ahead of those in use that are asked for.
const AHEAD: usize = 2048;

/// What is added to the codes of activations.
const BIAS: u8 = 128;

/// Sums of products of one instruction set.
///
/// # Safety
/// Implementors' functions may only be called inside [`Int8Lanes::call`], which may only be called
/// where the processor has the instruction set; the kernel is handed out on that condition.
pub(super) unsafe trait Int8Lanes: Copy + Send + Sync + 'static {
    /// Instruction set, for the plan.
    const NAME: &'static str;

    /// Runs `work` compiled for the instruction set.
    unsafe fn call<W: Vectorized>(work: W) -> W::Output;
    unsafe fn zero() -> Self;
    /// Adds the products of a step of weights with activations of [`BIAS`] too much.
    unsafe fn multiply_add(self, weights: *const i8, x: *const u8) -> Self;
    /// Adds the weights of a step times [`BIAS`].
    unsafe fn add_biased(self, weights: *const i8) -> Self;
    /// The sum of all lanes.
    unsafe fn total(self) -> i32;
    /// Asks for the cache line at `from`, which may lie outside of any allocation.
    unsafe fn prefetch(from: *const i8);
}

/// The kernel of an instruction set.
pub(super) struct Int8Kernel<V>(PhantomData<V>);

impl<V> Int8Kernel<V> {
    pub const NEW: Self = Self(PhantomData);
}

fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(STEP)
}

impl<V: Int8Lanes> Kernel<Int8W8A8> for Int8Kernel<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    /// Codes of sixteen rows, then their scales.
    fn tile_words(&self, columns: usize) -> usize {
        TILE_ROWS * (pitch(columns) / 4 + 1)
    }

    fn pack(&self, rows: GatheredRows<'_, bf16>, tile: &mut [f32]) {
        // SAFETY: this kernel is only handed out where the processor has the instructions.
        unsafe { V::call(Pack { rows, tile }) };
    }

    fn multiply(
        &self,
        weights: &Int8ChannelMatrix,
        panel: Range<usize>,
        x: Operand<'_>,
        out: &mut [f32],
    ) {
        let (codes, scales) = weights.panel(panel);
        let vector = PhantomData::<V>;
        // SAFETY: this kernel is only handed out where the processor has the instructions.
        unsafe { V::call(Work { codes, scales, x, out, vector }) };
    }
}

/// Rows that become codes.
struct Pack<'a, 'b> {
    rows: GatheredRows<'a, bf16>,
    tile: &'b mut [f32],
}

impl Vectorized for Pack<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, tile } = self;
        let pitch = pitch(rows.columns());
        let (words, scales) = tile.split_at_mut(TILE_ROWS * pitch / 4);
        let codes: &mut [u8] = bytemuck::cast_slice_mut(words);
        for (index, scale) in scales.iter_mut().enumerate().take(rows.len()) {
            let out = &mut codes[index * pitch..(index + 1) * pitch];
            let (out, padding) = out.split_at_mut(rows.columns());
            *scale = quantize_row_to_int8(rows.row(index), bytemuck::cast_slice_mut(out));
            out.iter_mut().for_each(|code| *code ^= BIAS);
            padding.fill(BIAS);
        }
    }
}

/// A panel and what it is multiplied with.
struct Work<'a, V> {
    codes: &'a [i8],
    scales: &'a [f32],
    x: Operand<'a>,
    out: &'a mut [f32],
    vector: PhantomData<V>,
}

impl<V: Int8Lanes> Vectorized for Work<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { codes, scales, x, out, .. } = self;
        let columns = codes.len() / scales.len().max(1);
        let pitch = pitch(columns);
        for tile in 0..x.tiles() {
            let (words, x_scales) = x.tile(tile).split_at(TILE_ROWS * pitch / 4);
            let x_codes: &[u8] = bytemuck::cast_slice(words);
            let rows = x.tile_rows(tile);
            for (row, &scale) in scales.iter().enumerate() {
                let codes = &codes[row * columns..(row + 1) * columns];
                let mut c = 0;
                while c < rows {
                    let x = &x_codes[c * pitch..];
                    let out = &mut out[(tile * TILE_ROWS + c) * PANEL_ROWS + row..];
                    let scales = (scale, &x_scales[c..]);
                    // SAFETY: only `Lanes::call` runs this; a tile has 16 rows.
                    c += unsafe {
                        if c + 4 <= rows {
                            dots::<V, 4>(codes, x, scales, out)
                        } else {
                            dots::<V, 1>(codes, x, scales, out)
                        }
                    };
                }
            }
        }
    }
}

/// One weight row times the `C` activation rows at `x`; returns `C`.
#[inline(always)]
unsafe fn dots<V: Int8Lanes, const C: usize>(
    weights: &[i8],
    x: &[u8],
    (scale, x_scales): (f32, &[f32]),
    out: &mut [f32],
) -> usize {
    let pitch = pitch(weights.len());
    assert!(x.len() >= C * pitch);
    let full = weights.len() / STEP * STEP;
    // SAFETY: whole steps of weights are inside the row, the rest is a padded copy, and rows of `x`
    // are padded to whole steps (checked above). The caller has the instruction set.
    unsafe {
        let (mut sums, mut bias) = ([V::zero(); C], V::zero());
        let mut step = |from: *const i8, column: usize| {
            V::prefetch(from.wrapping_add(AHEAD));
            bias = bias.add_biased(from);
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = sum.multiply_add(from, x.as_ptr().add(c * pitch + column));
            }
        };
        for column in (0..full).step_by(STEP) {
            step(weights.as_ptr().add(column), column);
        }
        if full < weights.len() {
            let mut padded = [0i8; STEP];
            padded[..weights.len() - full].copy_from_slice(&weights[full..]);
            step(padded.as_ptr(), full);
        }
        let bias = bias.total();
        for (c, sum) in sums.into_iter().enumerate() {
            let sum = sum.total().wrapping_sub(bias);
            out[c * PANEL_ROWS] = sum as f32 * (scale * x_scales[c]);
        }
    }
    C
}

/// Any processor: one sum.
#[derive(Clone, Copy)]
pub(super) struct Portable(i32);

// SAFETY: plain Rust runs everywhere.
unsafe impl Int8Lanes for Portable {
    const NAME: &'static str = "portable";

    #[inline(always)]
    unsafe fn call<W: Vectorized>(work: W) -> W::Output {
        work.run()
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(0)
    }

    #[inline(always)]
    unsafe fn multiply_add(self, weights: *const i8, x: *const u8) -> Self {
        // SAFETY: the caller's.
        let (weights, x) = unsafe { (&*weights.cast::<[i8; STEP]>(), &*x.cast::<[u8; STEP]>()) };
        let products = weights.iter().zip(x).map(|(&weight, &x)| i32::from(weight) * i32::from(x));
        Self(self.0.wrapping_add(products.sum()))
    }

    #[inline(always)]
    unsafe fn add_biased(self, weights: *const i8) -> Self {
        // SAFETY: the caller's.
        let weights = unsafe { &*weights.cast::<[i8; STEP]>() };
        let sum: i32 = weights.iter().map(|&weight| i32::from(weight)).sum();
        Self(self.0.wrapping_add(sum * i32::from(BIAS)))
    }

    #[inline(always)]
    unsafe fn total(self) -> i32 {
        self.0
    }

    /// Nothing: plain Rust has no word for it.
    #[inline(always)]
    unsafe fn prefetch(_: *const i8) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Vnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use artel_device::cpu::Vectorized;

    use super::{BIAS, Int8Lanes, STEP};

    /// AVX2: pairs of sixteen bits.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256i);

    #[target_feature(enable = "avx2,fma")]
    fn with_avx2<W: Vectorized>(work: W) -> W::Output {
        work.run()
    }

    // SAFETY: every intrinsic below is in AVX2, which `call` enables.
    unsafe impl Int8Lanes for Avx2 {
        const NAME: &'static str = "avx2 int16";

        #[inline(always)]
        unsafe fn call<W: Vectorized>(work: W) -> W::Output {
            // SAFETY: the caller's.
            unsafe { with_avx2(work) }
        }

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's.
            Self(unsafe { _mm256_setzero_si256() })
        }

        #[inline(always)]
        unsafe fn multiply_add(self, weights: *const i8, x: *const u8) -> Self {
            // SAFETY: the caller's: a step is four times sixteen codes.
            unsafe {
                let mut sum = self.0;
                for first in (0..STEP).step_by(16) {
                    let weights = _mm_loadu_si128(weights.add(first).cast());
                    let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(x.add(first).cast()));
                    let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(weights), x);
                    sum = _mm256_add_epi32(sum, products);
                }
                Self(sum)
            }
        }

        #[inline(always)]
        unsafe fn add_biased(self, weights: *const i8) -> Self {
            // SAFETY: the caller's.
            unsafe { self.multiply_add(weights, [BIAS; STEP].as_ptr()) }
        }

        #[inline(always)]
        unsafe fn total(self) -> i32 {
            // SAFETY: the caller's; a vector is eight numbers.
            let lanes: [i32; 8] = unsafe { std::mem::transmute(self.0) };
            lanes.into_iter().fold(0, i32::wrapping_add)
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const i8) {
            // SAFETY: prefetching never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from) };
        }
    }

    /// AVX-512 with VNNI: four products a lane and instruction.
    #[derive(Clone, Copy)]
    pub struct Vnni(__m512i);

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn with_vnni<W: Vectorized>(work: W) -> W::Output {
        work.run()
    }

    // SAFETY: every intrinsic below is in the parts of AVX-512 that `call` enables.
    unsafe impl Int8Lanes for Vnni {
        const NAME: &'static str = "avx512 vnni";

        #[inline(always)]
        unsafe fn call<W: Vectorized>(work: W) -> W::Output {
            // SAFETY: the caller's.
            unsafe { with_vnni(work) }
        }

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller's.
            Self(unsafe { _mm512_setzero_si512() })
        }

        #[inline(always)]
        unsafe fn multiply_add(self, weights: *const i8, x: *const u8) -> Self {
            // SAFETY: the caller's: a step is a vector.
            unsafe {
                let x = _mm512_loadu_si512(x.cast());
                Self(_mm512_dpbusd_epi32(self.0, x, _mm512_loadu_si512(weights.cast())))
            }
        }

        #[inline(always)]
        unsafe fn add_biased(self, weights: *const i8) -> Self {
            // SAFETY: the caller's.
            unsafe {
                let bias = _mm512_set1_epi8(BIAS as i8);
                Self(_mm512_dpbusd_epi32(self.0, bias, _mm512_loadu_si512(weights.cast())))
            }
        }

        #[inline(always)]
        unsafe fn total(self) -> i32 {
            // SAFETY: the caller's.
            unsafe { _mm512_reduce_add_epi32(self.0) }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const i8) {
            // SAFETY: prefetching never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from) };
        }
    }
}
