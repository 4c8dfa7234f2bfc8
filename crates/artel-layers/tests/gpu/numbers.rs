//! Numbers to compute with, and how near results must be.

use artel_moe::quant::Element;

/// Numbers from -1.5 to 1.5 without a pattern that a row or a head could share.
pub fn numbers<A: Element>(count: usize, seed: usize) -> Vec<A> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            A::from_f32(((state >> 40) as f32 / 8_388_608.0 - 1.0) * 1.5)
        })
        .collect()
}

/// Exact.
pub fn widened<A: Element>(values: &[A]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// Half a unit in the last place of numbers near 1, and a little for the sums before.
pub fn rounding<A: Element>() -> f64 {
    match A::NAME {
        "bf16" => 1.0 / 256.0 + 1e-4,
        "f16" => 1.0 / 2048.0 + 1e-4,
        _ => 1e-5,
    }
}

/// Every number within `tolerance` of what is expected, relative to 1 and to the number.
#[track_caller]
pub fn assert_close<A: Element>(found: &[A], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found.to_f32()) - expected).abs();
        let near = error <= tolerance * (1.0 + expected.abs());
        assert!(near, "{found:?} for {expected} at {index}");
    }
}
