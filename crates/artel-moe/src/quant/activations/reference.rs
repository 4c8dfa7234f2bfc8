//! The definition: one number after the other.

use super::Granularity;
use crate::quant::{E4M3_MAX, Element, e4m3_from_f32};

/// Codes `[rows, columns]` and scales `[rows, groups]` of `input` `[rows, columns]`.
pub fn quantize<A: Element>(
    granularity: Granularity,
    columns: usize,
    input: &[A],
) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in input.chunks(columns) {
        for group in row.chunks(granularity.width(columns)) {
            // Comparisons pass over NaN.
            let largest = group.iter().map(|value| value.to_f32().abs()).fold(1e-10, f32::max);
            let scale = largest / E4M3_MAX;
            scales.push(scale);
            codes.extend(group.iter().map(|value| e4m3_from_f32(value.to_f32() / scale)));
        }
    }
    (codes, scales)
}

/// Codes of `input` for one given scale.
pub fn quantize_static<A: Element>(scale: f32, input: &[A]) -> Vec<u8> {
    input.iter().map(|value| e4m3_from_f32(value.to_f32() / scale)).collect()
}
