use artel_layers::attention::{BLOCK_TOKENS, KvCache};
use artel_moe::MoeError;
use artel_moe::dispatch::{CopyChoice, RankGroup, RankedLayer};
use artel_moe::eplb::LayerPlan;
use artel_moe::layer::AnyMoeLayer;
use artel_moe::plan::MoePlan;

use crate::architectures::{self, Architecture};
use crate::checkpoint::Progress;
use crate::config::ConfigReader;
use crate::decoder::{Decoder, SequenceInput, Workspace};
use crate::weights::{LoadOptions, Parameters, Weights};
use crate::{Checkpoint, ModelError, Result};

/// A model that is ready to run.
///
/// ```no_run
/// use artel_model::{Checkpoint, LoadOptions, LogitsOf, Model, SequenceInput};
///
/// let checkpoint = Checkpoint::open("/models/OLMoE-1B-7B".as_ref())?;
/// let model = Model::load(&checkpoint, &LoadOptions::default())?;
/// let mut workspace = model.new_workspace();
/// let mut cache = model.new_cache(64);
/// let blocks = cache.all_blocks();
/// let logits_of = LogitsOf::LastToken;
/// let input = SequenceInput { blocks: &blocks, cached: 0, tokens: &[1, 2, 3], logits_of };
/// let logits = model.forward(&mut workspace, &mut cache, &[input])?; // [1, V]
/// assert_eq!(logits.len(), model.config().vocabulary);
/// # Ok::<(), artel_model::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parameters: Parameters,
    options: LoadOptions,
    decoder: Decoder,
}

/// What a model is, in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// As `config.json` names it.
    pub architecture: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; 1 for latent attention.
    pub kv_heads: usize,
    /// Routed experts of a layer.
    pub experts: usize,
    /// Routed experts that a token uses in a layer.
    pub experts_per_token: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest context that the model knows positions for.
    pub max_positions: usize,
    /// Bytes that the cache of one token takes.
    pub cache_bytes_per_token: usize,
    /// Operations of attention for a token and one that it sees, in all layers: of latent attention
    /// those with keys and values of every head, which are the fewest where tokens are many.
    pub attention_operations: usize,
}

impl Model {
    /// Builds the model of a checkpoint.
    ///
    /// # Errors
    /// When the architecture is not known, `config.json` makes no sense, or a tensor is missing, too
    /// many, or of the wrong shape or type.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        Self::load_with_progress(checkpoint, options, &mut |_| ())
    }

    /// The same, reporting after each tensor.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_progress(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let config = checkpoint.config();
        let Architecture { name, read } = architectures::find(&config)?;
        let max_positions = config.positions("max_position_embeddings")?;
        let tied = config.flag_or("tie_word_embeddings", false)?;
        let unused = unused_tensors(&config)?;
        let weights = Weights::new(checkpoint, options, report)?;
        let named = |why: ModelError| why.of_part(&checkpoint.describe("config.json"));
        let decoder = read(&weights).map_err(named)?;
        let config = summary(name, max_positions, &decoder);
        let parameters = weights.finish(name, unused)?;
        let parameters = parameters.with_usage(config.experts, config.experts_per_token, tied);
        Ok(Self { config, parameters, options: *options, decoder })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its parameters, counted by group and format.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Which path and kernel serve which batch sizes in the layers with experts, and why; `None`
    /// for a model without experts.
    pub fn moe_plan(&self) -> Option<&MoePlan> {
        self.decoder.first_experts().map(AnyMoeLayer::plan)
    }

    /// What it computes, part by part.
    #[cfg(feature = "cuda")]
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Tensors of gate, up and down of each expert of the layers that have some; nothing for a layer
    /// whose experts share tensors.
    pub(crate) fn expert_names(&self) -> impl Iterator<Item = &[[String; 3]]> {
        self.decoder.expert_names()
    }

    /// Numbers of the decoder layers that have routed experts, from 0.
    pub fn expert_layers(&self) -> Vec<usize> {
        self.decoder.expert_layers()
    }

    /// The first of the layers with experts, which all have the same sizes; `None` for a model
    /// without experts.
    pub fn moe_layer(&self) -> Option<&AnyMoeLayer> {
        self.decoder.first_experts()
    }

    /// The layers with experts as ranks are given them, to start a [`RankGroup`]. `plans` has one
    /// entry for each; `choose` says how copies are chosen in a layer, by its number among them.
    ///
    /// # Errors
    /// When the model has no experts, or another number of layers with experts.
    pub fn ranked_layers(
        &self,
        plans: Vec<LayerPlan>,
        choose: impl Fn(usize) -> CopyChoice,
    ) -> Result<Vec<RankedLayer>> {
        let layers = self.decoder.experts().count();
        if layers == 0 || layers != plans.len() {
            let allowed = format!("one for each of the {layers} layers with experts");
            return Err(MoeError::config("plans of layers", plans.len(), allowed).into());
        }
        let ranked = |(number, (layer, plan)): (usize, (&AnyMoeLayer, LayerPlan))| {
            layer.for_ranks(plan, choose(number))
        };
        Ok(self.decoder.experts().zip(plans).enumerate().map(ranked).collect())
    }

    /// Lets `ranks`, which were started with this model's layers, compute its experts from now on.
    ///
    /// # Errors
    /// When they have other layers.
    pub fn use_ranks(&mut self, ranks: &RankGroup) -> Result<()> {
        self.decoder.spread(ranks)
    }

    /// Memory for [`forward`](Self::forward). One is enough for one caller.
    pub fn new_workspace(&self) -> Workspace {
        Workspace::new(self.options.features)
    }

    /// A cache of `blocks` blocks of [`BLOCK_TOKENS`](artel_layers::attention::BLOCK_TOKENS)
    /// tokens. Memory is taken as it fills.
    pub fn new_cache(&self, blocks: usize) -> KvCache {
        self.decoder.new_cache(blocks)
    }

    /// Runs new tokens of several sequences at once and returns logits `[rows, V]`, float32, in the
    /// order of the batch. With float32 weights the result for a token does not depend on what else
    /// is in the batch, to the last bit. In other formats batches of different sizes may be served
    /// by different kernels, whose sums differ by rounding.
    ///
    /// A sequence has no state but its blocks: a step that failed can be repeated.
    ///
    /// # Errors
    /// [`ModelError::ContextTooLong`] beyond the positions that the model knows,
    /// [`ModelError::ContextOverflow`] when a sequence has too few blocks for its new tokens, and
    /// [`ModelError::Layer`] for a token outside the vocabulary or a cache of another model.
    pub fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        batch: &[SequenceInput<'_>],
    ) -> Result<&'w mut [f32]> {
        for input in batch {
            let needed = input.cached.saturating_add(input.tokens.len());
            let (known, held) = (self.config.max_positions, input.blocks.len() * BLOCK_TOKENS);
            if needed > known {
                return Err(ModelError::ContextTooLong { asked: needed, available: known });
            }
            if needed > held {
                return Err(ModelError::ContextOverflow { needed, available: held });
            }
        }
        self.decoder.forward(workspace, cache, batch)
    }
}

fn summary(architecture: &'static str, max_positions: usize, decoder: &Decoder) -> ModelConfig {
    let (layers, shape) = (decoder.layers(), decoder.cache_shape());
    let experts = decoder.first_experts().map(|experts| experts.config().shape());
    ModelConfig {
        architecture,
        layers,
        hidden: decoder.hidden(),
        heads: shape.query_heads,
        kv_heads: shape.kv_heads,
        experts: experts.map_or(0, |shape| shape.num_experts),
        experts_per_token: experts.map_or(0, |shape| shape.top_k),
        vocabulary: decoder.vocabulary(),
        max_positions,
        cache_bytes_per_token: KvCache::bytes_per_token(layers, &shape),
        attention_operations: decoder.attention_operations(),
    }
}

/// Tensors that belong to a checkpoint but not to its base model: layers behind the last one, which
/// predict further tokens; frequencies that old releases stored; an output layer that is tied.
fn unused_tensors(config: &ConfigReader<'_>) -> Result<impl Fn(&str) -> bool> {
    let layers = config.size("num_hidden_layers")?;
    let tied = config.flag_or("tie_word_embeddings", false)?;
    let mut further = 0;
    for field in ["num_nextn_predict_layers", "num_mtp_modules"] {
        further += config.count_or_zero(field)?;
    }
    Ok(move |name: &str| {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse::<usize>().ok());
        layer.is_some_and(|layer| (layers..layers + further).contains(&layer))
            || name.ends_with(".rotary_emb.inv_freq")
            || (tied && name == "lm_head.weight")
    })
}
