//! The router's weight on the input of the experts, as Llama 4 has it: with one expert a token, its
//! hidden state is multiplied by the weight before the first product, `[T, H]` to `[T, H]`, and
//! experts' outputs are summed with weights of one.
//!
//! The CPU multiplies the first product's result instead, which is the same number rounded elsewhere.
//!
//! Example, `H = 2`: the row `[1, 3]` with the weight 0.5 becomes `[0.5, 1.5]`.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

#[cfg(test)]
mod tests {
    use super::reference::weigh_rows;

    #[test]
    fn the_example() {
        assert_eq!(weigh_rows(&[1.0, 3.0], &[0.5], 2), [0.5, 1.5]);
    }

    #[test]
    fn no_rows() {
        assert!(weigh_rows(&[], &[], 4).is_empty());
    }
}
