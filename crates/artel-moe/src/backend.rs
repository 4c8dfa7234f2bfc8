//! MoeBackend: one method per step of the layer. A backend only calls the op folders; what is
//! computed is defined there.

use artel_device::cpu::CpuFeatures;
use bytemuck::Pod;

use crate::MoeError;
use crate::activation::activate;
use crate::assignment::{self, AlignOptions, Assignment, LocalExperts, NonLocalExperts};
use crate::combine::{Combine, Identity, Locality, RowWeights, Slots, combine};
use crate::config::{MoeConfig, Parallelism, RouterWeight};
use crate::dispatch::{Batch, ExpertParallel};
use crate::eplb::ExpertLoad;
use crate::eplb::map_and_record::{self, LoadRecorder, PlacementRule};
use crate::grouped_gemm::{GemmFormat, GemmScratch, GroupedGemm, dense, grouped_gemm};
use crate::plan::PlannedAssignment;
use crate::quant::{Element, NumberFormat};
use crate::router::{self, Gate, Logits, Router, Routing};
use crate::weights::ExpertMatrices;

/// Where the steps of a layer run. Steps of one layer are called in the order in which they are
/// declared; each writes its last argument and reads only what it is given.
pub trait MoeBackend<F: NumberFormat> {
    /// Numbers where this backend computes on them.
    type Buffer<T: Pod>: Default;
    /// Experts and weights of every token.
    type Routing: Default;
    /// Which rows each expert computes.
    type Assignment: Default;

    /// Makes room for `length` numbers and keeps the capacity it has.
    fn resize<T: Pod>(&mut self, buffer: &mut Self::Buffer<T>, length: usize);

    /// Hidden states `[T, H]` to logits `[T, E]`.
    fn router_logits(
        &mut self,
        gate: &Gate,
        hidden_states: &Self::Buffer<F::Activation>,
        router_logits: &mut Self::Buffer<f32>,
    ) -> Result<(), MoeError>;

    /// Logits to experts and weights.
    fn route(
        &mut self,
        router: &Router,
        router_logits: &Self::Buffer<f32>,
        routing: &mut Self::Routing,
    ) -> Result<(), MoeError>;

    /// Logical experts to physical ones; counts the load of each.
    fn place(
        &mut self,
        placement: &PlacementRule,
        load: &mut ExpertLoad,
        routing: &mut Self::Routing,
    ) -> Result<(), MoeError>;

    /// Experts and weights to the rows of each expert.
    fn assign(
        &mut self,
        config: &MoeConfig,
        planned: PlannedAssignment,
        routing: &Self::Routing,
        assignment: &mut Self::Assignment,
    ) -> Result<(), MoeError>;

    /// Rows of each expert times its matrix.
    fn grouped_gemm(
        &mut self,
        product: Product<'_, F, Self>,
        out: &mut Self::Buffer<F::Activation>,
    ) -> Result<(), MoeError>
    where
        Self: Sized;

    /// Gate and up `[M, 2I]` to the input of the second product `[M, I]`.
    fn activate(
        &mut self,
        config: &MoeConfig,
        gate_up: &Self::Buffer<F::Activation>,
        out: &mut Self::Buffer<F::Activation>,
    ) -> Result<(), MoeError>;

    /// The rows of all pairs `[T * K, H]`, computed by ranks in place of the steps from placement to
    /// the second product. Experts stay those of the model.
    fn run_on_ranks(
        &mut self,
        ranks: &ExpertParallel,
        hidden_states: &Self::Buffer<F::Activation>,
        routing: &Self::Routing,
        rows: &mut Self::Buffer<F::Activation>,
    ) -> Result<(), MoeError>;

    /// Rows `[T * K, H]` to hidden states `[T, H]`.
    fn combine(
        &mut self,
        config: &MoeConfig,
        rows: (&Self::Routing, &Self::Buffer<F::Activation>),
        hidden_states: &Self::Buffer<F::Activation>,
        out: &mut Self::Buffer<F::Activation>,
    ) -> Result<(), MoeError>;
}

/// One of the two products of the experts.
pub struct Product<'a, F: NumberFormat, B: MoeBackend<F>> {
    /// One matrix per expert.
    pub weights: &'a ExpertMatrices<F>,
    /// Input rows.
    pub rows: &'a B::Buffer<F::Activation>,
    /// Neighbouring pairs that share a row: top-k for the first product, 1 for the second.
    pub pairs_per_row: usize,
    /// Rows of each expert.
    pub assignment: &'a B::Assignment,
    /// Where this product's output is multiplied by the router's weights.
    pub router_weights: Option<&'a B::Routing>,
}

/// All cores and the best instruction set of this processor. Holds the scratch of its steps.
#[derive(Debug)]
pub struct CpuBackend {
    features: CpuFeatures,
    gemm: GemmScratch,
    assignment: assignment::Workspace,
}

impl CpuBackend {
    /// A backend that uses no more than `features`.
    pub fn new(features: CpuFeatures) -> Self {
        Self { features, gemm: GemmScratch::default(), assignment: Default::default() }
    }

    /// What it may use.
    pub fn features(&self) -> CpuFeatures {
        self.features
    }
}

impl<F: GemmFormat> MoeBackend<F> for CpuBackend {
    type Buffer<T: Pod> = Vec<T>;
    type Routing = Routing;
    type Assignment = Assignment;

    fn resize<T: Pod>(&mut self, buffer: &mut Vec<T>, length: usize) {
        buffer.resize(length, T::zeroed());
    }

    fn router_logits(
        &mut self,
        gate: &Gate,
        hidden_states: &Vec<F::Activation>,
        router_logits: &mut Vec<f32>,
    ) -> Result<(), MoeError> {
        dense(self.features, hidden_states, gate.weight(), router_logits, &mut self.gemm)?;
        if let Some(bias) = gate.bias() {
            for logits in router_logits.chunks_exact_mut(bias.len()) {
                logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
            }
        }
        Ok(())
    }

    fn route(
        &mut self,
        router: &Router,
        router_logits: &Vec<f32>,
        routing: &mut Routing,
    ) -> Result<(), MoeError> {
        let tokens = router_logits.len() / router.config().num_logits();
        router::cpu::route(router, &Logits::new(router_logits, tokens), routing)
    }

    fn place(
        &mut self,
        placement: &PlacementRule,
        load: &mut ExpertLoad,
        routing: &mut Routing,
    ) -> Result<(), MoeError> {
        let topk = &mut routing.topk;
        let unpadded_tokens = topk.tokens();
        let (table, rule) = (placement.table(), placement.rule());
        let (expert_load, enabled) = load.counts(table.num_physical());
        let recorder = LoadRecorder { expert_load, enabled, unpadded_tokens };
        map_and_record::cpu::map_and_record(&mut topk.ids, topk.top_k, table, rule, recorder)
    }

    fn assign(
        &mut self,
        config: &MoeConfig,
        planned: PlannedAssignment,
        routing: &Routing,
        assignment: &mut Assignment,
    ) -> Result<(), MoeError> {
        let num_experts = config.shape().num_experts;
        match planned {
            PlannedAssignment::Direct => {
                assignment::cpu::direct(&routing.topk.ids, num_experts, assignment)
            }
            PlannedAssignment::Aligned { block_size } => {
                let experts = match config.parallelism() {
                    Parallelism::Expert(map) => LocalExperts::Mapped(map, NonLocalExperts::Drop),
                    Parallelism::Single | Parallelism::Tensor { .. } => LocalExperts::All,
                };
                let options =
                    AlignOptions { experts, ..AlignOptions::new(num_experts, block_size) };
                let ids = &routing.topk.ids;
                assignment::cpu::align(ids, &options, &mut self.assignment, assignment)
            }
        }
    }

    fn grouped_gemm(
        &mut self,
        product: Product<'_, F, Self>,
        out: &mut Vec<F::Activation>,
    ) -> Result<(), MoeError> {
        let gemm = GroupedGemm {
            rows: product.rows,
            pairs_per_row: product.pairs_per_row,
            weights: product.weights,
            assignment: product.assignment,
            row_weights: match product.router_weights {
                None => RowWeights::One,
                Some(routing) => RowWeights::Routed(&routing.topk.weights),
            },
        };
        grouped_gemm(self.features, gemm, out, &mut self.gemm)
    }

    fn activate(
        &mut self,
        config: &MoeConfig,
        gate_up: &Vec<F::Activation>,
        out: &mut Vec<F::Activation>,
    ) -> Result<(), MoeError> {
        let intermediate_size = config.local_intermediate_size();
        activate(self.features, config.activation(), intermediate_size, gate_up, out)
    }

    fn run_on_ranks(
        &mut self,
        ranks: &ExpertParallel,
        hidden_states: &Vec<F::Activation>,
        routing: &Routing,
        rows: &mut Vec<F::Activation>,
    ) -> Result<(), MoeError> {
        let weights_on_input = ranks.config().router_weight() == RouterWeight::OnInput;
        ranks.compute(Batch { hidden_states, topk: &routing.topk, weights_on_input }, rows)
    }

    fn combine(
        &mut self,
        config: &MoeConfig,
        (routing, rows): (&Routing, &Vec<F::Activation>),
        hidden_states: &Vec<F::Activation>,
        out: &mut Vec<F::Activation>,
    ) -> Result<(), MoeError> {
        let slots = Slots {
            ids: &routing.topk.ids,
            weights: match config.router_weight() {
                RouterWeight::OnOutput => RowWeights::Routed(&routing.topk.weights),
                RouterWeight::OnInput => RowWeights::One,
            },
            top_k: routing.topk.top_k,
            locality: match config.parallelism() {
                Parallelism::Expert(map) => Locality::Map(map.local_ids()),
                Parallelism::Single | Parallelism::Tensor { .. } => {
                    Locality::All { num_experts: config.shape().num_experts }
                }
            },
        };
        let weights = &routing.identity_weights;
        let identity = (!weights.is_empty()).then_some(Identity { weights, hidden_states });
        combine(self.features, Combine { slots, rows, identity }, out)
    }
}

/// Copies numbers into a reused vector, changing their precision.
pub(crate) fn convert<X: Element, Y: Element>(from: &[X], to: &mut Vec<Y>) {
    to.clear();
    to.extend(from.iter().map(|x| Y::from_f32(x.to_f32())));
}
