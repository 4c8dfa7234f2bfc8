use artel_device::cpu::CpuFeatures;
#[cfg(feature = "cuda")]
use artel_device::cuda::Context;

use super::{MoeLayer, Workspace};
use crate::MoeError;
use crate::backend::CpuBackend;
use crate::config::MoeConfig;
use crate::dispatch::{CopyChoice, ExpertParallel, RankedLayer};
use crate::eplb::LayerPlan;
use crate::eplb::map_and_record::PlacementRule;
use crate::inputs::ExpertInputs;
use crate::plan::MoePlan;
use crate::quant::{self, Element, Format, each_format, for_each_format, map_format};
use crate::router::{Gate, Router, TopK};
use crate::weights::AnyExperts;
#[cfg(feature = "cuda")]
use crate::weights::cuda::DeviceExperts;

macro_rules! define_any_layer {
    (() $($(#[doc = $doc:literal])* $Format:ident $field:ident)*) => {
        /// A layer whose format the checkpoint chose: what a model holds. Float32 at the edges.
        #[derive(Debug, Clone)]
        pub enum AnyMoeLayer {
            $($(#[doc = $doc])* $Format(MoeLayer<quant::$Format>),)*
        }

        /// The workspace of layers of any format. One serves all layers of a model.
        #[derive(Debug)]
        pub struct AnyWorkspace {
            $($field: Workspace<quant::$Format>,)*
        }

        impl AnyWorkspace {
            /// An empty workspace; grows with the first steps.
            pub fn new(features: CpuFeatures) -> Self {
                Self { $($field: Workspace::new(CpuBackend::new(features)),)* }
            }

            /// Switches the counting of pairs by expert on or off.
            pub fn record_experts(&mut self, recording: bool) {
                $(self.$field.routed.record(recording);)*
            }

            /// Records what experts are given from now on.
            pub fn record_inputs(&mut self) {
                $(self.$field.inputs = Some(ExpertInputs::default());)*
            }
        }
    };
}
for_each_format!(define_any_layer());

/// Runs the same expression on the layer of whichever format, with its workspace.
macro_rules! each_layer {
    ($layer:expr, $ws:expr, |$inner:ident, $workspace:ident| $run:expr) => {
        for_each_format!(match_layer($layer, $ws, $inner, $workspace, $run))
    };
}

/// The `match` of [`each_layer`].
macro_rules! match_layer {
    (
        ($layer:expr, $ws:expr, $inner:ident, $workspace:ident, $run:expr)
        $($(#[doc = $doc:literal])* $Format:ident $field:ident)*
    ) => {
        match $layer {
            $(AnyMoeLayer::$Format($inner) => {
                let $workspace = &mut $ws.$field;
                $run
            })*
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
        Ok(map_format!(AnyExperts => Self, experts, |experts| {
            MoeLayer::new(config, gate, router, experts, features)?
        }))
    }

    /// As [`MoeLayer::with_placement`].
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the placement has another number of experts.
    pub fn with_placement(self, placement: PlacementRule) -> Result<Self, MoeError> {
        Ok(map_format!(Self => Self, self, |layer| layer.with_placement(placement)?))
    }

    /// This layer as ranks are given it: its experts in the slots of `plan`.
    pub fn for_ranks(&self, plan: LayerPlan, choice: impl Into<CopyChoice>) -> RankedLayer {
        let experts = map_format!(Self => AnyExperts, self, |layer| layer.experts().clone());
        RankedLayer { config: self.config().clone(), experts, plan, choice: choice.into() }
    }

    /// The same layer with its experts computed by ranks. The router stays here, and the bits of the
    /// result are those of this layer with kernels of
    /// [`CpuFeatures::with_invariant_rows`], wherever the experts are.
    ///
    /// # Errors
    /// [`MoeError`] when the ranks hold another layer.
    pub fn on_ranks(self, ranks: ExpertParallel) -> Result<Self, MoeError> {
        Ok(map_format!(Self => Self, self, |layer| layer.on_ranks(ranks)?))
    }

    /// Its experts on ranks, if they are.
    pub fn ranks(&self) -> Option<&ExpertParallel> {
        each_format!(Self, self, |layer| layer.ranks())
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
        each_layer!(self, ws, |layer, ws| layer.forward_f32(hidden_states, ws, out))
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
        each_layer!(self, ws, |layer, ws| layer.experts_f32(hidden_states, topk, ws, out))
    }

    /// What [`experts`](Self::experts) has to come to, in float64, as
    /// [`MoeLayer::experts_reference`] defines it: naive and slow.
    ///
    /// # Errors
    /// As [`MoeLayer::experts_reference`].
    pub fn experts_reference(
        &self,
        hidden_states: &[f32],
        topk: &TopK,
    ) -> Result<Vec<f64>, MoeError> {
        each_format!(Self, self, |layer| {
            let narrowed: Vec<_> = hidden_states.iter().map(|&x| Element::from_f32(x)).collect();
            layer.experts_reference(&narrowed, topk)
        })
    }

    /// Pairs of each expert in the forwards of this layer since the last time, `[E]`, when
    /// [`AnyWorkspace::record_experts`] is on. The workspace must not have served another layer
    /// of the same format in between.
    pub fn take_expert_pairs(&self, ws: &mut AnyWorkspace) -> Vec<i32> {
        each_layer!(self, ws, |_layer, ws| ws.routed.take())
    }

    /// What the experts have met in the forwards of this layer since the last time, when
    /// [`AnyWorkspace::record_inputs`] was called. The workspace must not have served another layer of
    /// the same format in between.
    pub fn take_inputs(&self, ws: &mut AnyWorkspace) -> ExpertInputs {
        each_layer!(self, ws, |_layer, ws| {
            ws.inputs.as_mut().map(std::mem::take).unwrap_or_default()
        })
    }

    /// What serves which batch size.
    pub fn plan(&self) -> &MoePlan {
        each_format!(Self, self, |layer| layer.plan())
    }

    /// What it computes.
    pub fn config(&self) -> &MoeConfig {
        each_format!(Self, self, |layer| layer.config())
    }

    /// How it chooses experts.
    pub fn router(&self) -> &Router {
        each_format!(Self, self, |layer| layer.router())
    }

    /// The linear layer in front of the router.
    pub fn gate(&self) -> &Gate {
        each_format!(Self, self, |layer| layer.gate())
    }

    /// Format of its experts.
    pub fn format(&self) -> Format {
        match self.plan().format().parse() {
            Ok(format) => format,
            Err(why) => panic!("this is a bug: a plan for no format: {why}"),
        }
    }

    /// A copy of its experts on a GPU.
    ///
    /// # Errors
    /// As [`DeviceExperts::upload`].
    #[cfg(feature = "cuda")]
    pub fn upload(&self, context: &Context) -> Result<DeviceExperts, MoeError> {
        each_format!(Self, self, |layer| {
            DeviceExperts::upload(context, layer.config(), layer.experts())
        })
    }
}
