//! Routed experts of one layer on the GPU, and the expert beside them that every token uses.

use artel_device::cuda::{Architecture, Context, DeviceBuffer, DeviceSlice, Kernels, Stream};
use artel_layers::rms_norm::cuda::adds_pairs;
use artel_moe::config::MoeConfig;
use artel_moe::cuda::shipped;
use artel_moe::layer::AnyMoeLayer;
use artel_moe::layer::cuda::{DeviceRouting, ExpertsKernels, ExpertsProgram, Hidden};
use artel_moe::plan::gpu::{GpuPlan, TOKENS_PER_STEP};
use artel_moe::quant::{AnyMatrix, Format};
use artel_moe::router::RouterConfig;
use artel_moe::router::gate::cuda::{GateBuffers, GateElement, GateRoute};
use artel_moe::shared::cuda::AddShared;
use artel_moe::weights::cuda::DeviceExperts;
use half::bf16;

use super::CudaLimits;
use super::dense::{DenseKernels, DenseWeights, Role};
use super::linear::Left;
use super::norm::{Added, Behind};
use super::rows::{Rows, Widths};
use super::upload::Upload;
use crate::decoder::{MoeBlock, SharedExpert};
use crate::{ModelError, Result};

/// The kernels of experts of one kind, which layers share.
#[derive(Debug, Clone)]
pub(super) struct ProgramKernels {
    config: MoeConfig,
    format: Format,
    plan: GpuPlan,
    kernels: ExpertsKernels<bf16>,
}

impl ProgramKernels {
    /// Asks for those of `layer`, unless one of `programs` has them; the number of its program.
    pub(super) fn load(
        kernels: &mut Kernels,
        layer: &AnyMoeLayer,
        limits: &CudaLimits,
        programs: &mut Vec<Self>,
    ) -> Result<usize> {
        let (config, format) = (layer.config(), layer.format());
        let known = programs.iter().position(|own| own.config == *config && own.format == format);
        if let Some(known) = known {
            return Ok(known);
        }
        if format == Format::F16 {
            let why = "they are f16, and rows between layers bf16; convert them with --format bf16";
            return Err(ModelError::NotOnGpu { what: "experts", why: why.to_owned() });
        }
        let plan = plan(kernels.architecture(), config, format, limits)?;
        let loaded = ExpertsKernels::load(kernels, config, format, &plan)?;
        programs.push(Self { config: config.clone(), format, plan, kernels: loaded });
        Ok(programs.len() - 1)
    }

    /// Whether some steps read hidden states as codes.
    pub(super) fn reads_codes(&self) -> bool {
        self.kernels.reads_codes()
    }

    /// The program with its memory.
    pub(super) fn start(self, context: &Context) -> Result<ExpertsProgram<bf16>> {
        let Self { config, format, plan, kernels } = self;
        Ok(ExpertsProgram::new(context, config, format, plan, kernels)?)
    }
}

fn plan(
    architecture: Architecture,
    config: &MoeConfig,
    format: Format,
    limits: &CudaLimits,
) -> Result<GpuPlan> {
    // Powers of two, so that packs for larger steps hold the same kernels.
    let tokens = limits.tokens_max.next_power_of_two().min(TOKENS_PER_STEP);
    Ok(shipped::plan_in_steps(architecture, config, format, tokens)?)
}

/// The gate with its router, by the numbers of its weights.
#[derive(Debug, Clone)]
enum GateKernels {
    Narrow(GateRoute<bf16>),
    Wide(GateRoute<f32>),
}

/// The kernels of one layer.
#[derive(Debug, Clone)]
pub(super) struct MoeKernels {
    gate: GateKernels,
    program: usize,
    router: RouterConfig,
    shared: Option<Box<SharedKernels>>,
    /// Whether the norm behind it adds pairs.
    leaves_pairs: bool,
}

/// What the MLP of a layer left to be added to the residual stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum MlpLeft {
    /// Rows.
    Rows,
    /// Pairs that are not summed yet, in the memory of a program, as they were routed in a layer.
    Pairs { program: usize, layer: usize },
}

impl MlpLeft {
    /// Where a norm finds it.
    pub(super) fn behind<'a>(
        self,
        programs: &'a [ExpertsProgram<bf16>],
        routing: &'a RoutingRows,
        tokens: usize,
    ) -> Result<Behind<'a>> {
        Ok(match self {
            Self::Rows => Behind::Map(Left::Rows),
            Self::Pairs { program, layer } => {
                Behind::Experts(programs[program].pairs(routing.of_layer(layer)?, tokens)?)
            }
        })
    }
}

/// The kernels of a shared expert.
#[derive(Debug, Clone)]
struct SharedKernels {
    mlp: DenseKernels,
    add: AddShared<bf16>,
}

impl MoeKernels {
    /// Asks for them.
    pub(super) fn load(
        kernels: &mut Kernels,
        block: &MoeBlock,
        limits: &CudaLimits,
        programs: &mut Vec<ProgramKernels>,
    ) -> Result<Self> {
        let layer = &block.experts;
        let (router, gate) = (*layer.router().config(), layer.gate());
        if router.zero_experts() > 0 {
            let why = "tokens may choose zero experts".to_owned();
            return Err(ModelError::NotOnGpu { what: "routing", why });
        }
        let sizes = (gate.weight().columns(), gate.bias().is_some());
        let tokens = limits.tokens_max;
        let gate = match gate.weight() {
            AnyMatrix::Bf16(_) => {
                GateKernels::Narrow(GateRoute::load(kernels, &router, sizes, tokens)?)
            }
            _ => GateKernels::Wide(GateRoute::load(kernels, &router, sizes, tokens)?),
        };
        let program = ProgramKernels::load(kernels, layer, limits, programs)?;
        let shared = match &block.shared {
            None => None,
            Some(shared) => {
                let mlp = DenseKernels::load(kernels, (&shared.mlp, Role::Shared), limits)?;
                let width = layer.config().shape().hidden_size;
                let add = AddShared::load(kernels, width, shared.gate.is_some())?;
                Some(Box::new(SharedKernels { mlp, add }))
            }
        };
        let shape = layer.config().shape();
        let adds = adds_pairs(kernels, shape.hidden_size, shape.top_k);
        let leaves_pairs = shared.is_none() && adds;
        Ok(Self { gate, program, router, shared, leaves_pairs })
    }

    /// What it leaves.
    pub(super) fn leaves(&self) -> Added {
        if self.leaves_pairs { Added::Pairs(self.router.slots()) } else { Added::Rows }
    }

    /// Rows that its shared expert needs.
    pub(super) fn widths(&self) -> Widths {
        self.shared.as_ref().map_or(Widths::default(), |shared| shared.mlp.widths)
    }

    /// Numbers that partial logits of a step are.
    fn parts_len(&self, tokens: usize) -> usize {
        match &self.gate {
            GateKernels::Narrow(gate) => gate.parts_len(tokens),
            GateKernels::Wide(gate) => gate.parts_len(tokens),
        }
    }

    /// Routes the normed rows and leaves what their experts make of them.
    pub(super) fn forward(
        &self,
        stream: &Stream,
        (tokens, unpadded_tokens): (usize, DeviceSlice<'_, i32>),
        weights: &MoeWeights,
        (routing, number): (&mut RoutingRows, usize),
        (programs, rows): (&mut [ExpertsProgram<bf16>], &mut Rows),
    ) -> Result<MlpLeft> {
        let tokens_of = (tokens, unpadded_tokens);
        let hidden = rows.normed.slice();
        match (&self.gate, &weights.gate) {
            (GateKernels::Narrow(gate), GateWeights::Narrow(weight)) => {
                routing.route(stream, (gate, weight), weights, (hidden, number), tokens_of)?;
            }
            (GateKernels::Wide(gate), GateWeights::Wide(weight)) => {
                routing.route(stream, (gate, weight), weights, (hidden, number), tokens_of)?;
            }
            _ => panic!("this is a bug: a gate of other numbers than its kernels"),
        }
        let routing = routing.of_layer(number)?;
        let program = &mut programs[self.program];
        let codes = program.reads_codes(tokens).then(|| rows.codes.coded(tokens));
        let input = (Hidden { states: hidden, codes }, routing);
        // One token has launches that add rows.
        if self.leaves_pairs && tokens > 1 && program.leaves_pairs(tokens) {
            program.forward_pairs(stream, &weights.experts, input, tokens)?;
            return Ok(MlpLeft::Pairs { program: self.program, layer: number });
        }
        let out = &mut rows.delta.slice_mut();
        program.forward(stream, &weights.experts, input, tokens, out)?;
        match (&self.shared, &weights.shared) {
            (None, None) => Ok(MlpLeft::Rows),
            (Some(kernels), Some(weights)) => {
                kernels.forward(stream, tokens, weights, rows).map(|()| MlpLeft::Rows)
            }
            _ => panic!("this is a bug: a shared expert and its weights must come together"),
        }
    }

    /// The program that computes its experts.
    pub(super) fn program(&self) -> usize {
        self.program
    }
}

impl SharedKernels {
    /// Adds what the shared expert makes of the normed rows.
    fn forward(
        &self,
        stream: &Stream,
        tokens: usize,
        weights: &SharedWeights,
        rows: &mut Rows,
    ) -> Result<()> {
        self.mlp.forward(stream, tokens, &weights.mlp, rows)?;
        let gate = weights.gate.as_ref().map(|gate| (rows.normed.slice(), gate.slice()));
        let out = &mut rows.delta.slice_mut();
        Ok(self.add.launch(stream, tokens, rows.shared.slice(), gate, out)?)
    }
}

/// Weights of the gate, as they are stored or as float32.
#[derive(Debug)]
enum GateWeights {
    Narrow(DeviceBuffer<bf16>),
    Wide(DeviceBuffer<f32>),
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct MoeWeights {
    gate: GateWeights,
    logit_bias: DeviceBuffer<f32>,
    selection_bias: DeviceBuffer<f32>,
    experts: DeviceExperts,
    shared: Option<SharedWeights>,
}

/// The weights of a shared expert.
#[derive(Debug)]
struct SharedWeights {
    mlp: DenseWeights,
    gate: Option<DeviceBuffer<f32>>,
}

impl SharedWeights {
    fn upload(upload: &mut Upload<'_>, shared: &SharedExpert) -> Result<Self> {
        let mlp = DenseWeights::upload(upload, &shared.mlp)?;
        let gate = shared.gate.as_ref().map(|gate| upload.wide_matrix(gate.weight()));
        Ok(Self { mlp, gate: gate.transpose()? })
    }
}

impl MoeWeights {
    /// Copies them.
    pub(super) fn upload(upload: &mut Upload<'_>, block: &MoeBlock) -> Result<Self> {
        let layer = &block.experts;
        let gate = layer.gate();
        Ok(Self {
            gate: match gate.weight() {
                matrix @ AnyMatrix::Bf16(_) => GateWeights::Narrow(upload.matrix(matrix)?),
                matrix => GateWeights::Wide(upload.wide_matrix(matrix)?),
            },
            logit_bias: upload.vector(gate.bias().unwrap_or_default())?,
            selection_bias: upload.vector(layer.router().bias())?,
            experts: upload.experts(layer)?,
            shared: match &block.shared {
                None => None,
                Some(shared) => Some(SharedWeights::upload(upload, shared)?),
            },
        })
    }

    /// The experts.
    pub(super) fn experts(&self) -> &DeviceExperts {
        &self.experts
    }
}

/// What routing leaves for the experts: ids of all layers, so that they can be counted at the end.
#[derive(Debug)]
pub(super) struct RoutingRows {
    parts: DeviceBuffer<f32>,
    ids: DeviceBuffer<i32>,
    weights: DeviceBuffer<f32>,
    identity: DeviceBuffer<f32>,
    /// Ids of a token.
    slots: usize,
    /// Room for ids of a layer.
    pairs: usize,
}

impl RoutingRows {
    /// Room for steps of up to `tokens_max` tokens through all `layers`.
    pub(super) fn new<'a>(
        context: &Context,
        tokens_max: usize,
        layers: impl Iterator<Item = &'a MoeKernels>,
    ) -> Result<Self> {
        let (mut parts, mut slots, mut count) = (0, 0, 0);
        for layer in layers {
            parts = parts.max(layer.parts_len(tokens_max));
            slots = slots.max(layer.router.slots());
            count += 1;
        }
        // A layer's ids begin at a multiple of sixteen bytes.
        let pairs = (tokens_max * slots).next_multiple_of(4);
        Ok(Self {
            parts: context.buffer(parts)?,
            ids: context.buffer(count * pairs)?,
            weights: context.buffer(pairs)?,
            identity: context.buffer(0)?,
            slots,
            pairs,
        })
    }

    /// Chooses the experts of the rows `hidden` in layer `number`.
    fn route<W: GateElement>(
        &mut self,
        stream: &Stream,
        (gate, weight): (&GateRoute<W>, &DeviceBuffer<W>),
        weights: &MoeWeights,
        (hidden, number): (DeviceSlice<'_, bf16>, usize),
        (tokens, unpadded_tokens): (usize, DeviceSlice<'_, i32>),
    ) -> Result<()> {
        let mut ids = self.ids.slice_mut();
        let buffers = GateBuffers {
            hidden,
            weight: weight.slice(),
            logit_bias: weights.logit_bias.slice(),
            selection_bias: weights.selection_bias.slice(),
            unpadded_tokens,
            parts: self.parts.slice_mut(),
            topk_ids: ids.range_mut(number * self.pairs, self.pairs)?,
            topk_weights: self.weights.slice_mut(),
            identity_weights: self.identity.slice_mut(),
        };
        Ok(gate.launch(stream, tokens, buffers)?)
    }

    /// What was chosen for layer `number`.
    fn of_layer(&self, number: usize) -> Result<DeviceRouting<'_>> {
        let ids = self.ids.slice().range(number * self.pairs, self.pairs)?;
        Ok(DeviceRouting::Pairs { ids, weights: self.weights.slice() })
    }

    /// Ids of a token.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Ids of all layers, and how many of each layer there is room for.
    pub(super) fn ids(&self) -> (DeviceSlice<'_, i32>, usize) {
        (self.ids.slice(), self.pairs)
    }
}
