//! Vectors of AVX-512.

use std::arch::x86_64::*;

use artel_device::cpu::Vectorized;
use half::{bf16, f16};

use super::vector::{Lanes, Load};

#[derive(Clone, Copy)]
pub(super) struct Lanes16(__m512);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
fn with_avx512<W: Vectorized>(work: W) -> W::Output {
    work.run()
}

impl Lanes16 {
    /// Both vectors rounded to bfloat16, the first in the low half.
    ///
    /// # Safety
    /// As for [`Lanes`].
    #[inline(always)]
    pub unsafe fn to_bf16(first: Self, second: Self) -> __m512i {
        // SAFETY: the caller's; both types are 64 bytes in which every pattern is a value.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(second.0, first.0)) }
    }
}

// SAFETY: every intrinsic below is in the parts of AVX-512 that `call` enables.
unsafe impl Lanes for Lanes16 {
    const COUNT: usize = 16;
    const E4M3_SCALE: f32 = 256.0;
    const NAME: &'static str = "avx512 fma";

    #[inline(always)]
    unsafe fn call<W: Vectorized>(work: W) -> W::Output {
        // SAFETY: the caller's.
        unsafe { with_avx512(work) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, values: &[f32; 16]) -> [Self; 2] {
        // SAFETY: the caller's; the table is a vector. Only the low four bits choose from it.
        unsafe {
            let table = _mm512_loadu_ps(values.as_ptr());
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            [codes, _mm512_srli_epi32(codes, 4)]
                .map(|codes| Self(_mm512_permutexvar_ps(codes, table)))
        }
    }

    #[inline(always)]
    unsafe fn halves(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = from.cast::<[f32; 2]>().read();
            Self(_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(a), _mm512_set1_ps(b)))
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the caller's.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
}

// SAFETY: reads sixteen numbers, as the trait asks its caller to provide.
unsafe impl Load<f32> for Lanes16 {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
}

// SAFETY: as above.
unsafe impl Load<f16> for Lanes16 {
    #[inline(always)]
    unsafe fn load(from: *const f16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
}

// SAFETY: as above.
unsafe impl Load<bf16> for Lanes16 {
    #[inline(always)]
    unsafe fn load(from: *const bf16) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))
        }
    }
}

// SAFETY: as above. A code moved to where half precision has its fields is the value / 256; NaN
// codes are given an exponent that half precision reads as NaN.
unsafe impl Load<u8> for Lanes16 {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast()));
            let magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
            let is_nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
            let sign = _mm256_slli_epi16(_mm256_xor_si256(codes, magnitude), 8);
            let bits = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
            let nan = _mm256_set1_epi16(0x7fff);
            Self(_mm512_cvtph_ps(_mm256_mask_mov_epi16(bits, is_nan, nan)))
        }
    }
}

// SAFETY: as above.
unsafe impl Load<i8> for Lanes16 {
    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm512_cvtepi32_ps(codes))
        }
    }
}
