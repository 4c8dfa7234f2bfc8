//! Assignment: which rows each expert computes.
//!
//! A *pair* is one (token, slot) of the routing, numbered `token * K + slot`; it is the unit of
//! work. The direct form lists one pair a block, the aligned form sorts the pairs by expert and
//! pads every expert's run to a multiple of the block size.

/// The rows of work of one step, grouped into blocks that each belong to one expert.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Assignment {
    /// Pairs in the order in which they are computed, `block_size` a block. Positions that hold
    /// no work contain `num_pairs` (the sentinel).
    pub sorted_token_ids: Vec<i32>,
    /// Expert of each block; `-1`: nobody here computes this block, its output rows are zero.
    pub expert_ids: Vec<i32>,
    /// Positions of `sorted_token_ids` in use, padding included; what lies behind is ignored.
    pub num_tokens_post_padded: usize,
    /// Pairs a block holds: 1 for the direct form.
    pub block_size: usize,
    /// `T * K`.
    pub num_pairs: usize,
}
