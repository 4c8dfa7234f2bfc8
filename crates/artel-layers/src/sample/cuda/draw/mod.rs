//! Drawing a token of each row, to the token as on the CPU.
//!
//! Weights are whole numbers of units of 2^-42 of the largest, so sums do not depend on their order: blocks
//! add what they find to counters. The place of a token in its row is 51 bits, which no two share: 31 of
//! how much less probable than the largest it is (the bits of the float32 `(largest - logit) /
//! temperature`, which order as the number does) and 20 of its id.
//!
//! Most tokens of a row are far too improbable to matter. The least of the largest logits of all groups
//! of tokens is the floor; those from there on mostly suffice for top-k and top-p.
//!
//! 1. Every chunk of the vocabulary counts and weighs its candidates. Those from the floor on are counted
//!    and weighed in [`BINS`] bins of their probability, too.
//! 2. Where a row is not cut, tokens go by id: the chunks' sums say in which one the random number falls,
//!    and a sum over that one, which token.
//! 3. Where it is cut, and tokens from the floor on do not suffice, the others are put into bins as well.
//!    The ids of the tokens in the bins that the row needs are written bin by bin.
//! 4. One block a row finds the place where top-k ends, then where top-p ends among those, then the token:
//!    each time the sums of bins say in which bin it is, and a search among the tokens of that bin, which
//!    one.
//!
//! Bytes: `V` logits for step 1 and once or twice for step 3; they stay in the second cache for some hundred
//! rows.
//!
//! Example: weights 1, 0.5, 0.5 of tokens 7, 3 and 9, and the random number 0.6 of a row that is cut: the
//! target is 1.2, the sums in order of places are 1 and 1.5, so it is token 3.

mod bins;
mod choose;
mod code;
pub mod cuda;

/// Bins of a row: 64 for each power of two of `(largest - logit) / temperature`, from 2^-9 on.
pub const BINS: usize = 1024;

#[cfg(test)]
mod tests;
