//! Attention in which groups of query heads share a key-value head.

use artel_layers::attention::{Attention, AttentionInputs, AttentionShape, ValueStorage};
use artel_layers::linear::Linear;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rope::{Rope, RopeStyle, RopeTarget};

use super::Step;
use super::workspace::{AttentionBuffers, BlockWorkspace, sized};
use crate::Result;
use crate::config::{ConfigReader, RotaryPart, rms_norm_epsilon, rope_config};
use crate::weights::{Bias, Scope};

/// What an architecture says about its attention.
#[derive(Debug, Clone)]
pub(crate) struct GroupedQuery {
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) epsilon: f32,
    /// Of queries, keys and values.
    pub(crate) input_bias: Bias,
    pub(crate) output_bias: Bias,
    pub(crate) qk_norm: QkNorm,
    /// Largest magnitude of queries, keys and values: OLMoE's `clip_qkv`.
    pub(crate) clip: Option<f32>,
}

/// The norm of queries and keys before they turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Each head by itself.
    PerHead,
    /// All heads of a token together.
    Whole,
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct GroupedQueryAttention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) norms: Option<(RmsNorm, RmsNorm)>,
    pub(crate) clip: Option<f32>,
    pub(crate) attention: Attention,
}

impl GroupedQuery {
    /// What the fields that all architectures share say: no biases, no norm, no clipping.
    pub(crate) fn read(config: &ConfigReader<'_>) -> Result<Self> {
        let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let allowed = format!("a divisor of num_attention_heads, {heads}");
            return Err(config.error("num_key_value_heads", allowed));
        }
        let head_dim = match config.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let allowed = format!("a number, as {heads} heads do not divide {hidden}");
                return Err(config.error("head_dim", allowed));
            }
        };
        Ok(Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            epsilon: rms_norm_epsilon(config)?,
            input_bias: Bias::None,
            output_bias: Bias::None,
            qk_norm: QkNorm::None,
            clip: None,
        })
    }

    /// The same with the biases that `attention_bias` of `config.json` asks for.
    pub(crate) fn with_attention_bias(self, config: &ConfigReader<'_>) -> Result<Self> {
        let bias = Bias::when(config.flag_or("attention_bias", false)?);
        Ok(Self { input_bias: bias, output_bias: bias, ..self })
    }

    /// The rotary embedding of these heads.
    pub(crate) fn rope(&self, config: &ConfigReader<'_>, part: RotaryPart) -> Result<Rope> {
        Ok(Rope::new(&rope_config(config, self.head_dim, part, RopeStyle::NeoX)?)?)
    }

    /// Attention over everything before, with the usual scale. An architecture adds its window or
    /// sinks.
    pub(crate) fn full_attention(&self) -> Result<Attention> {
        let shape = AttentionShape {
            query_heads: self.heads,
            kv_heads: self.kv_heads,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
            values: ValueStorage::Own,
        };
        Ok(Attention::new(shape, (self.head_dim as f32).powf(-0.5))?)
    }

    /// Attention over the last `window` tokens where there is a window, else over everything.
    pub(crate) fn windowed_attention(&self, window: Option<usize>) -> Result<Attention> {
        let attention = self.full_attention()?;
        Ok(match window {
            Some(window) => attention.with_window(window)?,
            None => attention,
        })
    }

    /// Reads `q_proj`, `k_proj`, `v_proj`, `o_proj` and the norms of one layer.
    pub(crate) fn read_layer(
        &self,
        weights: &Scope<'_, '_>,
        attention: Attention,
    ) -> Result<super::Attention> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let input = |name, outputs| weights.linear(name, [outputs, self.hidden], self.input_bias);
        let norms = match self.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((self.head_dim, self.head_dim)),
            QkNorm::Whole => Some((queries, keys)),
        };
        let norm = |name, width| weights.norm(name, width, self.epsilon);
        let norms = norms
            .map(|(q, k)| Ok::<_, crate::ModelError>((norm("q_norm", q)?, norm("k_norm", k)?)));
        Ok(super::Attention::GroupedQuery(GroupedQueryAttention {
            query: input("q_proj", queries)?,
            key: input("k_proj", keys)?,
            value: input("v_proj", keys)?,
            output: weights.linear("o_proj", [self.hidden, queries], self.output_bias)?,
            norms: norms.transpose()?,
            clip: self.clip,
            attention,
        }))
    }
}

impl GroupedQueryAttention {
    pub(super) fn cache_shape(&self) -> AttentionShape {
        *self.attention.shape()
    }

    /// Hidden states `[T, H]` to what attention adds to them, `[T, H]`.
    pub(super) fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        step: Step<'_, '_>,
        out: &mut [f32],
    ) -> Result<()> {
        let (ws, tokens, shape) =
            (&mut workspace.layers, step.rope.tokens(), self.attention.shape());
        let AttentionBuffers { queries, keys, values, mixed, .. } = &mut workspace.attention;
        let queries = sized(queries, tokens * shape.query_width());
        let keys = sized(keys, tokens * shape.key_width());
        let values = sized(values, tokens * shape.value_width());
        let mixed = sized(mixed, tokens * shape.output_width());

        self.query.forward(ws, hidden, queries)?; // [T, heads * D]
        self.key.forward(ws, hidden, keys)?; // [T, kv_heads * D]
        self.value.forward(ws, hidden, values)?;
        if let Some((query_norm, key_norm)) = &self.norms {
            query_norm.forward_in_place(queries)?;
            key_norm.forward_in_place(keys)?;
        }
        if let Some(clip) = self.clip {
            let all = queries.iter_mut().chain(&mut *keys).chain(&mut *values);
            all.for_each(|value| *value = value.clamp(-clip, clip));
        }
        let target = |heads| RopeTarget::heads(heads, shape.key_dim);
        step.rope.apply(&target(shape.query_heads), queries)?;
        step.rope.apply(&target(shape.kv_heads), keys)?;
        let inputs = AttentionInputs { queries, keys, values };
        let kv = (step.cache, step.layer);
        self.attention.forward(ws, kv, inputs, step.sequences, mixed)?;
        Ok(self.output.forward(ws, mixed, out)?) // [T, H]
    }
}
