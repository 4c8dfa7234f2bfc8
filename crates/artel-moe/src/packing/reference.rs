//! The definition of packing: arithmetic instead of bits, and rounding by comparing distances.

use super::{ExpertId, PackWeight, check};
use crate::MoeError;

/// Packs every pair.
///
/// # Errors
/// [`MoeError::Shape`] when the slices differ in length, [`MoeError::Element`] for an id that does
/// not fit.
pub fn pack<I: ExpertId, W: PackWeight>(
    ids: &[I],
    weights: &[W],
    packed: &mut [i32],
) -> Result<(), MoeError> {
    check(ids, weights.len(), packed.len())?;
    for position in 0..ids.len() {
        let id = i64::from(ids[position].packable().expect("this is a bug: ids were checked"));
        packed[position] = (id * 65536 + i64::from(weights[position].bf16_bits())) as i32;
    }
    Ok(())
}

/// The bfloat16 nearest to `value`, found among its two neighbours; the even one when both are
/// equally near.
pub fn nearest_bf16_bits(value: f32) -> u16 {
    let towards_zero = (value.to_bits() >> 16) as u16;
    if value.is_nan() {
        return towards_zero | 0x40;
    }
    if value.is_infinite() {
        return towards_zero;
    }
    let away = towards_zero + 1;
    let distance = |bits: u16| (magnitude(bits) - f64::from(value.abs())).abs();
    let nearer = distance(towards_zero).total_cmp(&distance(away));
    if nearer.is_lt() || (nearer.is_eq() && towards_zero.is_multiple_of(2)) {
        towards_zero
    } else {
        away
    }
}

/// Magnitude of a bit pattern; infinity counts as the number that would follow the largest.
fn magnitude(bits: u16) -> f64 {
    let exponent = i32::from(bits >> 7 & 0xff);
    let mantissa = f64::from(bits & 0x7f) / 128.0;
    match exponent {
        0 => mantissa * 2f64.powi(-126),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 127),
    }
}
