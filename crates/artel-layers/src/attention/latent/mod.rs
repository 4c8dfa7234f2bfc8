//! Attention in the latent space: one key for all query heads, whose value is its beginning.
//!
//! On a GPU as on the CPU, queries move into the latent space, where a token's key is its latent vector
//! and one rotary key ([`ValueStorage::KeyPrefix`]), and the cache is never expanded into keys and
//! values. For a token that is decoded nothing else is possible: with 128 heads, expanded keys and values
//! are 71 times the bytes. Prompts could attend to expanded keys with 3.4 times fewer operations.
//! They do not: their keys would have to be made anew for every piece of a prompt, in 64 KB a key of
//! memory that somebody must have, and a token's result would depend on how its prompt was cut.
//!
//! Source: DeepSeek-V2, 2024, section 2.1.

pub mod decode;
pub mod heads;
pub mod prefill;
pub mod project;
pub mod steps;

use super::{AttentionShape, ValueStorage};
use crate::LayersError;
use crate::rope::RopeStyle;

/// The joint projection of hidden states to query latents, or queries, and to latent vector and rotary
/// key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentProjection {
    /// Columns before the latent vector: query latents, or whole queries.
    pub query_columns: usize,
    /// Epsilon of the norm of the query latents, where they have one.
    pub query_epsilon: Option<f32>,
    /// Elements of the latent vector.
    pub rank: usize,
    /// Epsilon of its norm.
    pub epsilon: f32,
    /// Elements of the rotary key.
    pub rope_dim: usize,
    /// Which of them turn together.
    pub style: RopeStyle,
    /// Whether query latents are stored as FP8 codes.
    pub codes: bool,
    /// Parts in which the rows of few tokens may come, 2, 4 or 8; 1 for none.
    pub parts: usize,
}

impl LatentProjection {
    /// Elements of a row.
    pub fn row_width(&self) -> usize {
        self.query_columns + self.rank + self.rope_dim
    }
}

/// Query heads of a block of threads: as many rows as one matrix instruction has.
const BLOCK_HEADS: usize = 64;

/// Sizes that the kernels are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LatentSizes {
    /// Blocks of threads that share the heads of a token.
    pub(super) head_blocks: usize,
    /// Elements of a latent vector.
    pub(super) rank: usize,
    /// Elements that turn.
    pub(super) rope_dim: usize,
    /// Warps that compute.
    pub(super) warps: usize,
}

impl LatentSizes {
    /// Checks what kernels need of a shape.
    ///
    /// # Errors
    /// [`LayersError::Config`] for sizes without kernels.
    pub(super) fn new(shape: &AttentionShape) -> Result<Self, LayersError> {
        let AttentionShape { query_heads, kv_heads, key_dim, value_dim, values } = *shape;
        if values != ValueStorage::KeyPrefix || kv_heads != 1 {
            let allowed = "one key-value head whose values are the beginnings of its keys";
            return Err(LayersError::config("attention", format!("{shape:?}"), allowed));
        }
        if !matches!(value_dim, 128 | 256 | 512) {
            let allowed = "128, 256 or 512 on a GPU";
            return Err(LayersError::config("kv_lora_rank", value_dim, allowed));
        }
        let rope_dim = key_dim - value_dim;
        if !matches!(rope_dim, 16 | 32 | 64 | 128) {
            let allowed = "16, 32, 64 or 128 on a GPU";
            return Err(LayersError::config("qk_rope_head_dim", rope_dim, allowed));
        }
        let head_blocks = query_heads.div_ceil(BLOCK_HEADS);
        // What 64 heads sum up of 512 numbers fills half of the registers of eight warps.
        let warps = if value_dim > 256 { 8 } else { 4 };
        Ok(Self { head_blocks, rank: value_dim, rope_dim, warps })
    }
}
