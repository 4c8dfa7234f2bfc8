//! All kernels of a model.

use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::LayersError;
use artel_layers::attention::AttentionShape;
use artel_layers::embedding::cuda::Embed;
use artel_layers::linear::cuda::Linear;
use artel_layers::rope::Rope;
use artel_layers::rope::cuda::RopeAngles;
use artel_moe::eplb::count::cuda::CountPairs;
use artel_moe::layer::cuda::ExpertsProgram;
use half::bf16;

use super::CudaLimits;
use super::attention::{AttentionKernels, AttentionWeights, LayerCache};
use super::dense::{DenseKernels, DenseWeights, Role, mlp_reads_codes};
use super::experts::{MlpLeft, MoeKernels, MoeWeights, ProgramKernels, RoutingRows};
use super::inputs::Inputs;
use super::latent::{LatentKernels, LatentWeights};
use super::linear::{Left, shape_of};
use super::norm::{Added, Behind, InputNorm, Makes};
use super::rows::{Rows, Widths};
use super::upload::Upload;
use crate::decoder::{Attention, DecoderLayer, Mlp};
use crate::{Model, ModelError, Result};

/// Every kernel that steps of a model may launch.
#[derive(Debug, Clone)]
pub struct CudaKernels {
    pub(super) limits: CudaLimits,
    pub(super) embed: Embed<bf16, f32>,
    pub(super) angles: RopeAngles,
    pub(super) layers: Vec<LayerKernels>,
    pub(super) norm: InputNorm,
    pub(super) pick: Embed<bf16, bf16>,
    pub(super) head: Linear<bf16>,
    pub(super) count: CountPairs,
    pub(super) programs: Vec<ProgramKernels>,
    pub(super) widths: Widths,
    pub(super) attention: AttentionShape,
}

impl CudaKernels {
    /// Asks for the kernels of `model` for steps within `limits`. [`Kernels::list`] lists them without a
    /// GPU: kernels for larger steps include those for smaller ones.
    ///
    /// # Errors
    /// [`ModelError::Part`] with the layer that cannot run on a GPU, and why; [`ModelError::Cuda`] when a
    /// kernel is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, model: &Model, limits: &CudaLimits) -> Result<Self> {
        check(limits)?;
        let decoder = model.decoder();
        let hidden = decoder.hidden();
        let head = shape_of(&[&decoder.head]);
        let mut widths = Widths { hidden, vocabulary: head.outputs, ..Widths::default() };
        let (mut layers, mut programs) = (Vec::new(), Vec::new());
        for (number, layer) in decoder.layers.iter().enumerate() {
            let added = layers.last().map_or(Added::Nothing, LayerKernels::leaves);
            let loaded =
                LayerKernels::load(kernels, (layer, added), (&decoder.rope, limits), &mut programs);
            let loaded = loaded.map_err(|why| why.of_part(&format!("model.layers.{number}")))?;
            widths = widths.max(loaded.widths());
            layers.push(loaded);
        }
        let leaves = layers.last().map_or(Added::Nothing, LayerKernels::leaves);
        let of_head = |why: ModelError| why.of_part("lm_head");
        Ok(Self {
            limits: *limits,
            embed: Embed::load(kernels, hidden)?,
            angles: RopeAngles::load(kernels, &decoder.rope)?,
            layers,
            norm: InputNorm::load(kernels, &decoder.norm, leaves, Makes::Rows)?,
            pick: Embed::load(kernels, hidden)?,
            head: Linear::load(kernels, head, limits.logits_max)
                .map_err(ModelError::from)
                .map_err(of_head)?,
            count: CountPairs::load(kernels)?,
            programs,
            widths,
            attention: decoder.cache_shape(),
        })
    }

    /// What steps they were loaded for.
    pub fn limits(&self) -> &CudaLimits {
        &self.limits
    }

    /// The layers that have routed experts, in order.
    pub(super) fn expert_layers(&self) -> impl Iterator<Item = &MoeKernels> {
        self.layers.iter().filter_map(|layer| match &layer.mlp {
            MlpKernels::Moe(moe) => Some(moe),
            MlpKernels::Dense(_) => None,
        })
    }
}

fn check(limits: &CudaLimits) -> Result<()> {
    let CudaLimits { tokens_max, sequences_max, logits_max, context_max } = *limits;
    let fields = [
        ("tokens_max", tokens_max, sequences_max),
        ("sequences_max", sequences_max, 1),
        ("logits_max", logits_max, sequences_max),
        ("context_max", context_max, 1),
    ];
    for (field, value, least) in fields {
        // Rows are numbered with 31 bits, padding and all.
        if value < least || value > 1 << 24 {
            let allowed = format!("from {least} to {}", 1 << 24);
            return Err(LayersError::config(field, value, allowed).into());
        }
    }
    Ok(())
}

/// The kernels of one layer.
#[derive(Debug, Clone)]
pub(super) struct LayerKernels {
    mixing: MixingKernels,
    mlp_norm: InputNorm,
    /// For steps whose experts read codes.
    mlp_norm_to_codes: Option<InputNorm>,
    mlp: MlpKernels,
}

/// The two kinds of attention.
#[derive(Debug, Clone)]
enum MixingKernels {
    GroupedQuery(Box<AttentionKernels>),
    Latent(Box<LatentKernels>),
}

#[derive(Debug, Clone)]
enum MlpKernels {
    Dense(Box<DenseKernels>),
    Moe(MoeKernels),
}

impl LayerKernels {
    fn load(
        kernels: &mut Kernels,
        (layer, added): (&DecoderLayer, Added),
        (rope, limits): (&Rope, &CudaLimits),
        programs: &mut Vec<ProgramKernels>,
    ) -> Result<Self> {
        let norm = (&layer.attention_norm, added);
        let mixing = match &layer.attention {
            Attention::GroupedQuery(attention) => {
                let loaded = AttentionKernels::load(kernels, norm, (attention, rope), limits)?;
                MixingKernels::GroupedQuery(Box::new(loaded))
            }
            Attention::Latent(attention) => {
                let loaded = LatentKernels::load(kernels, norm, (attention, rope), limits)?;
                MixingKernels::Latent(Box::new(loaded))
            }
        };
        let (mlp, makes) = match &layer.mlp {
            Mlp::Dense(mlp) => {
                let dense = DenseKernels::load(kernels, (mlp, Role::Layer), limits)?;
                let makes = if mlp_reads_codes(mlp) { Makes::Codes } else { Makes::Rows };
                (MlpKernels::Dense(Box::new(dense)), makes)
            }
            Mlp::Moe(moe) => {
                let moe = MoeKernels::load(kernels, moe, limits, programs)?;
                (MlpKernels::Moe(moe), Makes::Rows)
            }
        };
        let mut load = |makes| InputNorm::load(kernels, &layer.mlp_norm, mixing.leaves(), makes);
        let mlp_norm = load(makes)?;
        let mlp_norm_to_codes = match &mlp {
            MlpKernels::Moe(moe) if programs[moe.program()].reads_codes() => {
                Some(load(Makes::RowsAndCodes)?)
            }
            _ => None,
        };
        Ok(Self { mixing, mlp_norm, mlp_norm_to_codes, mlp })
    }

    fn widths(&self) -> Widths {
        let widths = match &self.mlp {
            MlpKernels::Dense(dense) => self.mixing.widths().max(dense.widths),
            MlpKernels::Moe(moe) => self.mixing.widths().max(moe.widths()),
        };
        let codes = self.mlp_norm_to_codes.as_ref().map_or(0, InputNorm::width);
        widths.max(Widths { codes, ..Widths::default() })
    }

    /// What its MLP leaves.
    fn leaves(&self) -> Added {
        match &self.mlp {
            MlpKernels::Dense(_) => Added::Rows,
            MlpKernels::Moe(moe) => moe.leaves(),
        }
    }

    /// The program of its experts, if it has some.
    pub(super) fn program(&self) -> Option<usize> {
        match &self.mlp {
            MlpKernels::Dense(_) => None,
            MlpKernels::Moe(moe) => Some(moe.program()),
        }
    }

    /// Runs the layer: `rows.hidden` and what was left to what they are behind it.
    pub(super) fn forward(
        &self,
        stream: &Stream,
        (inputs, left): (&Inputs<'_>, MlpLeft),
        (weights, cache): (&LayerWeights, &mut LayerCache),
        (rows, routing): (&mut Rows, &mut RoutingRows),
        programs: &mut [ExpertsProgram<bf16>],
    ) -> Result<MlpLeft> {
        let tokens = inputs.step.tokens;
        let input = (inputs, left.behind(programs, routing, tokens)?);
        let left = self.mixing.forward(stream, input, &weights.mixing, cache, rows)?;
        let reads_codes = self.program().is_some_and(|own| programs[own].reads_codes(tokens));
        let norm = self.mlp_norm_to_codes.as_ref().filter(|_| reads_codes);
        let behind = Behind::Map(left);
        let norm_weight = &weights.mlp_norm;
        norm.unwrap_or(&self.mlp_norm).launch(stream, (tokens, behind), norm_weight, rows)?;
        match (&self.mlp, &weights.mlp) {
            (MlpKernels::Dense(kernels), MlpWeights::Dense(weights)) => {
                kernels.forward(stream, tokens, weights, rows).map(|()| MlpLeft::Rows)
            }
            (MlpKernels::Moe(kernels), MlpWeights::Moe(weights, number)) => {
                let tokens = (tokens, inputs.unpadded_tokens);
                kernels.forward(stream, tokens, weights, (routing, *number), (programs, rows))
            }
            _ => panic!("this is a bug: kernels and weights of different layers"),
        }
    }
}

impl MixingKernels {
    fn widths(&self) -> Widths {
        match self {
            Self::GroupedQuery(kernels) => kernels.widths,
            Self::Latent(kernels) => kernels.widths,
        }
    }

    /// What the last map of attention leaves.
    fn leaves(&self) -> Added {
        match self {
            Self::GroupedQuery(kernels) => kernels.leaves(),
            Self::Latent(kernels) => kernels.leaves(),
        }
    }

    fn forward(
        &self,
        stream: &Stream,
        inputs: (&Inputs<'_>, Behind<'_>),
        weights: &MixingWeights,
        cache: &mut LayerCache,
        rows: &mut Rows,
    ) -> Result<Left> {
        match (self, weights) {
            (Self::GroupedQuery(kernels), MixingWeights::GroupedQuery(weights)) => {
                kernels.forward(stream, inputs, weights, cache, rows)
            }
            (Self::Latent(kernels), MixingWeights::Latent(weights)) => {
                kernels.forward(stream, inputs, weights, cache, rows)
            }
            _ => panic!("this is a bug: kernels and weights of different layers"),
        }
    }
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    mixing: MixingWeights,
    mlp_norm: DeviceBuffer<f32>,
    mlp: MlpWeights,
}

#[derive(Debug)]
enum MixingWeights {
    GroupedQuery(Box<AttentionWeights>),
    Latent(Box<LatentWeights>),
}

#[derive(Debug)]
enum MlpWeights {
    Dense(Box<DenseWeights>),
    /// With the number of the layer among those that have experts.
    Moe(Box<MoeWeights>, usize),
}

impl LayerWeights {
    /// Copies them; `experts` layers with experts came before.
    pub(super) fn upload(
        upload: &mut Upload<'_>,
        layer: &DecoderLayer,
        experts: usize,
    ) -> Result<Self> {
        let norm = &layer.attention_norm;
        let mixing = match &layer.attention {
            Attention::GroupedQuery(attention) => {
                let weights = AttentionWeights::upload(upload, norm, attention)?;
                MixingWeights::GroupedQuery(Box::new(weights))
            }
            Attention::Latent(attention) => {
                let weights = LatentWeights::upload(upload, norm, attention)?;
                MixingWeights::Latent(Box::new(weights))
            }
        };
        Ok(Self {
            mixing,
            mlp_norm: upload.vector(layer.mlp_norm.weight())?,
            mlp: match &layer.mlp {
                Mlp::Dense(mlp) => MlpWeights::Dense(Box::new(DenseWeights::upload(upload, mlp)?)),
                Mlp::Moe(moe) => {
                    let weights = MoeWeights::upload(upload, moe)?;
                    MlpWeights::Moe(Box::new(weights), experts)
                }
            },
        })
    }

    /// Its experts, if it has some.
    pub(super) fn experts(&self) -> Option<&MoeWeights> {
        match &self.mlp {
            MlpWeights::Dense(_) => None,
            MlpWeights::Moe(weights, _) => Some(weights),
        }
    }
}
