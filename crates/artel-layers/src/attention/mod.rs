//! Causal attention over a key-value cache, for a ragged batch of sequences.
//!
//! ```text
//! logit[t, h, j] = scale * queries[t, h, :] . keys[j, h / G, :]      j <= position of t
//! out[t, h, :]   = Σ_j softmax_j(logit[t, h, :]) * values[j, h / G, :]
//! ```
//! `G` query heads share a key-value head. A sliding window of `W` keeps the keys with
//! `position - j < W`, the token itself included. A sink is one more logit per query head that
//! takes part in the softmax and has no value.
//!
//! Keys and values lie in blocks of [`BLOCK_TOKENS`] tokens; a sequence brings the numbers of its
//! blocks. Where they lie does not change a bit.
//!
//! The batch is ragged: sequence `s` brings `tokens` new rows, which follow those of sequence
//! `s - 1`. Prefill, a chunk of a prefill and decoding are one operation; only the number of new
//! rows differs. The result of a token does not depend on how its prompt was cut into chunks or on
//! what else is in the batch, to the last bit.
//!
//! Example: sequences with 3 and 5 cached tokens bring 2 and 1 new ones: `queries` has 3 rows, at
//! positions 3, 4 and 5, and the rows attend to 4, 5 and 6 keys.
//!
//! Multi-head latent attention is the same operation with one key-value head whose values are the
//! first columns of its keys ([`ValueStorage::KeyPrefix`]): queries and outputs are then moved into
//! the latent space by the caller. Sources: Vaswani et al. 2017; Ainslie et al., "GQA", 2023;
//! Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; DeepSeek-V2, 2024.

mod cache;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod decode;
#[cfg(feature = "cuda")]
pub mod latent;
#[cfg(feature = "cuda")]
pub mod prefill;
pub mod reference;
mod rows;
#[cfg(test)]
mod tests;
mod tile;

pub use cache::{BLOCK_TOKENS, BlockId, KvCache};

use crate::{LayersError, Workspace};

/// Where the values of a cached token lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueStorage {
    /// Beside the keys.
    Own,
    /// The first `value_dim` elements of the key: latent attention.
    KeyPrefix,
}

/// Heads and their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads of a token.
    pub query_heads: usize,
    /// Key-value heads of a token; divides `query_heads`.
    pub kv_heads: usize,
    /// Elements of a query and of a key.
    pub key_dim: usize,
    /// Elements of a value and of an output.
    pub value_dim: usize,
    /// Where values lie.
    pub values: ValueStorage,
}

impl AttentionShape {
    /// Elements of a row of queries.
    pub fn query_width(&self) -> usize {
        self.query_heads * self.key_dim
    }

    /// Elements of a row of keys.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.key_dim
    }

    /// Elements of a row of values as the caller passes it: none for [`ValueStorage::KeyPrefix`].
    pub fn value_width(&self) -> usize {
        match self.values {
            ValueStorage::Own => self.kv_heads * self.value_dim,
            ValueStorage::KeyPrefix => 0,
        }
    }

    /// Elements of a row of outputs.
    pub fn output_width(&self) -> usize {
        self.query_heads * self.value_dim
    }

    fn check(&self) -> Result<(), LayersError> {
        let counts = [
            ("query_heads", self.query_heads),
            ("kv_heads", self.kv_heads),
            ("key_dim", self.key_dim),
            ("value_dim", self.value_dim),
        ];
        for (field, value) in counts {
            if value == 0 || value > 1 << 20 {
                return Err(LayersError::config(field, value, "in 1..=1048576"));
            }
        }
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            let allowed = format!("a multiple of the {} kv_heads", self.kv_heads);
            return Err(LayersError::config("query_heads", self.query_heads, allowed));
        }
        if self.values == ValueStorage::KeyPrefix && self.value_dim > self.key_dim {
            let allowed = format!("at most key_dim, {}, when values are its prefix", self.key_dim);
            return Err(LayersError::config("value_dim", self.value_dim, allowed));
        }
        Ok(())
    }
}

/// One layer's attention.
#[derive(Debug, Clone)]
pub struct Attention {
    shape: AttentionShape,
    scale: f32,
    /// Keys a token sees, itself included; `usize::MAX` without a window.
    window: usize,
    /// One logit a query head, or none at all.
    sinks: Vec<f32>,
}

/// The rows of one step, new tokens only.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// `[T, query_heads * key_dim]`.
    pub queries: &'a [f32],
    /// `[T, kv_heads * key_dim]`.
    pub keys: &'a [f32],
    /// `[T, kv_heads * value_dim]`; empty for [`ValueStorage::KeyPrefix`].
    pub values: &'a [f32],
}

/// The part of a step that belongs to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceTokens<'a> {
    /// The blocks of the sequence in order, with room for the new tokens. What is written must not
    /// be in the blocks of another sequence.
    pub blocks: &'a [BlockId],
    /// Tokens that are in the cache: the position of the first new one.
    pub cached: usize,
    /// New tokens of this step.
    pub tokens: usize,
}

impl Attention {
    /// Attention to everything before, with `scale` on the logits.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a shape that is impossible or a scale that is not finite.
    pub fn new(shape: AttentionShape, scale: f32) -> Result<Self, LayersError> {
        shape.check()?;
        if !scale.is_finite() {
            return Err(LayersError::config("the softmax scale", scale, "finite"));
        }
        Ok(Self { shape, scale, window: usize::MAX, sinks: Vec::new() })
    }

    /// The same attention to the last `window` tokens only, the token itself included.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a window of 0.
    pub fn with_window(self, window: usize) -> Result<Self, LayersError> {
        if window == 0 {
            return Err(LayersError::config("sliding_window", window, "at least 1"));
        }
        Ok(Self { window, ..self })
    }

    /// The same attention with one more logit for each query head in its softmax.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when there is not one sink for each query head.
    pub fn with_sinks(self, sinks: Vec<f32>) -> Result<Self, LayersError> {
        LayersError::check_shape("the attention sinks", self.shape.query_heads, sinks.len())?;
        Ok(Self { sinks, ..self })
    }

    /// Heads and their sizes.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// What logits are multiplied by.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Keys that a token sees, itself included; `None` without a window.
    pub fn window(&self) -> Option<usize> {
        (self.window < usize::MAX).then_some(self.window)
    }

    /// One more logit for each query head, or none at all.
    pub fn sinks(&self) -> &[f32] {
        &self.sinks
    }

    /// Writes keys and values of the new tokens to layer `layer` of the cache, then attends;
    /// `out` is `[T, query_heads * value_dim]`.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when a buffer does not hold the rows of all sequences or the cache has
    /// another shape, [`LayersError::ContextFull`] when a sequence has too few blocks for its new
    /// tokens and [`LayersError::Config`] for a layer or block that the cache does not have. The
    /// cache has not changed then.
    pub fn forward(
        &self,
        workspace: &Workspace,
        (cache, layer): (&mut KvCache, usize),
        inputs: AttentionInputs<'_>,
        sequences: &[SequenceTokens<'_>],
        out: &mut [f32],
    ) -> Result<(), LayersError> {
        self.check(&inputs, sequences, out.len())?;
        for sequence in sequences {
            cache.check(layer, &self.shape, sequence)?;
        }
        let (mut keys, mut values) = (inputs.keys, inputs.values);
        for sequence in sequences {
            let (own_keys, later_keys) = keys.split_at(sequence.tokens * self.shape.key_width());
            let (own_values, later_values) =
                values.split_at(sequence.tokens * self.shape.value_width());
            cache.write(layer, sequence, own_keys, own_values);
            (keys, values) = (later_keys, later_values);
        }
        let mut tiles = cpu::tiles(self, inputs.queries, (cache, layer), sequences, out);
        cpu::attend(workspace.features(), &mut tiles);
        Ok(())
    }

    fn check(
        &self,
        inputs: &AttentionInputs<'_>,
        sequences: &[SequenceTokens<'_>],
        out: usize,
    ) -> Result<(), LayersError> {
        let tokens = sequences.iter().fold(0, |sum: usize, part| sum.saturating_add(part.tokens));
        let expected = |width: usize| tokens.saturating_mul(width);
        let (queries, keys) = (self.shape.query_width(), self.shape.key_width());
        LayersError::check_shape("the queries", expected(queries), inputs.queries.len())?;
        LayersError::check_shape("the keys", expected(keys), inputs.keys.len())?;
        let values = self.shape.value_width();
        LayersError::check_shape("the values", expected(values), inputs.values.len())?;
        LayersError::check_shape(
            "the output of attention",
            expected(self.shape.output_width()),
            out,
        )
    }
}
