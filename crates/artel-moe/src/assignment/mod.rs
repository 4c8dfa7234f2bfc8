//! Assignment: which rows each expert computes.
//!
//! A *pair* is one (token, slot) of the routing, numbered `token * K + slot`; it is the unit of
//! work. The direct form lists one pair a block, the aligned form sorts the pairs by expert and
//! pads every expert's run to a multiple of the block size. Pairs of one expert keep their order.
//!
//! Four tokens, three experts each, blocks of 4. Expert 1 computes pairs 3, 6 and 9; 12 is the
//! sentinel that fills its block:
//!
//! ```
//! use artel_moe::assignment::{AlignOptions, Assignment, Workspace, cpu};
//! let topk_ids = [2, 3, 4, 1, 2, 4, 1, 3, 4, 1, 2, 3];
//! let (mut workspace, mut out) = (Workspace::default(), Assignment::default());
//! cpu::align(&topk_ids, &AlignOptions::new(5, 4), &mut workspace, &mut out)?;
//! assert_eq!(out.num_tokens_post_padded, 16);
//! assert_eq!(out.expert_ids[..4], [1, 2, 3, 4]);
//! assert_eq!(
//!     out.sorted_token_ids[..16],
//!     [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
//! );
//! # Ok::<(), artel_moe::MoeError>(())
//! ```

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod path;
pub mod reference;
#[cfg(feature = "cuda")]
mod by_chunks {
    pub mod cuda;
}
#[cfg(feature = "cuda")]
mod by_runs {
    pub mod cuda;
}
#[cfg(feature = "cuda")]
mod runs {
    pub mod cuda;
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use path::{
    AlignedBecause, AssignmentPath, PathQuery, SPARSITY_FACTOR, choose_path, direct_tokens_max,
};

use crate::{MoeError, eplb::ExpertMap, router::RouterConfig};

/// Largest block. No tile is near it; it keeps a wrong value from asking for all memory.
pub const BLOCK_SIZE_MAX: usize = 1 << 16;

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

impl Assignment {
    /// Blocks in use: (expert, pairs with padding). An expert of -1 is a block to be zeroed.
    pub fn blocks(&self) -> impl Iterator<Item = (i32, &[i32])> {
        let used = &self.sorted_token_ids[..self.num_tokens_post_padded];
        self.expert_ids.iter().copied().zip(used.chunks(self.block_size.max(1)))
    }
}

/// What happens to pairs whose expert lives on another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonLocalExperts {
    /// They are left out, and blocks go by local expert. Their output rows are never written.
    Drop,
    /// They are sorted like the others and their blocks get expert -1: their output rows are zero.
    ZeroBlocks,
}

/// Which of the routed experts this rank computes.
#[derive(Debug, Clone, Copy)]
pub enum LocalExperts<'a> {
    /// All of them, under their own ids.
    All,
    /// Those that the map translates to a local id.
    Mapped(&'a ExpertMap, NonLocalExperts),
}

/// How long `sorted_token_ids` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddedLength {
    /// As long as the worst case needs; the buffer may end inside a block.
    #[default]
    WorstCase,
    /// Rounded up to whole blocks.
    WholeBlocks,
}

/// Parameters of the aligned form.
#[derive(Debug, Clone, Copy)]
pub struct AlignOptions<'a> {
    /// Ids from 0 up to this exist; pairs with any other id are dropped.
    pub num_experts: usize,
    /// Pairs a block holds.
    pub block_size: usize,
    /// Which experts are computed here.
    pub experts: LocalExperts<'a>,
    /// Length of the result.
    pub padded_length: PaddedLength,
}

impl AlignOptions<'_> {
    /// Every expert is local.
    pub fn new(num_experts: usize, block_size: usize) -> Self {
        let experts = LocalExperts::All;
        Self { num_experts, block_size, experts, padded_length: PaddedLength::WorstCase }
    }

    /// Length of `sorted_token_ids` for `num_pairs` pairs: each expert may leave one block almost
    /// empty, but no more blocks are begun than there are pairs.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a block size outside 1 to [`BLOCK_SIZE_MAX`], for more experts than
    /// a router knows and for lengths beyond 32-bit indices.
    pub fn sorted_len(&self, num_pairs: usize) -> Result<usize, MoeError> {
        let (experts, block_size) = (self.num_experts, self.block_size);
        check_block_size(block_size)?;
        if experts > RouterConfig::EXPERTS_MAX {
            let allowed = format!("at most {}", RouterConfig::EXPERTS_MAX);
            return Err(MoeError::config("num_experts", experts, allowed));
        }
        let mut len = num_pairs.saturating_add(experts.saturating_mul(block_size - 1));
        if self.padded_length == PaddedLength::WholeBlocks {
            len = len.checked_next_multiple_of(block_size).unwrap_or(usize::MAX);
        }
        if num_pairs < experts {
            len = len.min(num_pairs.saturating_mul(block_size));
        }
        check_index_range(len)
    }

    fn check(&self) -> Result<(), MoeError> {
        if let LocalExperts::Mapped(map, _) = self.experts {
            MoeError::check_shape("expert_map", self.num_experts, map.num_global())?;
        }
        Ok(())
    }
}

/// Working memory of the counting sorts; reuse it and nothing is allocated.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// Per expert: first its count, then its next free position.
    offsets: Vec<usize>,
}

/// The batched layout `[B, tokens_max, H]`: each expert has its own rows, of which the first few
/// are in use.
#[derive(Debug, Clone, Copy)]
pub struct BatchedTokens<'a> {
    /// Rows in use of each expert, `[B]`, each from 0 to `tokens_max`.
    pub expert_num_tokens: &'a [i32],
    /// Rows an expert has room for.
    pub tokens_max: usize,
}

impl BatchedTokens<'_> {
    /// Length of `sorted_token_ids`: whole blocks for every expert.
    fn sorted_len(&self, block_size: usize) -> Result<usize, MoeError> {
        check_block_size(block_size)?;
        let rows = self.tokens_max.checked_next_multiple_of(block_size).unwrap_or(usize::MAX);
        check_index_range(rows.saturating_mul(self.expert_num_tokens.len()))
    }

    fn check(&self) -> Result<(), MoeError> {
        let fits = |&count: &i32| usize::try_from(count).is_ok_and(|c| c <= self.tokens_max);
        match self.expert_num_tokens.iter().position(|count| !fits(count)) {
            None => Ok(()),
            Some(expert) => {
                let count = self.expert_num_tokens[expert];
                let allowed = format!("0 to {} (rows an expert has room for)", self.tokens_max);
                Err(MoeError::element("expert_num_tokens", expert, count, allowed))
            }
        }
    }
}

/// Which adapter each token uses, and which adapters take part.
#[derive(Debug, Clone, Copy)]
pub struct LoraTokens<'a> {
    /// Adapter of each token, `[T]`; -1: the base model alone.
    pub token_lora_mapping: &'a [i32],
    /// Adapters that occur in the batch, in any order; -1 (the base model) and ids without a slot
    /// are passed over.
    pub active_lora_ids: &'a [i32],
    /// Whether the adapter in each slot may be used, `[max_loras]`.
    pub adapter_enabled: &'a [bool],
}

impl LoraTokens<'_> {
    /// Whether this adapter gets rows: it is active, has a slot and is enabled.
    fn takes_part(&self, lora: usize) -> bool {
        self.adapter_enabled[lora] && self.active_lora_ids.contains(&(lora as i32))
    }

    /// Experts a token.
    fn top_k(&self, topk_ids: &[i32]) -> Result<usize, MoeError> {
        let tokens = self.token_lora_mapping.len();
        let top_k = topk_ids.len().checked_div(tokens).unwrap_or(0);
        MoeError::check_shape("topk_ids", tokens * top_k, topk_ids.len())?;
        Ok(top_k)
    }
}

fn check_block_size(block_size: usize) -> Result<(), MoeError> {
    if (1..=BLOCK_SIZE_MAX).contains(&block_size) {
        Ok(())
    } else {
        Err(MoeError::config("block_size", block_size, format!("1 to {BLOCK_SIZE_MAX}")))
    }
}

fn check_index_range(len: usize) -> Result<usize, MoeError> {
    match i32::try_from(len) {
        Ok(_) => Ok(len),
        Err(_) => {
            let allowed = format!("at most {} (use smaller batches)", i32::MAX);
            Err(MoeError::config("rows of an assignment", len, allowed))
        }
    }
}
