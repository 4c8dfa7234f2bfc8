//! e4m3 codes to bfloat16, exactly, by table: 64 codes at a time.

use std::arch::x86_64::*;

use half::bf16;

use crate::quant::{BLOCK, e4m3_to_f32};

/// Low and high bytes of the bfloat16 values of the 128 codes without a sign.
static TABLES: [[u8; 128]; 2] = {
    let mut tables = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let bits = e4m3_to_f32(code as u8).to_bits() >> 16;
        tables[0][code] = bits as u8;
        tables[1][code] = (bits >> 8) as u8;
        code += 1;
    }
    tables
};

/// The tables in registers.
#[derive(Clone, Copy)]
pub(super) struct Decoder {
    low: [__m512i; 2],
    high: [__m512i; 2],
    order: __m512i,
    sign: __m512i,
}

impl Decoder {
    /// # Safety
    /// The processor must have AVX-512 (F, BW, VBMI); the same holds for the other functions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn new() -> Self {
        // SAFETY: each table is two vectors long.
        let load = |table: usize, half: usize| unsafe {
            _mm512_loadu_si512(TABLES[table].as_ptr().add(64 * half).cast())
        };
        Self {
            low: [load(0, 0), load(0, 1)],
            high: [load(1, 0), load(1, 1)],
            // Interleaving works inside 128-bit lanes: bring eight codes of each half there.
            order: _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
            sign: _mm512_set1_epi8(-128),
        }
    }

    /// Two vectors of bfloat16 from 64 codes, in order.
    ///
    /// # Safety
    /// As for [`Decoder::new`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn widen_64(&self, codes: __m512i) -> [__m512i; 2] {
        let codes = _mm512_permutexvar_epi64(self.order, codes);
        let low = _mm512_permutex2var_epi8(self.low[0], codes, self.low[1]);
        let high = _mm512_permutex2var_epi8(self.high[0], codes, self.high[1]);
        // high | (codes & sign)
        let high = _mm512_ternarylogic_epi64::<0xf8>(high, codes, self.sign);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }

    /// Codes from place `first` of a block on; the rest of the block at `out` becomes zero.
    ///
    /// # Safety
    /// As for [`Decoder::new`]; `out` must be writable for a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn widen(&self, codes: &[u8], first: usize, out: *mut bf16) {
        let mut padded = [0; BLOCK];
        let codes = if codes.len() == BLOCK {
            codes.as_ptr()
        } else {
            padded[first..first + codes.len()].copy_from_slice(codes);
            padded.as_ptr()
        };
        for half in 0..2 {
            // SAFETY: 128 codes are there, or their padded copy; `out` is four vectors.
            unsafe {
                let widened = self.widen_64(_mm512_loadu_si512(codes.add(64 * half).cast()));
                for (quarter, widened) in widened.into_iter().enumerate() {
                    _mm512_storeu_si512(out.add(64 * half + 32 * quarter).cast(), widened);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use artel_device::cpu::{CpuFeatures, Isa};

    use super::*;

    #[test]
    fn all_codes_widen_exactly() {
        if CpuFeatures::detect().isa() < Isa::Avx512 {
            return;
        }
        for first in [0u8, 128] {
            let codes: [u8; BLOCK] = std::array::from_fn(|index| first + index as u8);
            for (start, count) in [(0, BLOCK), (0, 100), (28, 100), (64, 7)] {
                let mut out = [bf16::ONE; BLOCK];
                // SAFETY: the processor has AVX-512 with VBMI, checked above.
                unsafe { Decoder::new().widen(&codes[..count], start, out.as_mut_ptr()) };
                for (index, out) in out.into_iter().enumerate() {
                    let inside = (start..start + count).contains(&index);
                    let code = if inside { codes[index - start] } else { 0 };
                    let expected = bf16::from_f32(e4m3_to_f32(code));
                    assert!(out == expected || out.is_nan() && expected.is_nan(), "{code:#x}");
                }
            }
        }
    }
}
