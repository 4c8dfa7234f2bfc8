//! Finding one token of a row by its place among all, four bits of the place a launch.
//!
//! The place of a token is 51 bits: 31 of how much less probable than the largest it is (the bits of the
//! float32 `(largest - logit) / temperature`, which order as the number does) and 20 of its id. So no two
//! tokens have the same place, and where rows are not cut the first part is left out: tokens then go by
//! id.
//!
//! A [`Stage`] looks for the first token, in order of places, with which a running sum reaches a target:
//! top-k counts tokens, top-p and the draw add their weights in float64. Each launch adds up the
//! tokens of 16 neighbouring ranges of places, chunk by chunk; the next one adds the chunks in order,
//! picks the range in which the target is reached and looks into it.
//!
//! Example: weights 1, 0.5, 0.5 of tokens 7, 3 and 9, and the random number 0.6 of a row that is cut: the
//! target is 1.2, the sums in order of places are 1 and 1.5, so it is token 3.

pub mod cuda;
mod sums;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The last token that top-k keeps.
    TopK,
    /// The last token that top-p keeps.
    TopP,
    /// The token that the random number means.
    Draw,
}

/// Launches that the first part of a place takes.
pub const RANK_LEVELS: usize = 8;

/// Launches that a whole place takes.
pub const LEVELS: usize = 13;

/// How many bits of its part are below those that a level looks at.
pub fn shift(level: usize) -> usize {
    if level < RANK_LEVELS { 28 - 4 * level } else { 16 - 4 * (level - RANK_LEVELS) }
}

#[cfg(test)]
mod tests;
