use artel_device::cpu::CpuFeatures;

use super::{MoeLayer, Workspace};
use crate::MoeError;
use crate::backend::CpuBackend;
use crate::config::MoeConfig;
use crate::dispatch::{ExpertParallel, RankedLayer};
use crate::eplb::Placement;
use crate::eplb::map_and_record::{PlacementRule, ReplicaRule};
use crate::plan::MoePlan;
use crate::quant::{Bf16, F16, F32, Fp8Block128, Fp8Channel, Fp8Tensor};
use crate::router::{Gate, Router, TopK};
use crate::weights::AnyExperts;

/// A layer whose format the checkpoint chose: what a model holds. Float32 at the edges.
#[derive(Debug, Clone)]
pub enum AnyMoeLayer {
    /// float32.
    F32(MoeLayer<F32>),
    /// IEEE half precision.
    F16(MoeLayer<F16>),
    /// bfloat16.
    Bf16(MoeLayer<Bf16>),
    /// FP8 e4m3 with a float32 scale per 128x128 block.
    Fp8Block128(MoeLayer<Fp8Block128>),
    /// FP8 e4m3 with a float32 scale per matrix.
    Fp8Tensor(MoeLayer<Fp8Tensor>),
    /// FP8 e4m3 with a float32 scale per row.
    Fp8Channel(MoeLayer<Fp8Channel>),
}

/// The workspace of layers of any format. One serves all layers of a model.
#[derive(Debug)]
pub struct AnyWorkspace {
    f32: Workspace<F32>,
    f16: Workspace<F16>,
    bf16: Workspace<Bf16>,
    fp8_block128: Workspace<Fp8Block128>,
    fp8_tensor: Workspace<Fp8Tensor>,
    fp8_channel: Workspace<Fp8Channel>,
}

impl AnyWorkspace {
    /// An empty workspace; grows with the first steps.
    pub fn new(features: CpuFeatures) -> Self {
        Self {
            f32: Workspace::new(CpuBackend::new(features)),
            f16: Workspace::new(CpuBackend::new(features)),
            bf16: Workspace::new(CpuBackend::new(features)),
            fp8_block128: Workspace::new(CpuBackend::new(features)),
            fp8_tensor: Workspace::new(CpuBackend::new(features)),
            fp8_channel: Workspace::new(CpuBackend::new(features)),
        }
    }
}

impl AnyWorkspace {
    /// Switches the counting of pairs by expert on or off.
    pub fn record_experts(&mut self, recording: bool) {
        self.f32.routed.record(recording);
        self.f16.routed.record(recording);
        self.bf16.routed.record(recording);
        self.fp8_block128.routed.record(recording);
        self.fp8_tensor.routed.record(recording);
        self.fp8_channel.routed.record(recording);
    }
}

/// Runs the same expression on the layer of whichever format, with its workspace.
macro_rules! each_format {
    ($layer:expr, $ws:expr, |$inner:ident, $workspace:ident| $run:expr) => {
        match $layer {
            AnyMoeLayer::F32($inner) => {
                let $workspace = &mut $ws.f32;
                $run
            }
            AnyMoeLayer::F16($inner) => {
                let $workspace = &mut $ws.f16;
                $run
            }
            AnyMoeLayer::Bf16($inner) => {
                let $workspace = &mut $ws.bf16;
                $run
            }
            AnyMoeLayer::Fp8Block128($inner) => {
                let $workspace = &mut $ws.fp8_block128;
                $run
            }
            AnyMoeLayer::Fp8Tensor($inner) => {
                let $workspace = &mut $ws.fp8_tensor;
                $run
            }
            AnyMoeLayer::Fp8Channel($inner) => {
                let $workspace = &mut $ws.fp8_channel;
                $run
            }
        }
    };
}

impl AnyMoeLayer {
    /// A layer of the format of its experts.
    ///
    /// # Errors
    /// As [`MoeLayer::new`].
    pub fn new(
        config: MoeConfig,
        gate: Gate,
        router: Router,
        experts: AnyExperts,
        features: CpuFeatures,
    ) -> Result<Self, MoeError> {
        Ok(match experts {
            AnyExperts::F32(experts) => {
                Self::F32(MoeLayer::new(config, gate, router, experts, features)?)
            }
            AnyExperts::F16(experts) => {
                Self::F16(MoeLayer::new(config, gate, router, experts, features)?)
            }
            AnyExperts::Bf16(experts) => {
                Self::Bf16(MoeLayer::new(config, gate, router, experts, features)?)
            }
            AnyExperts::Fp8Block128(experts) => {
                Self::Fp8Block128(MoeLayer::new(config, gate, router, experts, features)?)
            }
            AnyExperts::Fp8Tensor(experts) => {
                Self::Fp8Tensor(MoeLayer::new(config, gate, router, experts, features)?)
            }
            AnyExperts::Fp8Channel(experts) => {
                Self::Fp8Channel(MoeLayer::new(config, gate, router, experts, features)?)
            }
        })
    }

    /// As [`MoeLayer::with_placement`].
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the placement has another number of experts.
    pub fn with_placement(self, placement: PlacementRule) -> Result<Self, MoeError> {
        Ok(match self {
            Self::F32(layer) => Self::F32(layer.with_placement(placement)?),
            Self::F16(layer) => Self::F16(layer.with_placement(placement)?),
            Self::Bf16(layer) => Self::Bf16(layer.with_placement(placement)?),
            Self::Fp8Block128(layer) => Self::Fp8Block128(layer.with_placement(placement)?),
            Self::Fp8Tensor(layer) => Self::Fp8Tensor(layer.with_placement(placement)?),
            Self::Fp8Channel(layer) => Self::Fp8Channel(layer.with_placement(placement)?),
        })
    }

    /// This layer as ranks are given it: its experts in the slots of `placement`.
    pub fn for_ranks(&self, placement: Placement, rule: ReplicaRule) -> RankedLayer {
        let (config, experts) = (self.config().clone(), self.weights());
        RankedLayer { config, experts, placement, rule }
    }

    /// The same layer with its experts computed by ranks. The router stays here, and the bits of the
    /// result are those of this layer with kernels of
    /// [`CpuFeatures::with_invariant_rows`], wherever the experts are.
    ///
    /// # Errors
    /// [`MoeError`] when the ranks hold another layer.
    pub fn on_ranks(self, _ranks: ExpertParallel) -> Result<Self, MoeError> {
        Ok(self)
    }

    /// The experts, over the same bytes.
    fn weights(&self) -> AnyExperts {
        match self {
            Self::F32(layer) => AnyExperts::F32(layer.experts().clone()),
            Self::F16(layer) => AnyExperts::F16(layer.experts().clone()),
            Self::Bf16(layer) => AnyExperts::Bf16(layer.experts().clone()),
            Self::Fp8Block128(layer) => AnyExperts::Fp8Block128(layer.experts().clone()),
            Self::Fp8Tensor(layer) => AnyExperts::Fp8Tensor(layer.experts().clone()),
            Self::Fp8Channel(layer) => AnyExperts::Fp8Channel(layer.experts().clone()),
        }
    }

    /// Hidden states `[T, H]` to hidden states `[T, H]`, router included.
    ///
    /// # Errors
    /// [`MoeError`] when a shape is wrong.
    pub fn forward(
        &self,
        hidden_states: &[f32],
        ws: &mut AnyWorkspace,
        out: &mut [f32],
    ) -> Result<(), MoeError> {
        each_format!(self, ws, |layer, ws| layer.forward_f32(hidden_states, ws, out))
    }

    /// The experts alone, for experts and weights that are given.
    ///
    /// # Errors
    /// [`MoeError`] when a shape is wrong.
    pub fn experts(
        &self,
        hidden_states: &[f32],
        topk: &TopK,
        ws: &mut AnyWorkspace,
        out: &mut [f32],
    ) -> Result<(), MoeError> {
        each_format!(self, ws, |layer, ws| layer.experts_f32(hidden_states, topk, ws, out))
    }

    /// Pairs of each expert in the forwards of this layer since the last time, `[E]`, when
    /// [`AnyWorkspace::record_experts`] is on. The workspace must not have served another layer
    /// of the same format in between.
    pub fn take_expert_pairs(&self, ws: &mut AnyWorkspace) -> Vec<i32> {
        each_format!(self, ws, |_layer, ws| ws.routed.take())
    }

    /// What serves which batch size.
    pub fn plan(&self) -> &MoePlan {
        match self {
            Self::F32(layer) => layer.plan(),
            Self::F16(layer) => layer.plan(),
            Self::Bf16(layer) => layer.plan(),
            Self::Fp8Block128(layer) => layer.plan(),
            Self::Fp8Tensor(layer) => layer.plan(),
            Self::Fp8Channel(layer) => layer.plan(),
        }
    }

    /// What it computes.
    pub fn config(&self) -> &MoeConfig {
        match self {
            Self::F32(layer) => layer.config(),
            Self::F16(layer) => layer.config(),
            Self::Bf16(layer) => layer.config(),
            Self::Fp8Block128(layer) => layer.config(),
            Self::Fp8Tensor(layer) => layer.config(),
            Self::Fp8Channel(layer) => layer.config(),
        }
    }

    /// How it chooses experts.
    pub fn router(&self) -> &Router {
        match self {
            Self::F32(layer) => layer.router(),
            Self::F16(layer) => layer.router(),
            Self::Bf16(layer) => layer.router(),
            Self::Fp8Block128(layer) => layer.router(),
            Self::Fp8Tensor(layer) => layer.router(),
            Self::Fp8Channel(layer) => layer.router(),
        }
    }
}
