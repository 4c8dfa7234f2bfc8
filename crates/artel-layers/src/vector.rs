//! Arithmetic on slices in one fixed order, written so that the compiler turns it into SIMD.
//!
//! Sums run in [`LANES`] partial sums that are added in a fixed tree, and a product is rounded
//! before it is added. The result is therefore the same on every machine and at every width.

/// Partial sums of a reduction.
pub const LANES: usize = 16;

/// `Σ a[i] * b[i]` over the shorter of the two.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let common = a.len().min(b.len());
    let (a_chunks, a_tail) = a[..common].as_chunks::<LANES>();
    let (b_chunks, b_tail) = b[..common].as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    a_tail.iter().zip(b_tail).zip(&mut sums).for_each(|((a, b), sum)| *sum += a * b);
    sum_lanes(sums)
}

/// `Σ values[i]`.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    tail.iter().zip(&mut sums).for_each(|(value, sum)| *sum += value);
    sum_lanes(sums)
}

/// The largest value; NaN is passed over, and nothing at all gives negative infinity.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            best[lane] = larger(best[lane], chunk[lane]);
        }
    }
    best.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// The end of a reduction.
#[inline(always)]
pub fn sum_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `e^x` within two units in the last place for results down to the smallest normal number, and
/// exactly 0 below that; NaN stays NaN and what exceeds float32 is infinite.
///
/// `e^x = 2^n * e^r` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; `e^r` is its Taylor series,
/// whose seventh term is below half a unit in the last place. There is no branch, so a loop over
/// it becomes SIMD.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // ln 2 in two parts: the product of the first with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to an integer that sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = x.clamp(-126.0 * std::f32::consts::LN_2, 128.0 * std::f32::consts::LN_2);
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // 2^n in two factors, because 2^128 has no float32.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let result = series * power(half) * power(n - half);
    let too_small = x < -126.0 * std::f32::consts::LN_2;
    let too_large = x > 128.0 * std::f32::consts::LN_2;
    let result = if too_small { 0.0 } else { result };
    let result = if too_large { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_within_two_units_in_the_last_place(x in -87.3f32..88.7) {
            let expected = f64::from(x).exp();
            let unit = expected * f64::from(f32::EPSILON);
            prop_assert!((f64::from(exp(x)) - expected).abs() <= 2.0 * unit, "{x}: {}", exp(x));
        }

        #[test]
        fn dot_is_the_sum_of_products(values in prop::collection::vec(-4f32..4.0, 0..70)) {
            let other: Vec<f32> = values.iter().map(|value| 1.0 - value).collect();
            let expected: f64 =
                values.iter().zip(&other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((f64::from(dot(&values, &other)) - expected).abs() < 1e-3);
            let total: f64 = values.iter().map(|value| f64::from(*value)).sum();
            prop_assert!((f64::from(sum(&values)) - total).abs() < 1e-4);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(max(&values), largest);
        }
    }

    #[test]
    fn the_shorter_slice_counts() {
        let long: Vec<f32> = (0..40).map(|value| value as f32).collect();
        for length in [0, 1, 15, 16, 17, 33] {
            let expected: f32 = long[..length].iter().map(|value| value * value).sum();
            assert_eq!(dot(&long, &long[..length]), expected);
            assert_eq!(dot(&long[..length], &long), expected);
        }
    }

    #[test]
    fn exp_at_its_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn max_passes_over_nan() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::NAN, 1.0, f32::NAN]), 1.0);
        let mut values = vec![-3.0; 35];
        values[17] = f32::NAN;
        values[20] = -1.0;
        assert_eq!(max(&values), -1.0);
    }
}
