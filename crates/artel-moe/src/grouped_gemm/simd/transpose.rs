//! A 16x16 matrix of 32-bit numbers turned in registers.

use std::arch::x86_64::*;

use crate::grouped_gemm::PANEL_ROWS;

/// Row `i` of the result is column `i` of `rows`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of rows, then quadruples, inside 128-bit lanes; then the lanes themselves.
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut quads = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        quads[4 * i] = _mm512_unpacklo_epi64(a, c);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        quads[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut columns = quads;
    for i in 0..4 {
        let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
        let low = _mm512_shuffle_i32x4::<0x44>(a, b);
        let high = _mm512_shuffle_i32x4::<0xee>(a, b);
        let low2 = _mm512_shuffle_i32x4::<0x44>(c, d);
        let high2 = _mm512_shuffle_i32x4::<0xee>(c, d);
        columns[i] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        columns[4 + i] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        columns[8 + i] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    columns
}

/// Sums `[weight row][token]` of both halves of a panel to `out` `[token][PANEL_ROWS]`.
///
/// # Safety
/// The processor must have AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_tokens(halves: [&[f32; 256]; 2], tokens: usize, out: &mut [f32]) {
    assert!(out.len() >= tokens * PANEL_ROWS);
    for (half, sums) in halves.into_iter().enumerate() {
        if tokens < 4 {
            for (token, out) in out.chunks_mut(PANEL_ROWS).take(tokens).enumerate() {
                for (row, out) in out[16 * half..16 * half + 16].iter_mut().enumerate() {
                    *out = sums[16 * row + token];
                }
            }
            continue;
        }
        // SAFETY: the caller's; `sums` is sixteen vectors and `out` long enough (checked above).
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, vector) in rows.iter_mut().enumerate() {
                *vector = _mm512_load_si512(sums.as_ptr().add(16 * row).cast());
            }
            for (token, line) in transpose(rows).into_iter().take(tokens).enumerate() {
                let out = out.as_mut_ptr().add(token * PANEL_ROWS + 16 * half);
                _mm512_storeu_si512(out.cast(), line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use artel_device::cpu::{CpuFeatures, Isa};

    use super::*;

    #[test]
    fn rows_become_columns() {
        if CpuFeatures::detect().isa() < Isa::Avx512 {
            return;
        }
        let matrix: [[u32; 16]; 16] =
            std::array::from_fn(|row| std::array::from_fn(|column| (16 * row + column) as u32));
        // SAFETY: the processor has AVX-512, checked above; arrays of 16 numbers are vectors.
        let turned: [[u32; 16]; 16] = unsafe {
            let rows = matrix.map(|row| _mm512_loadu_si512(row.as_ptr().cast()));
            transpose(rows).map(|row| std::mem::transmute::<__m512i, [u32; 16]>(row))
        };
        for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
            assert_eq!(turned[column][row], matrix[row][column]);
        }
    }
}
