//! The definitions of FP8, in float64, one number at a time. The quotient of a number and its scale
//! is taken in float32, as the formats define it; what is nearest to it is found by looking.

use super::{ActivationScales, BLOCK, Code, E4M3_MAX, GroupedFormat, GroupedMatrix};
use super::{Scales, WeightMatrix};

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

/// Value of an e2m1 code: sign, two bits of exponent with bias 1, one of mantissa.
pub fn e2m1_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 1 & 3), f64::from(code & 1));
    let magnitude = match exponent {
        0 => mantissa / 2.0,
        _ => (1.0 + mantissa / 2.0) * 2f64.powi(exponent - 1),
    };
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The code whose value is nearest, ties to the even code; beyond 6 the largest.
pub fn e2m1_nearest(value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 8 } else { 0 };
    let distance = |code: &u8| (e2m1_value(*code) - value.abs().min(6.0)).abs();
    let nearer = |a: &u8, b: &u8| {
        distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))) // an even code first
    };
    sign | (0..8).min_by(nearer).expect("this is a bug: a format without numbers")
}

/// Value of an e8m0 code: a power of two, 255 is NaN.
pub fn e8m0_value(code: u8) -> f64 {
    if code == 255 { f64::NAN } else { 2f64.powi(i32::from(code) - 127) }
}

/// Number `[row, column]` of a matrix with a scale per group, from what it stores: `value(code)` less
/// its zero point, times its scale, times the scale of all.
pub fn grouped_number<F: GroupedFormat>(
    matrix: &GroupedMatrix<F>,
    row: usize,
    column: usize,
) -> f64 {
    let (columns, numbers) = (matrix.columns(), matrix.numbers());
    let byte = |per_byte: usize| numbers[row * columns.div_ceil(per_byte) + column / per_byte];
    let nibble = byte(2) >> (4 * (column % 2)) & 15;
    let value = match F::CODE {
        Code::Int4 => f64::from(nibble) - 8.0,
        Code::E2m1 => e2m1_value(nibble),
        Code::Int8 => f64::from(byte(1) as i8),
        Code::E4m3 => e4m3_value(byte(1)),
    };
    let place = matrix.scale_grid().index(row, column, columns);
    let scale = match matrix.scales() {
        Scales::F32(scales) => f64::from(scales[place]),
        Scales::E4m3(scales) => e4m3_value(scales[place]),
        Scales::E8m0(scales) => e8m0_value(scales[place]),
    };
    let zero_point = matrix.zero_points().map_or(0.0, |all| f64::from(all[place] as i8));
    (value - zero_point) * scale * matrix.global_scale().map_or(1.0, f64::from)
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
        ActivationScales::Int8Row => return int8_row(row),
    };
    let input_scale = input_scale.filter(|_| scales == ActivationScales::Row);
    let quantized = row.chunks(group).flat_map(|group| {
        let largest = group.iter().fold(least, |largest, x| largest.max(x.abs()));
        let scale = input_scale.unwrap_or(largest / E4M3_MAX);
        group.iter().map(move |&x| dequantize(quantize(x, scale), scale))
    });
    quantized.collect()
}

/// What a product with INT8 activations sees of a row: codes of `x * 127 / largest`, halves rounded
/// away from zero, times `largest / 127`.
fn int8_row(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().fold(LEAST_MAGNITUDE, |largest, x| largest.max(x.abs()));
    let code = |x: f32| {
        let exact = f64::from(x * (127.0 / largest));
        if exact.is_nan() { 0.0 } else { exact.abs().min(127.0).round().copysign(exact) }
    };
    row.iter().map(|&x| code(x) * f64::from(largest / 127.0)).collect()
}
