//! The layer: the file to read first. [`MoeLayer::forward`] is the algorithm, one line a step.

mod any;
#[cfg(feature = "cuda")]
pub mod cuda;
mod reference;
#[cfg(test)]
mod tests;

pub use any::{AnyMoeLayer, AnyWorkspace};

use crate::MoeError;
use crate::backend::{CpuBackend, MoeBackend, Product, convert};
use crate::config::{MoeConfig, RouterWeight};
use crate::dispatch::ExpertParallel;
use crate::eplb::ExpertLoad;
use crate::eplb::map_and_record::PlacementRule;
use crate::grouped_gemm::GemmFormat;
use crate::inputs::ExpertInputs;
use crate::plan::MoePlan;
use crate::router::{Gate, Router, Routing, TopK};
use crate::weights::ExpertWeights;
use artel_device::cpu::CpuFeatures;

/// One mixture-of-experts layer with experts of format `F`.
#[derive(Debug, Clone)]
pub struct MoeLayer<F: GemmFormat> {
    config: MoeConfig,
    plan: MoePlan,
    gate: Gate,
    router: Router,
    placement: Option<PlacementRule>,
    ranks: Option<ExpertParallel>,
    experts: ExpertWeights<F>,
}

/// Everything a layer writes on its way. Reused: once it has seen the largest batch, nothing is
/// allocated any more.
#[derive(Debug)]
pub struct Workspace<F: GemmFormat, B: MoeBackend<F> = CpuBackend> {
    backend: B,
    step: B::Buffer<F::Activation>,
    router_logits: B::Buffer<f32>,
    routing: B::Routing,
    assignment: B::Assignment,
    gate_up: B::Buffer<F::Activation>,
    activated: B::Buffer<F::Activation>,
    rows: B::Buffer<F::Activation>,
    out: B::Buffer<F::Activation>,
    /// Load of the physical experts, when the layer has a placement.
    pub expert_load: ExpertLoad,
    /// Pairs of each expert that [`MoeLayer::forward_f32`] has computed.
    pub routed: ExpertLoad,
    /// What the experts have met in [`MoeLayer::forward_f32`], where it is recorded. On ranks nothing is.
    pub inputs: Option<ExpertInputs>,
}

impl<F: GemmFormat, B: MoeBackend<F>> Workspace<F, B> {
    /// An empty workspace on `backend`.
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            step: B::Buffer::default(),
            router_logits: B::Buffer::default(),
            routing: B::Routing::default(),
            assignment: B::Assignment::default(),
            gate_up: B::Buffer::default(),
            activated: B::Buffer::default(),
            rows: B::Buffer::default(),
            out: B::Buffer::default(),
            expert_load: ExpertLoad::default(),
            routed: ExpertLoad::default(),
            inputs: None,
        }
    }
}

impl<F: GemmFormat> MoeLayer<F> {
    /// A layer whose plan is for this processor.
    ///
    /// # Errors
    /// [`MoeError`] when gate, router, experts and configuration do not belong together.
    pub fn new(
        config: MoeConfig,
        gate: Gate,
        router: Router,
        experts: ExpertWeights<F>,
        features: CpuFeatures,
    ) -> Result<Self, MoeError> {
        let shape = config.shape();
        let w13_rows = config.activation().input_columns(config.local_intermediate_size());
        MoeError::check_shape("columns of the router", shape.hidden_size, gate.weight().columns())?;
        MoeError::check_shape(
            "rows of the router",
            router.config().num_logits(),
            gate.weight().rows(),
        )?;
        MoeError::check_shape("slots of the router", shape.top_k, router.config().slots())?;
        MoeError::check_shape("experts of this rank", config.local_experts(), experts.experts())?;
        MoeError::check_shape(
            "hidden size of the experts",
            shape.hidden_size,
            experts.hidden_size(),
        )?;
        MoeError::check_shape("rows of w13", w13_rows, experts.w13().rows())?;
        let columns = experts.intermediate_size();
        MoeError::check_shape("columns of w2", config.local_intermediate_size(), columns)?;
        let config = config.with_biases(experts.has_biases());
        let plan = MoePlan::new::<F>(&config, features);
        Ok(Self { config, plan, gate, router, placement: None, ranks: None, experts })
    }

    /// The same with logical experts served by physical ones.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the placement has another number of experts.
    pub fn with_placement(self, placement: PlacementRule) -> Result<Self, MoeError> {
        let physical = placement.table().num_physical();
        MoeError::check_shape("physical experts", self.config.shape().num_experts, physical)?;
        Ok(Self { placement: Some(placement), ..self })
    }

    /// The same with its experts computed by ranks, which hold them already.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the ranks hold another layer, or this one has a placement of its own.
    pub fn on_ranks(self, ranks: ExpertParallel) -> Result<Self, MoeError> {
        let (held, format) = (ranks.config(), ranks.format().name());
        if *held != self.config || format != F::NAME {
            let found = format!("{format} with {held:?}");
            let allowed = format!("{} with {:?}", F::NAME, self.config);
            return Err(MoeError::config("layer on ranks", found, allowed));
        }
        if self.placement.is_some() {
            let allowed = "none: ranks place experts themselves";
            return Err(MoeError::config("placement of a layer on ranks", "given", allowed));
        }
        let plan = MoePlan::on_ranks::<F>(ranks.ranks(), ranks.features());
        Ok(Self { ranks: Some(ranks), plan, ..self })
    }

    /// Its experts on ranks, if they are.
    pub fn ranks(&self) -> Option<&ExpertParallel> {
        self.ranks.as_ref()
    }

    /// The same served by another plan.
    pub fn with_plan(self, plan: MoePlan) -> Self {
        Self { plan, ..self }
    }

    /// The linear layer in front of the router.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// How it chooses experts.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// What serves which batch size.
    pub fn plan(&self) -> &MoePlan {
        &self.plan
    }

    /// What it computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// The weights of its experts.
    pub fn experts(&self) -> &ExpertWeights<F> {
        &self.experts
    }

    /// Hidden states `[T, H]` to hidden states `[T, H]`. At most the plan's tokens per step.
    ///
    /// # Errors
    /// [`MoeError`] when a shape is wrong.
    pub fn forward<B: MoeBackend<F>>(
        &self,
        hidden_states: &B::Buffer<F::Activation>,
        tokens: usize,
        ws: &mut Workspace<F, B>,
        out: &mut B::Buffer<F::Activation>,
    ) -> Result<(), MoeError> {
        ws.backend.resize(&mut ws.router_logits, tokens * self.router.config().num_logits());
        ws.backend.router_logits(&self.gate, hidden_states, &mut ws.router_logits)?; // [T, E]
        ws.backend.route(&self.router, &ws.router_logits, &mut ws.routing)?; // ids, weights [T, K]
        self.place_and_run_experts(hidden_states, tokens, ws, out)
    }

    /// The layer behind its router: `ws.routing` holds the experts of each token.
    fn place_and_run_experts<B: MoeBackend<F>>(
        &self,
        hidden_states: &B::Buffer<F::Activation>,
        tokens: usize,
        ws: &mut Workspace<F, B>,
        out: &mut B::Buffer<F::Activation>,
    ) -> Result<(), MoeError> {
        let pairs = tokens * self.config.shape().top_k;
        ws.backend.resize(&mut ws.rows, pairs * self.experts.hidden_size());
        ws.backend.resize(out, tokens * self.experts.hidden_size());
        if let Some(ranks) = &self.ranks {
            let Workspace { backend, routing, rows, .. } = ws;
            backend.run_on_ranks(ranks, hidden_states, routing, rows)?; // [T * K, H]
        } else {
            self.run_experts(hidden_states, tokens, ws)?; // [T * K, H]
        }
        let rows = (&ws.routing, &ws.rows);
        ws.backend.combine(&self.config, rows, hidden_states, out) // [T, H]
    }

    /// The rows of all pairs, computed here.
    fn run_experts<B: MoeBackend<F>>(
        &self,
        hidden_states: &B::Buffer<F::Activation>,
        tokens: usize,
        ws: &mut Workspace<F, B>,
    ) -> Result<(), MoeError> {
        let Workspace { backend, routing, assignment, gate_up, activated, rows, .. } = ws;
        let (config, top_k) = (&self.config, self.config.shape().top_k);
        let planned = self.plan.entry(tokens).assignment;
        let (w13, w2) = (self.experts.w13(), self.experts.w2());
        backend.resize(gate_up, tokens * top_k * w13.rows());
        backend.resize(activated, tokens * top_k * w2.columns());

        if let Some(placement) = &self.placement {
            backend.place(placement, &mut ws.expert_load, routing)?; // logical -> physical
        }
        backend.assign(config, planned, routing, assignment)?; // rows of each expert
        let router_weights = match config.router_weight() {
            RouterWeight::OnInput => Some(&*routing),
            RouterWeight::OnOutput => None,
        };
        let first = Product {
            weights: w13,
            rows: hidden_states,
            pairs_per_row: top_k,
            assignment,
            router_weights,
        };
        backend.grouped_gemm(first, gate_up)?; // [T * K, 2I]
        backend.activate(config, gate_up, activated)?; // [T * K, I]
        let second = Product {
            weights: w2,
            rows: activated,
            pairs_per_row: 1,
            assignment,
            router_weights: None,
        };
        backend.grouped_gemm(second, rows) // [T * K, H]
    }
}

impl<F: GemmFormat> MoeLayer<F> {
    /// Hidden states in float32, any number of tokens: rounds to the format's precision and runs
    /// [`forward`](Self::forward) a step at a time.
    ///
    /// # Errors
    /// [`MoeError`] when a shape is wrong.
    pub fn forward_f32(
        &self,
        hidden_states: &[f32],
        ws: &mut Workspace<F>,
        out: &mut [f32],
    ) -> Result<(), MoeError> {
        self.each_step(hidden_states, ws, out, |hidden_states, tokens, ws, out| {
            self.forward(hidden_states, tokens, ws, out)?;
            let experts = self.config.shape().num_experts;
            ws.routed.add(experts, &ws.routing.topk.ids);
            if let (Some(inputs), None) = (&mut ws.inputs, &self.ranks) {
                inputs.add_step(experts, &ws.routing.topk, hidden_states, &ws.activated);
            }
            Ok(())
        })
    }

    /// The experts alone: as [`forward_f32`](Self::forward_f32) behind the router, whose `topk` is
    /// given.
    ///
    /// # Errors
    /// [`MoeError`] when a shape is wrong.
    pub fn experts_f32(
        &self,
        hidden_states: &[f32],
        topk: &TopK,
        ws: &mut Workspace<F>,
        out: &mut [f32],
    ) -> Result<(), MoeError> {
        let (hidden_size, top_k) = (self.config.shape().hidden_size, self.config.shape().top_k);
        MoeError::check_shape("slots of topk", top_k, topk.top_k)?;
        let pairs = hidden_states.len() / hidden_size * top_k;
        MoeError::check_shape("topk ids", pairs, topk.ids.len())?;
        MoeError::check_shape("topk weights", pairs, topk.weights.len())?;
        let mut done = 0;
        self.each_step(hidden_states, ws, out, |hidden_states, tokens, ws, out| {
            let Routing { topk: step, identity_weights, .. } = &mut ws.routing;
            let pairs = done * top_k..(done + tokens) * top_k;
            step.resize(tokens, top_k);
            step.ids.copy_from_slice(&topk.ids[pairs.clone()]);
            step.weights.copy_from_slice(&topk.weights[pairs]);
            identity_weights.clear();
            done += tokens;
            self.place_and_run_experts(hidden_states, tokens, ws, out)
        })
    }

    fn each_step(
        &self,
        hidden_states: &[f32],
        ws: &mut Workspace<F>,
        out: &mut [f32],
        mut run: impl FnMut(
            &Vec<F::Activation>,
            usize,
            &mut Workspace<F>,
            &mut Vec<F::Activation>,
        ) -> Result<(), MoeError>,
    ) -> Result<(), MoeError> {
        let hidden_size = self.config.shape().hidden_size;
        let tokens = hidden_states.len() / hidden_size;
        MoeError::check_shape("hidden states", tokens * hidden_size, hidden_states.len())?;
        MoeError::check_shape("output hidden states", hidden_states.len(), out.len())?;
        let numbers = self.plan.tokens_per_step() * hidden_size;
        let (mut step, mut step_out) = (std::mem::take(&mut ws.step), std::mem::take(&mut ws.out));
        let mut result = Ok(());
        for (hidden_states, out) in hidden_states.chunks(numbers).zip(out.chunks_mut(numbers)) {
            convert(hidden_states, &mut step);
            result = run(&step, hidden_states.len() / hidden_size, ws, &mut step_out);
            if result.is_err() {
                break;
            }
            for (out, value) in out.iter_mut().zip(&step_out) {
                *out = crate::quant::Element::to_f32(*value);
            }
        }
        (ws.step, ws.out) = (step, step_out);
        result
    }
}
