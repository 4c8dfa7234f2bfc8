//! One batch size of a layer: a graph of several routings, timed and checked.

use anyhow::{Result, ensure};
use artel_device::cuda::{Context, DeviceBuffer, Event, Graph, Stream};
use artel_moe::config::MoeShape;
use artel_moe::grouped_gemm::GemmFormat;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::layer::MoeLayer;
use artel_moe::layer::cuda::{CudaExperts, DeviceRouting};
use artel_moe::quant::Element;
use artel_moe::router::TopK;
use artel_moe::router::simulator::{Simulator, SimulatorConfig};
use rayon::prelude::*;

use super::super::{RoutingKind, Row};
use crate::bench::layer::ceilings::median;
use crate::bench::layer::measure::distinct_experts;
use crate::bench::layer::weights::random_floats;
use crate::shapes::NamedLayer;

/// Replays that are timed.
pub const REPLAYS: usize = 25;
/// Largest relative error of a result that counts.
const ERROR_MAX: f64 = 5e-3;
/// Steps whose output is compared with the definition.
const CHECKED_STEPS: usize = 2;

/// Milliseconds of what is launched.
///
/// # Errors
/// When a launch fails.
pub fn timed(stream: &Stream, launch: impl FnOnce(&Stream) -> Result<()>) -> Result<f64> {
    let (start, end) = (Event::new(stream.context())?, Event::new(stream.context())?);
    start.record(stream)?;
    launch(stream)?;
    end.record(stream)?;
    Ok(f64::from(start.elapsed_ms(&end)?))
}

/// A result that is not the reference's, as opposed to none.
#[derive(Debug)]
pub struct WrongResult(String);

impl std::fmt::Display for WrongResult {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for WrongResult {}

/// What is timed.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// How tokens choose their experts.
    pub routing: RoutingKind,
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens whose output is compared with the definition, on the CPU.
    pub checked: usize,
}

/// What one step of the graph reads and writes.
struct Step<A: HalfElement> {
    ids: DeviceBuffer<i32>,
    weights: DeviceBuffer<f32>,
    hidden: DeviceBuffer<A>,
    out: DeviceBuffer<A>,
}

impl<A: HalfElement> Step<A> {
    fn new(context: &Context, topk: &TopK, hidden_states: &[A]) -> Result<Self> {
        Ok(Self {
            ids: DeviceBuffer::from_host(context, &topk.ids)?,
            weights: DeviceBuffer::from_host(context, &topk.weights)?,
            hidden: DeviceBuffer::from_host(context, hidden_states)?,
            out: DeviceBuffer::zeroed(context, hidden_states.len())?,
        })
    }
}

/// A batch size with its inputs on the GPU and the output that they should have: made once for all
/// ways to serve it, because the definition takes longer than the GPU does.
pub struct Trial<F: GemmFormat<Activation: HalfElement>> {
    batch: Batch,
    steps: Vec<Step<F::Activation>>,
    /// The last tokens of the first steps.
    expected: Vec<Vec<f64>>,
    /// In a step, on average.
    experts_touched: f64,
    /// Weights and hidden states that a step reads and writes.
    bytes: f64,
}

impl<F: GemmFormat<Activation: HalfElement>> Trial<F> {
    /// Random tokens for `reference`, whose definition tells what should come of them.
    ///
    /// # Errors
    /// When they do not fit the GPU, or what it says.
    pub fn new(
        context: &Context,
        shape: &NamedLayer,
        reference: &MoeLayer<F>,
        batch: Batch,
    ) -> Result<Self> {
        let Batch { routing, tokens, checked } = batch;
        let MoeShape { num_experts, top_k, hidden_size, .. } = *shape.config.shape();
        let config = SimulatorConfig { num_experts, top_k, seed: tokens as u64, layer: 0 };
        let mut simulator = Simulator::new(routing.workload(), config)?;
        // The weights of eight small steps are several times the cache; large steps read them all.
        let count = if tokens < 64 { 8 } else { 2 };
        let (mut steps, mut expected, mut distinct) = (Vec::new(), Vec::new(), 0);
        for step in 0..count {
            let topk = routed(&mut simulator, tokens, top_k);
            let floats = random_floats(tokens * hidden_size, step);
            let hidden_states: Vec<F::Activation> =
                floats.par_iter().map(|x| Element::from_f32(x * 16.0)).collect();
            if expected.len() < CHECKED_STEPS {
                let last = topk.of_tokens(tokens - tokens.min(checked)..tokens);
                let from = hidden_states.len() - tokens.min(checked) * hidden_size;
                expected.push(reference.fused_experts_reference(&hidden_states[from..], &last)?);
            }
            distinct += distinct_experts(&topk.ids, num_experts);
            steps.push(Step::new(context, &topk, &hidden_states)?);
        }
        let experts_touched = distinct as f64 / steps.len() as f64;
        let states = 2 * tokens * hidden_size * size_of::<F::Activation>();
        let bytes = experts_touched * reference.experts().bytes_per_expert() as f64 + states as f64;
        Ok(Self { batch, steps, expected, experts_touched, bytes })
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch.tokens
    }

    /// Times one way and compares the output with the definition.
    ///
    /// # Errors
    /// [`WrongResult`] where it is another, or what the GPU says.
    pub fn time(
        &mut self,
        context: &Context,
        shape: &NamedLayer,
        experts: &mut CudaExperts<F>,
    ) -> Result<Row> {
        let Batch { routing, tokens, .. } = self.batch;
        let MoeShape { top_k, hidden_size, .. } = *shape.config.shape();
        // What an earlier way has left there must not count as the output of this one.
        self.steps.iter_mut().try_for_each(|step| step.out.fill_bytes(0))?;
        let stream = context.stream()?;
        let graph = Graph::capture(&stream, |stream| -> Result<()> {
            for Step { ids, weights, hidden, out } in &mut self.steps {
                let routing = DeviceRouting::Pairs { ids: ids.slice(), weights: weights.slice() };
                experts.forward(stream, hidden.slice(), routing, tokens, &mut out.slice_mut())?;
            }
            Ok(())
        })?;
        let mut times = Vec::new();
        for replay in 0..REPLAYS + 5 {
            let milliseconds = timed(&stream, |stream| {
                // SAFETY: all buffers of the steps and of the layer live until the end.
                Ok(unsafe { graph.launch(stream) }?)
            })?;
            // The first replays warm up.
            if replay >= 5 {
                times.push(milliseconds * 1e3 / self.steps.len() as f64);
            }
        }
        let relative_error = self.check(&stream, &graph, hidden_size)?;
        Ok(Row {
            tokens,
            routing: routing.name(),
            path: experts.way(tokens).to_string(),
            microseconds_min: times.iter().copied().fold(f64::INFINITY, f64::min),
            microseconds: median(times),
            experts_touched: self.experts_touched,
            bytes: self.bytes,
            operations: (6 * tokens * top_k * hidden_size * shape.config.local_intermediate_size())
                as f64,
            relative_error,
            floor_microseconds: 0.0,
            share_of_floor: 0.0,
            terabytes_per_second: 0.0,
            teraflops: 0.0,
        })
    }

    /// Relative error of the last tokens of the first steps; a second run gives the same bits.
    fn check(&self, stream: &Stream, graph: &Graph, hidden_size: usize) -> Result<f64> {
        let Batch { tokens, checked, .. } = self.batch;
        let outputs = || -> Result<Vec<Vec<F::Activation>>> {
            self.steps.iter().map(|step| Ok(step.out.to_host(stream)?)).collect()
        };
        let first = outputs()?;
        // SAFETY: as when it was timed.
        unsafe { graph.launch(stream) }?;
        let same_bits = |(a, b): (&Vec<F::Activation>, &Vec<F::Activation>)| {
            bytemuck::cast_slice::<_, u8>(a) == bytemuck::cast_slice::<_, u8>(b)
        };
        ensure!(
            first.iter().zip(&outputs()?).all(same_bits),
            WrongResult(format!("{tokens} tokens: two runs differ"))
        );
        let from = (tokens - tokens.min(checked)) * hidden_size;
        let (mut error, mut norm) = (0.0, 0.0);
        for (expected, out) in self.expected.iter().zip(&first) {
            for (expected, found) in expected.iter().zip(&out[from..]) {
                error += (expected - f64::from(found.to_f32())).powi(2);
                norm += expected.powi(2);
            }
        }
        let relative_error = (error / norm).sqrt();
        ensure!(
            relative_error <= ERROR_MAX,
            WrongResult(format!(
                "{tokens} tokens: the error against float64 is {relative_error:.1e}, expected {ERROR_MAX:.0e} at most"
            ))
        );
        Ok(relative_error)
    }
}

/// Simulated choices, with weights that differ, so that a mistaken one is seen.
fn routed(simulator: &mut Simulator, tokens: usize, top_k: usize) -> TopK {
    let mut topk = TopK::default();
    simulator.route(tokens, &mut topk);
    let weight = |index: usize| (1.0 + (index % 7) as f32) / (4.0 * top_k as f32);
    topk.weights = (0..topk.ids.len()).map(weight).collect();
    topk
}
