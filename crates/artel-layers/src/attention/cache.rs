//! Keys and values in blocks of a few tokens, which sequences hold by number.

use super::rows::Rows;
use super::{AttentionShape, SequenceTokens, ValueStorage};
use crate::LayersError;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// Number of a block within its [`KvCache`].
pub type BlockId = u32;

/// The cached keys and values of many sequences for all layers, float32.
///
/// The cache is a number of blocks of [`BLOCK_TOKENS`] tokens each. It does not know which sequence
/// a block belongs to: every call brings the blocks of its sequences in order, and sequences that
/// begin alike may bring the same ones. The memory of a block is taken when it is first written, so
/// a cache that is not used costs next to nothing.
///
/// Example: a sequence with the blocks [7, 2] has its tokens 0-15 in block 7 and token 16 in the
/// first row of block 2.
///
/// Within a block, keys and values of one head of one layer are contiguous:
/// `[layer][kv_head]{keys [BLOCK_TOKENS, key_dim], values [BLOCK_TOKENS, value_dim]}`.
#[derive(Debug, Clone)]
pub struct KvCache {
    shape: AttentionShape,
    layers: usize,
    /// Empty until a block is first written.
    blocks: Vec<Box<[f32]>>,
}

impl KvCache {
    /// A cache of `blocks` blocks for `layers` layers.
    pub fn new(layers: usize, shape: AttentionShape, blocks: usize) -> Self {
        Self { shape, layers, blocks: vec![Box::default(); blocks] }
    }

    /// Blocks that `tokens` tokens take.
    pub const fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Every block in order: what the only sequence of a cache brings.
    pub fn all_blocks(&self) -> Vec<BlockId> {
        (0..self.blocks.len() as BlockId).collect()
    }

    /// Bytes that one token takes in all layers.
    pub fn bytes_per_token(layers: usize, shape: &AttentionShape) -> usize {
        layers * (shape.key_width() + shape.value_width()) * size_of::<f32>()
    }

    /// Bytes of the blocks that have been written.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum::<usize>() * size_of::<f32>()
    }

    /// Keys and values of a head in the blocks of a sequence.
    pub(super) fn head<'a>(
        &'a self,
        layer: usize,
        head: usize,
        table: &'a [BlockId],
    ) -> (Rows<'a>, Rows<'a>) {
        let AttentionShape { key_dim, value_dim, .. } = self.shape;
        let offset = self.head_offset(layer, head);
        let keys = Rows { blocks: &self.blocks, table, offset, stride: key_dim, width: key_dim };
        let values = match self.shape.values {
            ValueStorage::Own => {
                let offset = offset + BLOCK_TOKENS * key_dim;
                Rows { offset, stride: value_dim, width: value_dim, ..keys }
            }
            ValueStorage::KeyPrefix => Rows { width: value_dim, ..keys },
        };
        (keys, values)
    }

    /// Refuses tokens of another shape or layer, and those without a block of this cache.
    pub(super) fn check(
        &self,
        layer: usize,
        shape: &AttentionShape,
        sequence: &SequenceTokens<'_>,
    ) -> Result<(), LayersError> {
        if layer >= self.layers {
            let allowed = format!("below {}, the layers of the cache", self.layers);
            return Err(LayersError::config("layer", layer, allowed));
        }
        if self.shape != *shape {
            let (found, expected) = (self.shape.key_width(), shape.key_width());
            return Err(LayersError::Shape { what: "a row of this cache", expected, found });
        }
        let tokens = sequence.cached.saturating_add(sequence.tokens);
        let capacity = sequence.blocks.len() * BLOCK_TOKENS;
        if tokens > capacity {
            return Err(LayersError::ContextFull { tokens, capacity });
        }
        if let Some(block) = sequence.blocks.iter().find(|block| **block as usize >= self.blocks())
        {
            let allowed = format!("below {}, the blocks of the cache", self.blocks());
            return Err(LayersError::config("a block", block, allowed));
        }
        Ok(())
    }

    /// Writes rows `[tokens, kv_heads * dim]` behind the cached tokens of a sequence.
    pub(super) fn write(
        &mut self,
        layer: usize,
        sequence: &SequenceTokens<'_>,
        keys: &[f32],
        values: &[f32],
    ) {
        let AttentionShape { kv_heads, key_dim, value_dim, .. } = self.shape;
        let elements = self.layers * self.layer_elements();
        let (first, head_elements) = (self.head_offset(layer, 0), self.head_elements());
        for token in 0..sequence.tokens {
            let position = sequence.cached + token;
            let (block, row) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
            let block = &mut self.blocks[sequence.blocks[block] as usize];
            if block.is_empty() {
                *block = vec![0.0; elements].into_boxed_slice();
            }
            for head in 0..kv_heads {
                let offset = first + head * head_elements;
                let key = &keys[(token * kv_heads + head) * key_dim..][..key_dim];
                block[offset + row * key_dim..][..key_dim].copy_from_slice(key);
                if self.shape.values == ValueStorage::Own {
                    let value = &values[(token * kv_heads + head) * value_dim..][..value_dim];
                    let offset = offset + BLOCK_TOKENS * key_dim + row * value_dim;
                    block[offset..][..value_dim].copy_from_slice(value);
                }
            }
        }
    }

    /// Numbers that one layer of a block takes.
    fn layer_elements(&self) -> usize {
        BLOCK_TOKENS * (self.shape.key_width() + self.shape.value_width())
    }

    /// Numbers that one head of one layer takes in a block.
    fn head_elements(&self) -> usize {
        self.layer_elements() / self.shape.kv_heads
    }

    /// Where the keys of a head begin in a block.
    fn head_offset(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_elements() + head * self.head_elements()
    }
}
