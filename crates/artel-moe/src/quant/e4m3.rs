//! The numbers of FP8: e4m3fn, a sign, four bits of exponent and three of mantissa. No infinities;
//! source: "FP8 Formats for Deep Learning", 2022.

/// Largest finite e4m3fn value.
pub const E4M3_MAX: f32 = 448.0;

/// The value of every code: which of the cases below applies is as good as random in weights.
const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < values.len() {
        values[code] = value(code as u8);
        code += 1;
    }
    values
};

/// Value of an e4m3fn code: no infinities, `0x7f` and `0xff` are NaN, largest 448.
pub const fn e4m3_to_f32(code: u8) -> f32 {
    VALUES[code as usize]
}

const fn value(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = (code >> 3 & 0xf) as u32;
    let mantissa = (code & 7) as u32;
    match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => sign * (mantissa as f32 / 512.0),
        _ => sign * f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    }
}

/// Nearest e4m3fn code, ties to even; beyond 448 saturates, NaN stays NaN.
pub fn e4m3_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    // Steps between neighbours are 2^-9 up to 2^-6, then 2^(exponent - 3).
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    // A rounded-up mantissa carries into the exponent by itself.
    sign | ((exponent + 6) * 8 + steps) as u8
}

/// The value of the nearest e4m3fn code, as [`e4m3_from_f32`] chooses it, without branches.
#[inline(always)]
pub(crate) fn round_to_e4m3(value: f32) -> f32 {
    // A number 2^20 times the magnitude's power of two has its last place where e4m3 has it, so
    // adding and subtracting it rounds. Below 2^-6 the step stays 2^-9.
    let magnitude = f32::from_bits(value.to_bits() & 0x7fff_ffff);
    let exponent = (magnitude.to_bits() >> 23).clamp(121, 135);
    let shift = f32::from_bits((exponent + 20) << 23);
    let rounded = (magnitude + shift) - shift;
    let limited = if rounded > 448.0 { 448.0 } else { rounded };
    f32::from_bits(limited.to_bits() | value.to_bits() & 0x8000_0000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All finite codes without sign, ascending.
    fn magnitudes() -> impl Iterator<Item = (u8, f32)> {
        (0..0x7f).map(|code| (code, e4m3_to_f32(code)))
    }

    #[test]
    fn all_codes_have_the_values_of_the_standard() {
        for code in 0..=255u8 {
            let sign = if code < 128 { 1.0 } else { -1.0 };
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let expected = match (exponent, code & 7) {
                (15, 7) => f32::NAN,
                (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
                _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
            };
            let found = e4m3_to_f32(code);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{code:#x}");
            assert_eq!(found.is_sign_negative() || found.is_nan(), code >= 128 || found.is_nan());
        }
        assert_eq!(e4m3_to_f32(0x7e), E4M3_MAX);
    }

    #[test]
    fn all_codes_come_back() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(e4m3_from_f32(e4m3_to_f32(code)), code);
        }
        assert_eq!(e4m3_from_f32(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn all_ties_go_to_even_and_their_neighbours_to_the_nearest() {
        for ((low, a), (high, b)) in magnitudes().zip(magnitudes().skip(1)) {
            let middle = f32::midpoint(a, b);
            let even = if low % 2 == 0 { low } else { high };
            assert_eq!(e4m3_from_f32(middle), even, "between {a} and {b}");
            assert_eq!(e4m3_from_f32(middle.next_down()), low);
            assert_eq!(e4m3_from_f32(middle.next_up()), high);
            assert_eq!(e4m3_from_f32(-middle), even | 0x80);
        }
    }

    #[test]
    fn beyond_the_largest_saturates() {
        for value in [448.0, 464.0, 480.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((e4m3_from_f32(value), e4m3_from_f32(-value)), (0x7e, 0xfe));
        }
    }

    proptest! {
        #[test]
        fn rounding_without_branches_is_the_same(value in -600f32..600.0, shift in -20i32..1) {
            let value = value * 2f32.powi(shift);
            let expected = e4m3_to_f32(e4m3_from_f32(value));
            prop_assert_eq!(round_to_e4m3(value).to_bits(), expected.to_bits());
        }
    }
}
