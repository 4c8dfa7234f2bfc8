//! The experts of a layer on a GPU: [`CudaExperts::forward`] runs the way that the plan chose for
//! the batch size, one launch after the other, each waiting for its predecessor on the GPU.
//!
//! Everything is chosen, compiled and allocated before: `forward` only launches, so it can be
//! recorded in a CUDA graph.

mod direct;
mod shape;
mod sorted;
mod weighed;

use std::marker::PhantomData;

use artel_device::cuda::{Context, DeviceSlice, DeviceSliceMut, Kernels, Stream};

use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::config::{MoeConfig, Parallelism, RouterWeight};
pub use crate::grouped_gemm::decode::cuda::CodedRows;
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::input_weight::cuda::WeighRows;
pub use crate::packing::cuda::DeviceRouting;
use crate::plan::gpu::{ExpertsShape, GpuPath, GpuPlan, GpuPlanEntry, GpuProduct, Way};
use crate::quant::{Element, Format, NumberFormat};
use crate::weights::cuda::DeviceExperts;
use direct::{DirectChain, DirectMemory};
use sorted::{SortedChain, SortedMemory};
use weighed::Weighed;

/// All kernels that one plan may launch.
#[derive(Debug, Clone)]
pub struct ExpertsKernels<A: HalfElement> {
    chains: Vec<Chain<A>>,
    ids: IdForm,
    /// Where the router's weights are on the input.
    weigh: Option<WeighRows<A>>,
}

/// The launches of one way to serve a batch.
#[derive(Debug, Clone)]
enum Chain<A: HalfElement> {
    Direct(Box<DirectChain<A>>),
    Sorted(Box<SortedChain<A>>),
}

impl<A: HalfElement> ExpertsKernels<A> {
    /// Asks for the kernels of every way that `plan` names.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a format or sizes without kernels, [`MoeError::Cuda`] when a kernel
    /// is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        config: &MoeConfig,
        format: Format,
        plan: &GpuPlan,
    ) -> Result<Self, MoeError> {
        Self::load_form(kernels, (config, format), plan, IdForm::Plain)
    }

    /// As [`load`](Self::load) for [packed](DeviceRouting::Packed) ids and weights.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_packed(
        kernels: &mut Kernels,
        config: &MoeConfig,
        format: Format,
        plan: &GpuPlan,
    ) -> Result<Self, MoeError> {
        Self::load_form(kernels, (config, format), plan, IdForm::Packed)
    }

    /// Whether some batches read hidden states as codes, which [`Hidden`] may bring.
    pub fn reads_codes(&self) -> bool {
        let reads = |chain: &Chain<A>| match chain {
            Chain::Sorted(chain) => chain.reads_codes(),
            Chain::Direct(_) => false,
        };
        self.weigh.is_none() && self.chains.iter().any(reads)
    }

    fn load_form(
        kernels: &mut Kernels,
        (config, format): (&MoeConfig, Format),
        plan: &GpuPlan,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        let sizes = (config, format);
        let chain = |entry: &GpuPlanEntry| {
            let GpuPlanEntry { path, kernels: ways, tokens_max, .. } = *entry;
            let way = Way { path, kernels: ways };
            match way.path {
                GpuPath::Direct => DirectChain::load(kernels, sizes, way, tokens_max, ids)
                    .map(|chain| Chain::Direct(Box::new(chain))),
                GpuPath::Aligned { .. } => SortedChain::load(kernels, sizes, way, ids)
                    .map(|chain| Chain::Sorted(Box::new(chain))),
            }
        };
        let chains = plan.entries().iter().map(chain).collect::<Result<_, _>>()?;
        let weigh = match config.router_weight() {
            RouterWeight::OnInput if ids == IdForm::Packed => {
                let allowed = "on the output where ids and weights are packed";
                return Err(MoeError::config("router weight", "on the input", allowed));
            }
            RouterWeight::OnInput => Some(WeighRows::load(kernels, config.shape().hidden_size)?),
            RouterWeight::OnOutput => None,
        };
        Ok(Self { chains, ids, weigh })
    }
}

/// What experts read.
#[derive(Debug, Clone, Copy)]
pub struct Hidden<'a, A: HalfElement> {
    /// `[T, H]`.
    pub states: DeviceSlice<'a, A>,
    /// The same as codes, which ways that [read such](ExpertsProgram::reads_codes) need not make then.
    pub codes: Option<CodedRows<'a>>,
}

impl<'a, A: HalfElement> From<DeviceSlice<'a, A>> for Hidden<'a, A> {
    fn from(states: DeviceSlice<'a, A>) -> Self {
        Self { states, codes: None }
    }
}

/// What experts made of every pair, not summed yet: a token is `Σ_k weights[t, k] * rows[positions[t, k]]`.
#[derive(Debug, Clone, Copy)]
pub struct PairRows<'a, A: Element> {
    /// `[positions, H]`.
    pub rows: DeviceSlice<'a, A>,
    /// `[T, K]`: inside the rows, or -1 for a pair without one.
    pub positions: DeviceSlice<'a, i32>,
    /// `[T, K]`.
    pub weights: DeviceSlice<'a, f32>,
    /// `K`.
    pub top_k: usize,
}

/// One step of at most [`GpuPlan::tokens_per_step`] tokens.
#[derive(Debug, Clone, Copy)]
struct Step<'a, A: HalfElement> {
    hidden_states: DeviceSlice<'a, A>,
    codes: Option<CodedRows<'a>>,
    routing: DeviceRouting<'a>,
    tokens: usize,
    experts: &'a DeviceExperts,
}

/// The kernels of experts and the memory that they work in, which all layers of the same sizes share:
/// the weights come with each call.
#[derive(Debug)]
pub struct ExpertsProgram<A: HalfElement> {
    config: MoeConfig,
    shape: ExpertsShape,
    plan: GpuPlan,
    kernels: ExpertsKernels<A>,
    direct: Option<DirectMemory<A>>,
    sorted: Option<SortedMemory<A>>,
    weighed: Option<Weighed<A>>,
}

impl<A: HalfElement> ExpertsProgram<A> {
    /// A program whose kernels were loaded for the same configuration, format and plan.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when memory runs out.
    pub fn new(
        context: &Context,
        config: MoeConfig,
        format: Format,
        plan: GpuPlan,
        kernels: ExpertsKernels<A>,
    ) -> Result<Self, MoeError> {
        let (mut direct, mut sorted) = (None, None);
        for (chain, entry) in kernels.chains.iter().zip(plan.entries()) {
            match chain {
                Chain::Direct(chain) => {
                    DirectMemory::grow(&mut direct, context, chain, entry.tokens_max)?;
                }
                Chain::Sorted(chain) => {
                    SortedMemory::grow(&mut sorted, context, chain, entry.tokens_max)?;
                }
            }
        }
        let shape = ExpertsShape::of(&config, format);
        let weighed = kernels.weigh.as_ref().map(|kernel| {
            Weighed::new(context, kernel.clone(), plan.tokens_per_step(), shape.hidden_size)
        });
        let weighed = weighed.transpose()?;
        Ok(Self { config, shape, plan, kernels, direct, sorted, weighed })
    }

    /// Checks that these are weights of its layers.
    ///
    /// # Errors
    /// [`MoeError::Shape`] or [`MoeError::Config`] when they are not.
    pub fn check(&self, weights: &DeviceExperts) -> Result<(), MoeError> {
        let config = &self.config;
        let (w13, w2) = (weights.w13().layout(), weights.w2().layout());
        let intermediate_size = config.local_intermediate_size();
        let rows = config.activation().input_columns(intermediate_size);
        MoeError::check_shape("experts on this GPU", config.local_experts(), w13.experts)?;
        MoeError::check_shape("rows of w13", rows, w13.rows)?;
        MoeError::check_shape("columns of w13", config.shape().hidden_size, w13.columns)?;
        MoeError::check_shape("rows of w2", config.shape().hidden_size, w2.rows)?;
        MoeError::check_shape("columns of w2", intermediate_size, w2.columns)?;
        for biases in [weights.w13().biases(), weights.w2().biases()] {
            if biases.is_some() != config.gating().biases {
                let found = if biases.is_some() { "given" } else { "missing" };
                let allowed = "given exactly where the layer has some";
                return Err(MoeError::config("biases of the experts", found, allowed));
            }
        }
        let shape = &self.shape;
        for (product, found) in GpuProduct::ALL.into_iter().zip([w13, w2]) {
            let expected = shape.stack_layout(product).ok_or_else(|| shape.without_kernels())?;
            if *found != expected {
                let (found, allowed) = (format!("{found:?}"), format!("{expected:?}"));
                return Err(MoeError::config("layout of weights", found, allowed));
            }
        }
        Ok(())
    }

    /// What serves which batch size.
    pub fn plan(&self) -> &GpuPlan {
        &self.plan
    }

    /// What is computed.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// How a batch of `tokens` tokens is served; a larger one than a step as its first step is.
    pub fn way(&self, tokens: usize) -> Way {
        let entry = self.plan.entry(tokens.min(self.plan.tokens_per_step()));
        Way { path: entry.path, kernels: entry.kernels }
    }

    /// Whether a batch of `tokens` tokens reads hidden states as codes, which [`Hidden`] may bring.
    pub fn reads_codes(&self, tokens: usize) -> bool {
        match self.chain(tokens) {
            Some(Chain::Sorted(chain)) => self.weighed.is_none() && chain.reads_codes(),
            _ => false,
        }
    }

    /// Whether [`forward_pairs`](Self::forward_pairs) takes a batch of `tokens` tokens.
    pub fn leaves_pairs(&self, tokens: usize) -> bool {
        match self.chain(tokens) {
            Some(Chain::Sorted(chain)) => {
                self.weighed.is_none() && self.kernels.ids == IdForm::Plain && chain.leaves_pairs()
            }
            _ => false,
        }
    }

    /// What serves a batch that is one step.
    fn chain(&self, tokens: usize) -> Option<&Chain<A>> {
        let chosen = self.plan.entries().iter().position(|entry| tokens <= entry.tokens_max)?;
        (tokens <= self.plan.tokens_per_step()).then(|| &self.kernels.chains[chosen])
    }

    /// Hidden states `[T, H]` to hidden states `[T, H]` by `weights` that were
    /// [checked](Self::check); this rank's part of the sum over experts. Launches and returns; larger
    /// batches than a step run step by step.
    ///
    /// # Errors
    /// [`MoeError::Config`] for packed pairs where kernels were loaded for plain ones, and the other
    /// way round; [`MoeError::Cuda`] when a slice is too short or a launch fails.
    pub fn forward<'h>(
        &mut self,
        stream: &Stream,
        weights: &DeviceExperts,
        (hidden, routing): (impl Into<Hidden<'h, A>>, DeviceRouting<'_>),
        tokens: usize,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let (hidden_size, top_k) = (self.config.shape().hidden_size, self.config.shape().top_k);
        out.expect_len("output hidden states", tokens * hidden_size)?;
        let all = self.step(weights, (hidden.into(), routing), tokens)?;
        let mut done = 0;
        while done < tokens {
            let count = (tokens - done).min(self.plan.tokens_per_step());
            let step = Step {
                hidden_states: all.hidden_states.range(done * hidden_size, count * hidden_size)?,
                codes: all.codes.filter(|_| count == tokens),
                routing: routing.range(done * top_k, count * top_k)?,
                tokens: count,
                experts: weights,
            };
            let step = match &mut self.weighed {
                None => step,
                Some(weighed) => weighed.launch(stream, step)?,
            };
            let mut out = out.range_mut(done * hidden_size, count * hidden_size)?;
            let chosen = self.plan.entries().iter().position(|entry| count <= entry.tokens_max);
            let chosen = chosen.expect("this is a bug: a step longer than the plan's");
            match &self.kernels.chains[chosen] {
                Chain::Direct(chain) => {
                    let memory = self.direct.as_mut().expect("this is a bug: no memory");
                    chain.launch(stream, &step, memory, &mut out)?;
                }
                Chain::Sorted(chain) => {
                    let memory = self.sorted.as_mut().expect("this is a bug: no memory");
                    chain.launch(stream, &step, memory, &mut out)?;
                }
            }
            done += count;
        }
        Ok(())
    }

    /// As [`forward`](Self::forward), but leaves the sums to whoever takes the [`pairs`](Self::pairs).
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// For a batch that is [served otherwise](Self::leaves_pairs).
    pub fn forward_pairs(
        &mut self,
        stream: &Stream,
        weights: &DeviceExperts,
        (hidden, routing): (Hidden<'_, A>, DeviceRouting<'_>),
        tokens: usize,
    ) -> Result<(), MoeError> {
        assert!(self.leaves_pairs(tokens), "this is a bug: pairs of a batch that has sums");
        let step = self.step(weights, (hidden, routing), tokens)?;
        let chosen = self.plan.entries().iter().position(|entry| tokens <= entry.tokens_max);
        match (chosen.map(|chosen| &self.kernels.chains[chosen]), &mut self.sorted) {
            (Some(Chain::Sorted(chain)), Some(memory)) => chain.launch_pairs(stream, &step, memory),
            _ => panic!("this is a bug: no memory"),
        }
    }

    /// What the latest [`forward_pairs`](Self::forward_pairs) left of `tokens` tokens, routed as it was
    /// there.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] for more tokens than there is memory for.
    ///
    /// # Panics
    /// Where there is none.
    pub fn pairs<'a>(
        &'a self,
        routing: DeviceRouting<'a>,
        tokens: usize,
    ) -> Result<PairRows<'a, A>, MoeError> {
        let top_k = self.config.shape().top_k;
        let (Some(memory), DeviceRouting::Pairs { weights, .. }) = (&self.sorted, routing) else {
            panic!("this is a bug: pairs of a batch that has sums");
        };
        let (rows, positions) = memory.pairs();
        let count = tokens * top_k;
        Ok(PairRows {
            rows,
            positions: positions.range(0, count)?,
            weights: weights.range(0, count)?,
            top_k,
        })
    }

    /// A batch as one step.
    fn step<'a>(
        &self,
        experts: &'a DeviceExperts,
        (hidden, routing): (Hidden<'a, A>, DeviceRouting<'a>),
        tokens: usize,
    ) -> Result<Step<'a, A>, MoeError> {
        let (hidden_size, top_k) = (self.config.shape().hidden_size, self.config.shape().top_k);
        let Hidden { states: hidden_states, codes } = hidden;
        hidden_states.expect_len("hidden states", tokens * hidden_size)?;
        routing.check(self.kernels.ids, tokens * top_k)?;
        let codes = codes.filter(|_| self.reads_codes(tokens));
        Ok(Step { hidden_states, codes, routing, tokens, experts })
    }
}

/// The experts of one layer on one GPU, with the memory that they work in.
#[derive(Debug)]
pub struct CudaExperts<F: NumberFormat<Activation: HalfElement>> {
    program: ExpertsProgram<F::Activation>,
    weights: DeviceExperts,
    format: PhantomData<F>,
}

impl<F: NumberFormat<Activation: HalfElement>> CudaExperts<F> {
    /// Experts whose kernels were loaded for the same configuration and plan.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when weights and configuration do not belong together, [`MoeError::Cuda`]
    /// when memory runs out.
    pub fn new(
        context: &Context,
        config: MoeConfig,
        plan: GpuPlan,
        kernels: ExpertsKernels<F::Activation>,
        weights: DeviceExperts,
    ) -> Result<Self, MoeError> {
        let program = ExpertsProgram::new(context, config, F::NAME.parse()?, plan, kernels)?;
        program.check(&weights)?;
        Ok(Self { program, weights, format: PhantomData })
    }

    /// The same weights served by another plan, whose kernels are given.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn replan(
        self,
        context: &Context,
        plan: GpuPlan,
        kernels: ExpertsKernels<F::Activation>,
    ) -> Result<Self, MoeError> {
        let Self { program: ExpertsProgram { config, .. }, weights, .. } = self;
        Self::new(context, config, plan, kernels, weights)
    }

    /// What serves which batch size.
    pub fn plan(&self) -> &GpuPlan {
        self.program.plan()
    }

    /// What is computed.
    pub fn config(&self) -> &MoeConfig {
        self.program.config()
    }

    /// As [`ExpertsProgram::way`].
    pub fn way(&self, tokens: usize) -> Way {
        self.program.way(tokens)
    }

    /// As [`ExpertsProgram::forward`].
    ///
    /// # Errors
    /// As [`ExpertsProgram::forward`].
    pub fn forward(
        &mut self,
        stream: &Stream,
        hidden_states: DeviceSlice<'_, F::Activation>,
        routing: DeviceRouting<'_>,
        tokens: usize,
        out: &mut DeviceSliceMut<'_, F::Activation>,
    ) -> Result<(), MoeError> {
        self.program.forward(stream, &self.weights, (hidden_states, routing), tokens, out)
    }
}

/// The map of experts that are spread over ranks, as kernels take it.
fn expert_map(config: &MoeConfig) -> Option<&[i32]> {
    match config.parallelism() {
        Parallelism::Expert(map) => Some(map.local_ids()),
        Parallelism::Single | Parallelism::Tensor { .. } => None,
    }
}
