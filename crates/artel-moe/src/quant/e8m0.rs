//! The scales of MX formats: e8m0, an exponent and nothing else; source: "OCP Microscaling Formats
//! (MX) Specification", version 1.0.

/// Value of an e8m0 code, `2^(code - 127)`; 255 is NaN.
pub const fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22), // 2^-127, below the normal numbers
        255 => f32::NAN,
        _ => f32::from_bits((code as u32) << 23),
    }
}

/// The code of the power of two that a number with exponent bits `exponent` (float32's, so biased by
/// 127 as well) has to be divided by to lie at `2^largest`.
pub(super) fn e8m0_below(exponent: u32, largest: u32) -> u8 {
    exponent.saturating_sub(largest).min(254) as u8
}

/// A code, the one below it and the one above, each with its value.
pub(super) fn e8m0_and_neighbours(code: u8) -> [(u8, f32); 3] {
    [code, code.saturating_sub(1), (code + 1).min(254)].map(|code| (code, e8m0_to_f32(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_codes_are_powers_of_two() {
        for code in 0..255u8 {
            let expected = 2f64.powi(i32::from(code) - 127);
            assert_eq!(f64::from(e8m0_to_f32(code)), expected, "{code}");
        }
        assert!(e8m0_to_f32(255).is_nan());
    }

    #[test]
    fn exponents_become_codes_that_exist() {
        assert_eq!([e8m0_below(127, 2), e8m0_below(1, 2), e8m0_below(0, 2)], [125, 0, 0]);
        assert_eq!(e8m0_below(255, 0), 254);
        let neighbours = |code| e8m0_and_neighbours(code).map(|(code, _)| code);
        assert_eq!(
            [neighbours(0), neighbours(9), neighbours(254)],
            [[0, 0, 1], [9, 8, 10], [254, 253, 254]]
        );
    }
}
