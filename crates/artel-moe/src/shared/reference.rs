//! The definition, in float64.

/// Adds `shared` `[T, H]` to `out` `[T, H]`; `gate` has one weight a column, or none at all.
pub fn add_shared(hidden: &[f32], gate: &[f32], shared: &[f32], out: &mut [f64]) {
    let width = if gate.is_empty() { out.len().max(1) } else { gate.len() };
    for (row, out) in out.chunks_mut(width).enumerate() {
        let shared = &shared[row * width..][..out.len()];
        let open = if gate.is_empty() {
            1.0
        } else {
            let products = hidden[row * width..].iter().zip(gate);
            let logit = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
            1.0 / (1.0 + (-logit).exp())
        };
        out.iter_mut().zip(shared).for_each(|(out, &shared)| *out += open * f64::from(shared));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let mut out = [1.0, 1.0];
        add_shared(&[3.0, 0.0], &[0.0, 5.0], &[2.0, 4.0], &mut out);
        assert_eq!(out, [2.0, 3.0]);
        add_shared(&[], &[], &[2.0, 4.0], &mut out);
        assert_eq!(out, [4.0, 7.0]);
    }
}
