//! Vectors of AVX2 with FMA and half-precision conversion.

use std::arch::x86_64::*;

use artel_device::cpu::Vectorized;
use half::{bf16, f16};

use super::vector::{Lanes, Load};

#[derive(Clone, Copy)]
pub(super) struct Lanes8(__m256);

#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<W: Vectorized>(work: W) -> W::Output {
    work.run()
}

// SAFETY: every intrinsic below is in AVX2, FMA or F16C, and `call` enables these.
unsafe impl Lanes for Lanes8 {
    const COUNT: usize = 8;
    const E4M3_SCALE: f32 = 256.0;
    const NAME: &'static str = "avx2 fma";

    #[inline(always)]
    unsafe fn call<W: Vectorized>(work: W) -> W::Output {
        // SAFETY: the caller's.
        unsafe { with_avx2(work) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, values: &[f32; 16]) -> [Self; 2] {
        // SAFETY: the caller's; the table is two vectors.
        unsafe {
            let tables = [0, 8].map(|first| _mm256_loadu_ps(values.as_ptr().add(first)));
            // A table of eight is read by the low three bits; the fourth says which.
            let value = |codes| {
                let [low, high] = tables.map(|table| _mm256_permutevar8x32_ps(table, codes));
                Self(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28))))
            };
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            [value(codes), value(_mm256_srli_epi32(codes, 4))]
        }
    }

    #[inline(always)]
    unsafe fn halves(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = from.cast::<[f32; 2]>().read();
            Self(_mm256_insertf128_ps(_mm256_set1_ps(a), _mm_set1_ps(b), 1))
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the caller's.
        unsafe {
            let halves =
                _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps(self.0, 1));
            let pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: prefetching never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
}

// SAFETY: reads eight numbers, as the trait asks its caller to provide.
unsafe impl Load<f32> for Lanes8 {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_loadu_ps(from) })
    }
}

// SAFETY: as above.
unsafe impl Load<f16> for Lanes8 {
    #[inline(always)]
    unsafe fn load(from: *const f16) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }
}

// SAFETY: as above.
unsafe impl Load<bf16> for Lanes8 {
    #[inline(always)]
    unsafe fn load(from: *const bf16) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)))
        }
    }
}

// SAFETY: as above. A code moved to where half precision has its fields is the value / 256; NaN
// codes are given an exponent that half precision reads as NaN.
unsafe impl Load<u8> for Lanes8 {
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
            let magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
            let is_nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
            let sign = _mm_slli_epi16(_mm_xor_si128(codes, magnitude), 8);
            let bits = _mm_or_si128(_mm_slli_epi16(magnitude, 7), sign);
            let nan = _mm_and_si128(is_nan, _mm_set1_epi16(0x7fff));
            Self(_mm256_cvtph_ps(_mm_or_si128(bits, nan)))
        }
    }
}

// SAFETY: as above.
unsafe impl Load<i8> for Lanes8 {
    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            Self(_mm256_cvtepi32_ps(codes))
        }
    }
}
