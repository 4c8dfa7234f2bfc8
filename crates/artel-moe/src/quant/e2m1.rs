//! The numbers of FP4: e2m1, a sign, two bits of exponent and one of mantissa. No infinities and no
//! NaN; source: "OCP Microscaling Formats (MX) Specification", version 1.0.

/// Largest e2m1 value.
pub const E2M1_MAX: f32 = 6.0;

/// Values of the codes without a sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Value of an e2m1 code; only its low four bits count.
pub const fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = MAGNITUDES[(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Nearest e2m1 code, ties to even; beyond 6 saturates. NaN becomes 6, as the conversion of GPUs
/// has it.
pub fn e2m1_from_f32(value: f32) -> u8 {
    if value.is_nan() {
        return 7;
    }
    let magnitude = value.abs();
    // Midpoints of neighbours: they belong to the code that is even.
    let above = [
        magnitude > 0.25,
        magnitude >= 0.75,
        magnitude > 1.25,
        magnitude >= 1.75,
        magnitude > 2.5,
        magnitude >= 3.5,
        magnitude > 5.0,
    ];
    let sign = if value.is_sign_negative() { 8 } else { 0 };
    sign | above.into_iter().map(u8::from).sum::<u8>()
}

/// The value of the nearest e2m1 code, as [`e2m1_from_f32`] chooses it, without branches.
#[inline(always)]
pub(super) fn round_to_e2m1(value: f32) -> f32 {
    // A number 2^22 times the magnitude's power of two has its last place where e2m1 has it, so adding
    // and subtracting it rounds. Below 2 the step stays a half.
    let magnitude = value.abs();
    let limited = if magnitude < E2M1_MAX { magnitude } else { E2M1_MAX };
    let exponent = (limited.to_bits() >> 23).max(127);
    let shift = f32::from_bits((exponent + 22) << 23);
    ((limited + shift) - shift).copysign(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_without_branches_is_the_same(bits in any::<u32>(), small in -8f32..8.0) {
            for value in [f32::from_bits(bits), small, (small * 4.0).round() / 4.0] {
                if !value.is_nan() {
                    let expected = e2m1_to_f32(e2m1_from_f32(value));
                    prop_assert_eq!(round_to_e2m1(value).to_bits(), expected.to_bits());
                }
            }
        }
    }

    #[test]
    fn all_codes_have_the_values_of_the_standard_and_come_back() {
        for code in 0..16u8 {
            let sign = if code < 8 { 1.0 } else { -1.0 };
            let (exponent, mantissa) = (i32::from(code >> 1 & 3), f32::from(code & 1));
            let expected = match exponent {
                0 => sign * mantissa / 2.0,
                _ => sign * (1.0 + mantissa / 2.0) * 2f32.powi(exponent - 1),
            };
            let found = e2m1_to_f32(code);
            assert_eq!(found.to_bits(), expected.to_bits(), "{code}");
            assert_eq!(e2m1_to_f32(code | 0xf0).to_bits(), expected.to_bits());
            assert_eq!(e2m1_from_f32(found), code);
        }
    }

    #[test]
    fn all_ties_go_to_even_and_their_neighbours_to_the_nearest() {
        let ties = [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0)];
        for (index, (tie, even)) in ties.into_iter().chain([(5.0, 4.0)]).enumerate() {
            let (low, high) = (MAGNITUDES[index], MAGNITUDES[index + 1]);
            assert_eq!(f32::midpoint(low, high), tie);
            for sign in [1.0, -1.0] {
                let rounded = |value: f32| e2m1_to_f32(e2m1_from_f32(sign * value));
                assert_eq!(rounded(tie), sign * even);
                assert_eq!(rounded(tie.next_down()), sign * low);
                assert_eq!(rounded(tie.next_up()), sign * high);
            }
        }
    }

    #[test]
    fn beyond_the_largest_saturates_and_zero_keeps_its_sign() {
        for value in [6.0, 6.5, 1e9, f32::INFINITY] {
            assert_eq!((e2m1_from_f32(value), e2m1_from_f32(-value)), (7, 15));
        }
        assert_eq!((e2m1_from_f32(0.0), e2m1_from_f32(-0.0)), (0, 8));
        assert_eq!((e2m1_from_f32(1e-30), e2m1_from_f32(f32::NAN)), (0, 7));
    }
}
