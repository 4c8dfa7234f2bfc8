//! The decoder: what all architectures have in common. [`Decoder::forward`] is the model.
//!
//! Dimensions: `T` tokens of a step over all sequences, `H` hidden size, `V` vocabulary. The
//! residual stream and everything between operations is float32; weights keep their format.

mod grouped_query;
mod latent;
mod mlp;
mod moe;
mod workspace;

use artel_layers::attention::{AttentionShape, BlockId, KvCache, SequenceTokens};
use artel_layers::embedding::Embedding;
use artel_layers::linear::Linear;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rope::{Rope, RopeTable};
use artel_moe::dispatch::RankGroup;
use artel_moe::layer::AnyMoeLayer;
pub(crate) use grouped_query::{GroupedQuery, GroupedQueryAttention, QkNorm};
#[cfg(feature = "cuda")]
pub(crate) use latent::LatentQuery;
pub(crate) use latent::{Latent, LatentAttention};
pub(crate) use mlp::{DenseMlp, GATE_UP_DOWN, ProjectionNames};
pub(crate) use moe::{MoeBlock, MoeParts, RoutedExperts, SharedExpert};
pub use workspace::Workspace;
use workspace::{BlockWorkspace, sized};

use crate::Result;
use crate::config::rms_norm_epsilon;
use crate::weights::{Group, Scope, Weights};

/// New tokens of one sequence, where those before are cached, and what is wanted of it.
#[derive(Debug, Clone, Copy)]
pub struct SequenceInput<'a> {
    /// The blocks in which keys and values of this sequence are kept, in order, with room for the
    /// new tokens.
    pub blocks: &'a [BlockId],
    /// Tokens that are cached.
    pub cached: usize,
    /// The tokens that follow the cached ones.
    pub tokens: &'a [u32],
    /// The new tokens whose logits are wanted.
    pub logits_of: LogitsOf,
}

/// The new tokens of a sequence whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsOf {
    /// None: a piece of a prompt that goes on.
    Nothing,
    /// The last one, if there is one.
    LastToken,
    /// All.
    AllTokens,
}

/// A decoder-only model.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) embedding: Embedding,
    pub(crate) rope: Rope,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Linear,
}

/// One block: attention, then an MLP or experts, each behind a norm and added to the residual.
#[derive(Debug)]
pub(crate) struct DecoderLayer {
    pub(crate) attention_norm: RmsNorm,
    pub(crate) attention: Attention,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
}

/// The two kinds of attention.
#[derive(Debug)]
pub(crate) enum Attention {
    GroupedQuery(GroupedQueryAttention),
    Latent(LatentAttention),
}

/// The two kinds of what follows attention.
#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(Box<DenseMlp>),
    Moe(Box<MoeBlock>),
}

/// What the attention of one layer needs to know of its step.
pub(crate) struct Step<'a, 'c> {
    /// Number of the layer.
    layer: usize,
    /// Angles of the tokens.
    rope: &'a RopeTable,
    /// Keys and values.
    cache: &'a mut KvCache,
    /// The sequences, and how many tokens each gets.
    sequences: &'a [SequenceTokens<'c>],
}

/// Reads attention and MLP of one layer, given its number and its weights.
pub(crate) type ReadBlock<'b> = dyn Fn(usize, &Scope<'_, '_>) -> Result<(Attention, Mlp)> + 'b;

impl Decoder {
    /// Reads everything around the blocks, whose names all architectures share, and lets `block`
    /// read the rest.
    pub(crate) fn read(weights: &Weights<'_>, rope: Rope, block: &ReadBlock<'_>) -> Result<Self> {
        let config = weights.config();
        let (hidden, vocabulary) = (config.size("hidden_size")?, config.size("vocab_size")?);
        let epsilon = rms_norm_epsilon(&config)?;
        let embedding = weights.scope("model.embed_tokens", Group::Embedding);
        let embedding = embedding.matrix("weight", [vocabulary, hidden])?;
        let head = match config.flag_or("tie_word_embeddings", false)? {
            true => embedding.clone(),
            false => {
                weights.scope("lm_head", Group::Head).matrix("weight", [vocabulary, hidden])?
            }
        };
        let layer = |number: usize| {
            let name = format!("model.layers.{number}");
            let scope = weights.scope(&name, Group::Norms);
            let (attention, mlp) = block(number, &scope).map_err(|why| why.of_part(&name))?;
            Ok(DecoderLayer {
                attention_norm: scope.norm("input_layernorm", hidden, epsilon)?,
                attention,
                mlp_norm: scope.norm("post_attention_layernorm", hidden, epsilon)?,
                mlp,
            })
        };
        let layers = (0..config.size("num_hidden_layers")?).map(layer);
        Ok(Self {
            embedding: Embedding::new(embedding),
            rope,
            layers: layers.collect::<Result<_>>()?,
            norm: weights.scope("model", Group::Norms).norm("norm", hidden, epsilon)?,
            head: Linear::new(head),
        })
    }

    /// An empty cache of `blocks` blocks.
    pub(crate) fn new_cache(&self, blocks: usize) -> KvCache {
        KvCache::new(self.layers.len(), self.cache_shape(), blocks)
    }

    /// What each layer keeps of a token.
    pub(crate) fn cache_shape(&self) -> AttentionShape {
        match &self.layers[0].attention {
            Attention::GroupedQuery(attention) => attention.cache_shape(),
            Attention::Latent(attention) => attention.cache_shape(),
        }
    }

    /// Operations of attention for a token and one that it sees, in all layers.
    pub(crate) fn attention_operations(&self) -> usize {
        let elements = |layer: &DecoderLayer| match &layer.attention {
            Attention::GroupedQuery(attention) => {
                let shape = attention.cache_shape();
                shape.query_width() + shape.output_width()
            }
            Attention::Latent(attention) => attention.elements_of_heads(),
        };
        2 * self.layers.iter().map(elements).sum::<usize>()
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Hidden size, `H`.
    pub(crate) fn hidden(&self) -> usize {
        self.embedding.width()
    }

    /// Size of the vocabulary, `V`.
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.vocabulary()
    }

    /// The layers that have routed experts, by their numbers.
    pub(crate) fn expert_layers(&self) -> Vec<usize> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(at, layer)| matches!(layer.mlp, Mlp::Moe(_)).then_some(at)).collect()
    }

    /// The routed experts of the first layer that has some.
    pub(crate) fn first_experts(&self) -> Option<&AnyMoeLayer> {
        self.experts().next()
    }

    /// The routed experts of all layers that have some.
    pub(crate) fn experts(&self) -> impl Iterator<Item = &AnyMoeLayer> {
        self.layers.iter().filter_map(|layer| match &layer.mlp {
            Mlp::Moe(moe) => Some(moe.experts()),
            Mlp::Dense(_) => None,
        })
    }

    /// Tensors of gate, up and down of each expert of those layers; nothing for a layer whose experts
    /// share tensors.
    pub(crate) fn expert_names(&self) -> impl Iterator<Item = &[[String; 3]]> {
        self.layers.iter().filter_map(|layer| match &layer.mlp {
            Mlp::Moe(moe) => Some(moe.names()),
            Mlp::Dense(_) => None,
        })
    }

    /// Lets `ranks` compute the routed experts of all layers that have some.
    pub(crate) fn spread(&mut self, ranks: &RankGroup) -> Result<()> {
        let blocks = self.layers.iter_mut().filter_map(|layer| match &mut layer.mlp {
            Mlp::Moe(moe) => Some(moe),
            Mlp::Dense(_) => None,
        });
        blocks.enumerate().try_for_each(|(number, block)| block.spread(ranks.layer(number)?))
    }

    /// Runs the new tokens of all sequences and returns logits `[rows, V]`.
    pub(crate) fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        batch: &[SequenceInput<'_>],
    ) -> Result<&'w mut [f32]> {
        workspace.gather(batch);
        let Workspace { tokens, positions, logits_rows, blocks, .. } = workspace;
        let length = tokens.len() * self.embedding.width();
        let hidden = sized(&mut workspace.hidden, length);
        let normed = sized(&mut workspace.normed, length);
        let delta = sized(&mut workspace.delta, length);
        let rope = self.rope.table(positions);
        let sequences: Vec<SequenceTokens<'_>> = batch.iter().map(SequenceInput::place).collect();

        self.embedding.forward(tokens, hidden)?; // [T, H]
        delta.fill(0.0);
        for (layer, block) in self.layers.iter().enumerate() {
            let step = Step { layer, rope: &rope, cache, sequences: &sequences };
            block.attention_norm.add_and_forward(delta, hidden, normed)?;
            block.attention.forward(blocks, normed, step, delta)?;
            block.mlp_norm.add_and_forward(delta, hidden, normed)?;
            block.mlp.forward(blocks, normed, delta)?;
        }
        self.norm.add_and_forward(delta, hidden, normed)?;

        let rows = pick_rows(normed, logits_rows, self.embedding.width());
        let logits = sized(&mut workspace.logits, logits_rows.len() * self.head.outputs());
        self.head.forward(&mut blocks.layers, rows, logits)?; // [rows, V]
        Ok(logits)
    }
}

impl SequenceInput<'_> {
    fn place(&self) -> SequenceTokens<'_> {
        let Self { blocks, cached, tokens, .. } = *self;
        SequenceTokens { blocks, cached, tokens: tokens.len() }
    }
}

/// Moves the rows with these ascending numbers to the front.
fn pick_rows<'a>(matrix: &'a mut [f32], rows: &[usize], width: usize) -> &'a mut [f32] {
    for (place, row) in rows.iter().enumerate() {
        matrix.copy_within(row * width..(row + 1) * width, place * width);
    }
    &mut matrix[..rows.len() * width]
}

impl Attention {
    fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        step: Step<'_, '_>,
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::GroupedQuery(attention) => attention.forward(workspace, hidden, step, out),
            Self::Latent(attention) => attention.forward(workspace, hidden, step, out),
        }
    }
}

impl Mlp {
    fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Dense(mlp) => mlp.forward(workspace, hidden, out),
            Self::Moe(moe) => moe.forward(workspace, hidden, out),
        }
    }
}
