//! Multi-head latent attention: keys and values of all heads are made from one short vector, and
//! only that vector and one rotary key are cached. Source: DeepSeek-V2, 2024, section 2.1.
//!
//! The cache is never expanded into keys and values. As `q . (W_uk c) = (W_uk^T q) . c`, queries
//! move into the latent space instead, attend there with the latent vectors as keys and as values,
//! and the result moves out through `W_uv`.

use artel_layers::attention::{Attention, AttentionInputs, AttentionShape, ValueStorage};
use artel_layers::linear::Linear;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rope::RopeTarget;
use artel_layers::vector;
use rayon::prelude::*;

use super::Step;
use super::workspace::{AttentionBuffers, BlockWorkspace, sized};
use crate::Result;
use crate::config::{ConfigReader, latent_attention_mscale};
use crate::weights::{Bias, Scope};

/// Epsilon of the norms of the latent vectors. The published model code fixes it; `rms_norm_eps`
/// of `config.json` is for the other norms.
const LATENT_NORM_EPSILON: f32 = 1e-6;

/// What an architecture says about its latent attention.
#[derive(Debug, Clone)]
pub(crate) struct Latent {
    hidden: usize,
    heads: usize,
    /// Length of the latent vector of queries; `None` when queries are made directly.
    query_rank: Option<usize>,
    /// Length of the latent vector of keys and values.
    rank: usize,
    /// Part of a query or key that does not turn.
    nope_dim: usize,
    /// Part that turns.
    rope_dim: usize,
    value_dim: usize,
    bias: Bias,
    scale: f32,
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    pub(crate) query: LatentQuery,
    /// Hidden states to latent vector and rotary key, `[rank + rope_dim, H]`.
    pub(crate) latent: Linear,
    pub(crate) latent_norm: RmsNorm,
    /// `W_uk^T` of each head, `[heads, rank, nope_dim]`. Float32 whatever the checkpoint holds:
    /// it is made by turning a stored matrix around, which blocks of scales do not survive, and it
    /// is small beside the experts.
    pub(crate) into_latent: Vec<f32>,
    /// `W_uv` of each head, `[heads, value_dim, rank]`.
    pub(crate) out_of_latent: Vec<f32>,
    pub(crate) output: Linear,
    pub(crate) nope_dim: usize,
    pub(crate) rope_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) attention: Attention,
}

/// How queries are made.
#[derive(Debug)]
pub(crate) enum LatentQuery {
    Direct(Linear),
    ThroughLatent { down: Box<Linear>, norm: RmsNorm, up: Linear },
}

impl Latent {
    /// Reads the fields of DeepSeek-V2 and -V3.
    pub(crate) fn read(config: &ConfigReader<'_>) -> Result<Self> {
        let (nope_dim, rope_dim) =
            (config.size("qk_nope_head_dim")?, config.size("qk_rope_head_dim")?);
        let scale = ((nope_dim + rope_dim) as f64).powf(-0.5) * latent_attention_mscale(config)?;
        Ok(Self {
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            query_rank: config.optional_size("q_lora_rank")?,
            rank: config.size("kv_lora_rank")?,
            nope_dim,
            rope_dim,
            value_dim: config.size("v_head_dim")?,
            bias: Bias::when(config.flag_or("attention_bias", false)?),
            scale: scale as f32,
        })
    }

    /// Part of a query or key that turns.
    pub(crate) fn rope_dim(&self) -> usize {
        self.rope_dim
    }

    /// Reads the weights of one layer.
    pub(crate) fn read_layer(&self, weights: &Scope<'_, '_>) -> Result<super::Attention> {
        let Self { hidden, heads, rank, nope_dim, rope_dim, value_dim, bias, .. } = *self;
        let (into_latent, out_of_latent) = self.read_expansion(weights)?;
        let shape = AttentionShape {
            query_heads: heads,
            kv_heads: 1,
            key_dim: rank + rope_dim,
            value_dim: rank,
            values: ValueStorage::KeyPrefix,
        };
        let latent_shape = [rank + rope_dim, hidden];
        Ok(super::Attention::Latent(LatentAttention {
            query: self.read_query(weights)?,
            latent: weights.linear("kv_a_proj_with_mqa", latent_shape, bias)?,
            latent_norm: weights.norm("kv_a_layernorm", rank, LATENT_NORM_EPSILON)?,
            into_latent,
            out_of_latent,
            output: weights.linear("o_proj", [hidden, heads * value_dim], bias)?,
            nope_dim,
            rope_dim,
            value_dim,
            attention: Attention::new(shape, self.scale)?,
        }))
    }

    fn read_query(&self, weights: &Scope<'_, '_>) -> Result<LatentQuery> {
        let queries = self.heads * (self.nope_dim + self.rope_dim);
        let Some(rank) = self.query_rank else {
            let shape = [queries, self.hidden];
            return Ok(LatentQuery::Direct(weights.linear("q_proj", shape, Bias::None)?));
        };
        Ok(LatentQuery::ThroughLatent {
            down: Box::new(weights.linear("q_a_proj", [rank, self.hidden], self.bias)?),
            norm: weights.norm("q_a_layernorm", rank, LATENT_NORM_EPSILON)?,
            up: weights.linear("q_b_proj", [queries, rank], Bias::None)?,
        })
    }

    /// Takes `kv_b_proj` `[heads * (nope_dim + value_dim), rank]` apart into `W_uk^T` and `W_uv`.
    fn read_expansion(&self, weights: &Scope<'_, '_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let Self { heads, rank, nope_dim, value_dim, .. } = *self;
        let shape = [heads * (nope_dim + value_dim), rank];
        let expansion = weights.matrix_to_widen("kv_b_proj.weight", shape)?;
        let mut into_latent = vec![0.0; heads * rank * nope_dim];
        let mut out_of_latent = vec![0.0; heads * value_dim * rank];
        let mut row = vec![0.0; rank];
        for head in 0..heads {
            let first = head * (nope_dim + value_dim);
            let turned = &mut into_latent[head * rank * nope_dim..][..rank * nope_dim];
            for column in 0..nope_dim {
                expansion.dequantize_row(first + column, &mut row);
                let places = turned.iter_mut().skip(column).step_by(nope_dim);
                places.zip(&row).for_each(|(place, value)| *place = *value);
            }
            let kept = &mut out_of_latent[head * value_dim * rank..][..value_dim * rank];
            for (index, out) in kept.chunks_exact_mut(rank).enumerate() {
                expansion.dequantize_row(first + nope_dim + index, out);
            }
        }
        Ok((into_latent, out_of_latent))
    }
}

impl LatentAttention {
    pub(super) fn cache_shape(&self) -> AttentionShape {
        *self.attention.shape()
    }

    /// Elements of a token's queries and of its values, all heads together.
    pub(super) fn elements_of_heads(&self) -> usize {
        self.cache_shape().query_heads * (self.nope_dim + self.rope_dim + self.value_dim)
    }

    /// Hidden states `[T, H]` to what attention adds to them, `[T, H]`.
    pub(super) fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        step: Step<'_, '_>,
        out: &mut [f32],
    ) -> Result<()> {
        let (tokens, shape) = (step.rope.tokens(), self.attention.shape());
        let (heads, rank, query_dim) =
            (shape.query_heads, shape.value_dim, self.nope_dim + self.rope_dim);
        let ws = &mut workspace.layers;
        let AttentionBuffers { queries, keys, values, mixed, latent } = &mut workspace.attention;
        let queries = sized(queries, tokens * heads * query_dim);
        let keys = sized(keys, tokens * shape.key_width());

        self.query.forward(ws, hidden, values, queries)?; // [T, heads * query_dim]
        self.latent.forward(ws, hidden, keys)?; // [T, rank + rope_dim]
        self.latent_norm.forward_columns(keys, shape.key_width(), 0..rank)?;
        step.rope.apply(&RopeTarget::heads(heads, query_dim).at(self.nope_dim), queries)?;
        let rotary_key = RopeTarget {
            row_width: shape.key_width(),
            columns: rank..shape.key_width(),
            head_dim: self.rope_dim,
            offset: 0,
        };
        step.rope.apply(&rotary_key, keys)?;

        let latent_queries = sized(latent, tokens * shape.query_width());
        self.move_into_latent(queries, latent_queries); // [T, heads * (rank + rope_dim)]
        let mixed = sized(mixed, tokens * shape.output_width());
        let inputs = AttentionInputs { queries: latent_queries, keys, values: &[] };
        let kv = (step.cache, step.layer);
        self.attention.forward(ws, kv, inputs, step.sequences, mixed)?;
        let values = sized(values, tokens * heads * self.value_dim);
        self.move_out_of_latent(mixed, values); // [T, heads * value_dim]
        Ok(self.output.forward(ws, values, out)?) // [T, H]
    }

    /// `[W_uk^T q_nope; q_rope]` for every head of every token.
    fn move_into_latent(&self, queries: &[f32], out: &mut [f32]) {
        let (heads, rank) = (self.attention.shape().query_heads, self.attention.shape().value_dim);
        let per_head = rank * self.nope_dim;
        let queries = queries.par_chunks_exact(self.nope_dim + self.rope_dim);
        let out = out.par_chunks_exact_mut(rank + self.rope_dim);
        queries.zip(out).enumerate().for_each(|(index, (query, out))| {
            let (nope, rope) = query.split_at(self.nope_dim);
            let matrix = &self.into_latent[index % heads * per_head..][..per_head];
            multiply(matrix, nope, &mut out[..rank]);
            out[rank..].copy_from_slice(rope);
        });
    }

    /// `W_uv c` for every head of every token.
    fn move_out_of_latent(&self, mixed: &[f32], out: &mut [f32]) {
        let (heads, rank) = (self.attention.shape().query_heads, self.attention.shape().value_dim);
        let per_head = self.value_dim * rank;
        let (mixed, out) = (mixed.par_chunks_exact(rank), out.par_chunks_exact_mut(self.value_dim));
        mixed.zip(out).enumerate().for_each(|(index, (latent, out))| {
            let matrix = &self.out_of_latent[index % heads * per_head..][..per_head];
            multiply(matrix, latent, out);
        });
    }
}

/// `out[n] = matrix[n, :] . x`.
fn multiply(matrix: &[f32], x: &[f32], out: &mut [f32]) {
    for (row, out) in matrix.chunks_exact(x.len()).zip(out) {
        *out = vector::dot(row, x);
    }
}

impl LatentQuery {
    fn forward(
        &self,
        workspace: &mut artel_layers::Workspace,
        hidden: &[f32],
        latent: &mut Vec<f32>,
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Direct(query) => Ok(query.forward(workspace, hidden, out)?),
            Self::ThroughLatent { down, norm, up } => {
                let tokens = hidden.len() / down.inputs();
                let latent = sized(latent, tokens * down.outputs());
                down.forward(workspace, hidden, latent)?;
                norm.forward_in_place(latent)?;
                Ok(up.forward(workspace, latent, out)?)
            }
        }
    }
}
