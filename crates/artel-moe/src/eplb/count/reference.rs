//! The definition.

use super::CountShape;

/// Adds the pairs of all layers to `counts` `[layers, E]`.
pub fn count_pairs(shape: &CountShape, ids: &[i32], counts: &mut [i32]) {
    for layer in 0..shape.layers {
        for pair in 0..shape.pairs {
            let expert = usize::try_from(ids[layer * shape.stride + pair]);
            if let Some(expert) = expert.ok().filter(|&expert| expert < shape.experts) {
                let count = &mut counts[layer * shape.experts + expert];
                *count = count.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation() {
        let shape = CountShape { layers: 2, pairs: 2, stride: 3, experts: 3 };
        let mut counts = [1, 0, 0, 0, 0, i32::MAX];
        count_pairs(&shape, &[0, 2, 1, 2, 2, 0], &mut counts);
        assert_eq!(counts, [2, 0, 1, 0, 0, i32::MIN + 1]);
        count_pairs(&shape, &[-1, 3, 1, i32::MIN, i32::MAX, 0], &mut counts);
        assert_eq!(counts, [2, 0, 1, 0, 0, i32::MIN + 1], "no experts");
        assert!(CountShape { pairs: 4, ..shape }.check().is_err());
        assert!(CountShape { layers: 1 << 30, ..shape }.check().is_err());
    }
}
