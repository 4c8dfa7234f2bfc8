//! The definitions of FP8, in float64, one number at a time. The quotient of a number and its scale
//! is taken in float32, as the formats define it; what is nearest to it is found by looking.

use super::{ActivationScales, BLOCK, E4M3_MAX};

/// Rows are scaled as if one of their numbers were at least this large.
pub const LEAST_MAGNITUDE: f32 = 1e-10;

/// The same for what an activation makes, where the activation quantises it.
pub const LEAST_ACTIVATED: f32 = 1.0 / 512.0;

/// Value of an e4m3fn code: sign, four bits of exponent with bias 7, three of mantissa; no
/// infinities, all ones are NaN.
pub fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f64::from(code & 7));
    let magnitude = match exponent {
        15 if mantissa == 7.0 => f64::NAN,
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// The code whose value is nearest, ties to the even code; beyond 448 the largest. NaN and zero
/// keep their sign.
pub fn e4m3_nearest(value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(f64::from(E4M3_MAX));
    let distance = |code: &u8| (e4m3_value(*code) - magnitude).abs();
    let nearer = |a: &u8, b: &u8| {
        distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))) // an even code first
    };
    let nearest = (0..0x7f).min_by(nearer);
    sign | nearest.expect("this is a bug: a format without numbers")
}

/// The code of a number with this scale.
pub fn quantize(value: f32, scale: f32) -> u8 {
    e4m3_nearest(f64::from(value / scale))
}

/// The number that a code with this scale stands for.
pub fn dequantize(code: u8, scale: f32) -> f64 {
    e4m3_value(code) * f64::from(scale)
}

/// What the product sees of a row of activations. `input_scale` is the scale of all rows where
/// it was measured beforehand; it counts for formats with a scale per row. Numbers that share a
/// scale are scaled as if one of them were `least` or larger.
pub fn quantized_row(
    scales: ActivationScales,
    input_scale: Option<f32>,
    least: f32,
    row: &[f32],
) -> Vec<f64> {
    let group = match scales {
        ActivationScales::None => return row.iter().map(|&x| f64::from(x)).collect(),
        ActivationScales::Group => BLOCK,
        ActivationScales::Row => row.len().max(1),
    };
    let input_scale = input_scale.filter(|_| scales == ActivationScales::Row);
    let quantized = row.chunks(group).flat_map(|group| {
        let largest = group.iter().fold(least, |largest, x| largest.max(x.abs()));
        let scale = input_scale.unwrap_or(largest / E4M3_MAX);
        group.iter().map(move |&x| dequantize(quantize(x, scale), scale))
    });
    quantized.collect()
}
