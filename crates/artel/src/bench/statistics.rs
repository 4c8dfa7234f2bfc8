//! What all measurements of time are summed up by.

/// The value below which `percent` of `sorted` lie, between two values in proportion, as NumPy's
/// `linear` method has it. `sorted` is not empty.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    // From the nearer side, as NumPy rounds.
    match rank.fract() {
        share if share < 0.5 => below + (above - below) * share,
        share => above - (above - below) * (1.0 - share),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8], [0, 10, 50, 99.9, 100]), to the last bit
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let expected =
            [(0.0, 1.0), (10.0, 1.3), (50.0, 3.0), (99.9, 7.988000000000001), (100.0, 8.0)];
        for (percent, value) in expected {
            assert_eq!(percentile(&sorted, percent), value, "{percent}");
        }
        assert_eq!(percentile(&[5.0], 99.0), 5.0);
    }
}
