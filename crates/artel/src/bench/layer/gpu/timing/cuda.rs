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

use super::super::{RoutingKind, Row};
use crate::bench::layer::ceilings::median;
use crate::bench::layer::weights::random_floats;
use crate::shapes::NamedLayer;

/// Replays that are timed.
pub const REPLAYS: usize = 25;
/// Largest relative error of a result that counts.
const ERROR_MAX: f64 = 2e-2;

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

/// What one step of the graph reads and writes.
struct Step<F: GemmFormat<Activation: HalfElement>> {
    topk: TopK,
    hidden_states: Vec<F::Activation>,
    ids: DeviceBuffer<i32>,
    weights: DeviceBuffer<f32>,
    hidden: DeviceBuffer<F::Activation>,
    out: DeviceBuffer<F::Activation>,
}

impl<F: GemmFormat<Activation: HalfElement>> Step<F> {
    fn new(
        context: &Context,
        shape: &NamedLayer,
        simulator: &mut Simulator,
        tokens: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut topk = TopK::default();
        simulator.route(tokens, &mut topk);
        // Weights that differ, so that a mistaken one is seen.
        let weight =
            |index: usize| (1.0 + (index % 7) as f32) / (4.0 * shape.config.shape().top_k as f32);
        topk.weights = (0..topk.ids.len()).map(weight).collect();
        let floats = random_floats(tokens * shape.config.shape().hidden_size, seed);
        let hidden_states: Vec<F::Activation> =
            floats.iter().map(|x| Element::from_f32(x * 16.0)).collect();
        Ok(Self {
            ids: DeviceBuffer::from_host(context, &topk.ids)?,
            weights: DeviceBuffer::from_host(context, &topk.weights)?,
            hidden: DeviceBuffer::from_host(context, &hidden_states)?,
            out: DeviceBuffer::zeroed(context, hidden_states.len())?,
            topk,
            hidden_states,
        })
    }

    fn distinct_experts(&self, experts: usize) -> usize {
        let mut seen = vec![false; experts];
        self.topk.ids.iter().for_each(|&id| seen[id as usize] = true);
        seen.into_iter().filter(|&seen| seen).count()
    }
}

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

/// Times one batch size and compares the output with the definition.
///
/// # Errors
/// [`WrongResult`] where it is another, or what the GPU says.
pub fn time<F: GemmFormat<Activation: HalfElement>>(
    context: &Context,
    shape: &NamedLayer,
    experts: &mut CudaExperts<F>,
    reference: &MoeLayer<F>,
    batch: Batch,
) -> Result<Row> {
    let Batch { routing, tokens, .. } = batch;
    let MoeShape { num_experts, top_k, hidden_size, .. } = *shape.config.shape();
    let config = SimulatorConfig { num_experts, top_k, seed: tokens as u64, layer: 0 };
    let mut simulator = Simulator::new(routing.workload(), config)?;
    // The weights of eight small steps are several times the cache; large steps read them all.
    let steps = if tokens < 64 { 8 } else { 2 };
    let steps = (0..steps).map(|step| Step::new(context, shape, &mut simulator, tokens, step));
    let mut steps = steps.collect::<Result<Vec<Step<F>>>>()?;
    let stream = context.stream()?;
    let graph = Graph::capture(&stream, |stream| -> Result<()> {
        for Step { ids, weights, hidden, out, .. } in &mut steps {
            let routing = DeviceRouting { ids: ids.slice(), weights: weights.slice() };
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
            times.push(milliseconds * 1e3 / steps.len() as f64);
        }
    }
    let relative_error = check(&stream, &graph, shape, reference, &steps, batch)?;
    let touched = steps.iter().map(|step| step.distinct_experts(num_experts) as f64);
    let experts_touched = touched.sum::<f64>() / steps.len() as f64;
    let states = 2 * tokens * hidden_size * size_of::<F::Activation>();
    let bytes = experts_touched * reference.experts().bytes_per_expert() as f64 + states as f64;
    Ok(Row {
        tokens,
        routing: routing.name(),
        path: experts.way(tokens).to_string(),
        microseconds_min: times.iter().copied().fold(f64::INFINITY, f64::min),
        microseconds: median(times),
        experts_touched,
        bytes,
        operations: (6 * tokens * top_k * hidden_size * shape.config.local_intermediate_size())
            as f64,
        relative_error,
        floor_microseconds: 0.0,
        share_of_floor: 0.0,
        terabytes_per_second: 0.0,
        teraflops: 0.0,
    })
}

/// Relative error of the last tokens of each step; a second run gives the same bits.
fn check<F: GemmFormat<Activation: HalfElement>>(
    stream: &Stream,
    graph: &Graph,
    shape: &NamedLayer,
    reference: &MoeLayer<F>,
    steps: &[Step<F>],
    Batch { tokens, checked, .. }: Batch,
) -> Result<f64> {
    let outputs = |steps: &[Step<F>]| -> Result<Vec<Vec<F::Activation>>> {
        steps.iter().map(|step| Ok(step.out.to_host(stream)?)).collect()
    };
    let first = outputs(steps)?;
    // SAFETY: as when it was timed.
    unsafe { graph.launch(stream) }?;
    let bits = |outputs: &[Vec<F::Activation>]| -> Vec<u8> {
        outputs.iter().flat_map(|out| bytemuck::cast_slice(out).to_vec()).collect()
    };
    ensure!(
        bits(&first) == bits(&outputs(steps)?),
        WrongResult(format!("{tokens} tokens: two runs differ"))
    );
    let checked = tokens.min(checked);
    let (mut error, mut norm) = (0.0, 0.0);
    for (step, out) in steps.iter().zip(&first).take(2) {
        let from = tokens - checked;
        let pairs = from * shape.config.shape().top_k..tokens * shape.config.shape().top_k;
        let topk = TopK {
            ids: step.topk.ids[pairs.clone()].to_vec(),
            weights: step.topk.weights[pairs].to_vec(),
            top_k: shape.config.shape().top_k,
        };
        let hidden_states = &step.hidden_states[from * shape.config.shape().hidden_size..];
        let expected = reference.fused_experts_reference(hidden_states, &topk)?;
        for (expected, found) in
            expected.iter().zip(&out[from * shape.config.shape().hidden_size..])
        {
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
