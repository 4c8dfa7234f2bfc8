//! Activations to e4m3 values, one group of 128 at a time: `quantize_group` in registers.

use std::arch::x86_64::*;

use half::bf16;

use crate::quant::{BLOCK, E4M3_MAX, scale_for};

/// Quantises at most 128 activations, writes the e4m3 values as bfloat16, which holds them exactly,
/// pads the group with zeros and returns its scale: the row's where it has one.
///
/// # Safety
/// The processor must have AVX-512 (F, BW, VL).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn quantize_block(
    group: &[bf16],
    row_scale: Option<f32>,
    out: &mut [bf16; BLOCK],
) -> f32 {
    let (values, own_scale) = load_group(group);
    let scale = row_scale.unwrap_or(own_scale);
    for (index, value) in values.into_iter().enumerate() {
        let rounded = round_to_e4m3(_mm512_div_ps(value, _mm512_set1_ps(scale)));
        let bits = _mm512_srli_epi32(_mm512_castps_si512(rounded), 16);
        // SAFETY: `out` is eight times sixteen numbers.
        unsafe {
            let out = out.as_mut_ptr().add(16 * index);
            _mm256_storeu_si256(out.cast(), _mm512_cvtepi32_epi16(bits));
        }
    }
    scale
}

/// The scale of a whole row by itself: the largest of its groups'.
///
/// # Safety
/// As for [`quantize_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn row_scale(row: &[bf16]) -> f32 {
    let scales = row.chunks(BLOCK).map(|group| load_group(group).1);
    scales.fold(scale_for(0.0), f32::max)
}

/// At most 128 numbers, padded with zeros, and the scale that they ask for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_group(group: &[bf16]) -> ([__m512; BLOCK / 16], f32) {
    assert!(group.len() <= BLOCK);
    let magnitude_bits = _mm512_set1_epi32(0x7fff_ffff);
    let mut values = [_mm512_setzero_ps(); BLOCK / 16];
    let mut largest = _mm512_setzero_ps();
    for (index, value) in values.iter_mut().enumerate() {
        let count = group.len().saturating_sub(16 * index).min(16);
        let mask = ((1u32 << count) - 1) as u16;
        // SAFETY: the mask reads `count` numbers.
        let bits = unsafe {
            _mm256_maskz_loadu_epi16(mask, group.as_ptr().wrapping_add(16 * index).cast())
        };
        *value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        let magnitude = _mm512_and_si512(_mm512_castps_si512(*value), magnitude_bits);
        // Where the first is NaN, the second is kept.
        largest = _mm512_max_ps(_mm512_castsi512_ps(magnitude), largest);
    }
    (values, scale_for(_mm512_reduce_max_ps(largest)))
}

/// Sixteen times `quant::round_to_e4m3`.
#[inline]
#[target_feature(enable = "avx512f")]
fn round_to_e4m3(value: __m512) -> __m512 {
    let bits = _mm512_castps_si512(value);
    let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
    let exponent = _mm512_srli_epi32(magnitude, 23);
    let exponent = _mm512_max_epi32(exponent, _mm512_set1_epi32(121));
    let exponent = _mm512_min_epi32(exponent, _mm512_set1_epi32(135));
    let shift = _mm512_slli_epi32(_mm512_add_epi32(exponent, _mm512_set1_epi32(20)), 23);
    let shift = _mm512_castsi512_ps(shift);
    let rounded = _mm512_sub_ps(_mm512_add_ps(_mm512_castsi512_ps(magnitude), shift), shift);
    // The minimum with NaN in the second place is NaN.
    let limited = _mm512_min_ps(_mm512_set1_ps(E4M3_MAX), rounded);
    let sign = _mm512_andnot_si512(_mm512_set1_epi32(0x7fff_ffff), bits);
    _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(limited), sign))
}

#[cfg(test)]
mod tests {
    use artel_device::cpu::{CpuFeatures, Isa};
    use proptest::prelude::*;

    use super::*;
    use crate::quant::{Element, activation_scale, quantize_group};

    proptest! {
        #[test]
        fn agrees_with_the_plain_loop(
            values in prop::collection::vec(-5f32..5.0, 0..=BLOCK), shift in -40i32..20,
        ) {
            if CpuFeatures::detect().isa() >= Isa::Avx512 {
                let scaled = values.iter().map(|value| value * 2f32.powi(shift));
                let group: Vec<bf16> = scaled.map(Element::from_f32).collect();
                for given in [None, Some(0.01)] {
                    let mut expected = [0.0; BLOCK];
                    let out = &mut expected[..group.len()];
                    let expected_scale = quantize_group(&group, given, out);
                    let mut found = [bf16::ONE; BLOCK];
                    // SAFETY: the processor has AVX-512, checked above.
                    let scale = unsafe { quantize_block(&group, given, &mut found) };
                    prop_assert_eq!(scale, expected_scale);
                    prop_assert_eq!(found.map(Element::to_f32), expected);
                }
            }
        }

        #[test]
        fn scales_of_rows_agree_with_the_plain_loop(
            values in prop::collection::vec(-5f32..5.0, 0..400), shift in -40i32..20,
        ) {
            if CpuFeatures::detect().isa() >= Isa::Avx512 {
                let scaled = values.iter().map(|value| value * 2f32.powi(shift));
                let row: Vec<bf16> = scaled.map(Element::from_f32).collect();
                // SAFETY: the processor has AVX-512, checked above.
                prop_assert_eq!(unsafe { row_scale(&row) }, activation_scale(&row));
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        if CpuFeatures::detect().isa() >= Isa::Avx512 {
            let mut group = [bf16::ONE; BLOCK];
            group[5] = bf16::NAN;
            let mut found = [bf16::ONE; BLOCK];
            // SAFETY: the processor has AVX-512, checked above.
            let scale = unsafe { quantize_block(&group, None, &mut found) };
            assert_eq!(scale, 1.0 / E4M3_MAX);
            assert!(found[5].is_nan() && found[4] == bf16::from_f32(448.0));
        }
    }
}
