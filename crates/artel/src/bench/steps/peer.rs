//! What vLLM 0.22.0 takes for the same steps on the same GPU, measured in the same way.

const PEER: [(&str, &[(usize, f64)]); 5] = [
    ("pack", &[(1, 0.74), (64, 0.76), (8192, 0.85)]),
    ("route, softmax", &[(1, 4.26), (8, 5.48), (64, 5.72), (512, 6.76), (4096, 13.83)]),
    ("align, blocks of 16", &[(1, 4.62), (8, 4.48), (64, 4.92), (512, 5.80), (4096, 15.23)]),
    ("map and record", &[(1, 2.51), (64, 3.40), (1024, 4.75), (8192, 19.53)]),
    ("map, not recording", &[(1, 1.92), (64, 2.13), (1024, 2.23), (8192, 2.67)]),
];

/// Time of `step` for `tokens` tokens, where it was measured.
pub(super) fn microseconds(step: &str, tokens: usize) -> Option<f64> {
    let (_, times) = PEER.iter().find(|(name, _)| *name == step)?;
    times.iter().find(|(at, _)| *at == tokens).map(|(_, microseconds)| *microseconds)
}
