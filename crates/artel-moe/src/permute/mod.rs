//! Permutation: hidden states `[T, H]` in the order of the aligned assignment, one copy for each of a
//! token's experts, so that a product reads the rows of a block as one piece.
//!
//! Example, `K = 2`: two tokens at positions `[4, 0]` and `[5, -1]` make rows 0 and 4 copies of token
//! 0 and row 5 a copy of token 1. Rows that belong to no pair are left as they were.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

#[cfg(test)]
mod tests {
    use super::reference::permute;

    #[test]
    fn the_example() {
        let mut out = [0; 6];
        permute(&[7, 9], 1, &[4, 0, 5, -1], &mut out);
        assert_eq!(out, [7, 0, 0, 0, 7, 9]);
    }

    #[test]
    fn no_rows_and_no_positions() {
        let mut out = [3; 4];
        permute(&[], 2, &[], &mut out);
        permute(&[1, 2], 2, &[-1, -1], &mut out);
        assert_eq!(out, [3; 4]);
    }
}
