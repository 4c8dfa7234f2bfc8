//! One layer in one format, over all batch sizes.

use std::time::Instant;

use anyhow::{Result, ensure};
use artel_device::HostBuffer;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, RouterConfig};
use artel_moe::layer::{AnyMoeLayer, AnyWorkspace};
use artel_moe::quant::Format;
use artel_moe::router::{Gate, Router, RoutingMethod, TopK};
use artel_moe::weights::AnyExperts;
use rand::{SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::ceilings::{gemm_crate_gigaflops, median, read_rate};
use super::report::{Report, Row};
use super::weights::{bytes_of, expert_over, random_buffer, random_floats, random_matrix};
use super::{LayerShape, Options};

/// Layers with different weights, used in turn.
struct Layers {
    layers: Vec<AnyMoeLayer>,
    buffers: Vec<HostBuffer>,
    num_experts: usize,
    bytes_per_expert: usize,
}

/// Measures every batch size and adds the rows to `report`.
pub fn layer(
    options: &Options,
    shape: &LayerShape,
    format: Format,
    report: &mut Report,
) -> Result<()> {
    let layers = Layers::new(options, shape, format)?;
    // Half of the reads before the layer runs and half after, in case the machine's pace changes.
    let read_before = read_rate(&layers.buffers, 3);
    let mut timed = Vec::new();
    for &tokens in &options.tokens {
        timed.push(time(options, shape, &layers, tokens)?);
    }
    let read_after = read_rate(&layers.buffers, 3);
    let read_rate = read_before.max(read_after);
    for (&tokens, timed) in options.tokens.iter().zip(timed) {
        let rows = tokens * shape.top_k;
        let gemm_rows = rows.min(GEMM_ROWS_MAX);
        let gemm = gemm_crate_gigaflops(gemm_rows, shape.hidden_size, shape.intermediate_size);
        report.add(Row {
            shape: shape.name.to_owned(),
            format,
            tokens,
            num_experts: layers.num_experts,
            num_experts_published: shape.num_experts,
            microseconds: timed.microseconds,
            microseconds_min: timed.microseconds_min,
            weight_bytes: timed.experts_touched * layers.bytes_per_expert as f64,
            bytes_per_weight: layers.bytes_per_expert as f64
                / (3 * shape.hidden_size * shape.intermediate_size) as f64,
            relative_error: timed.relative_error,
            operations: (6 * rows * shape.hidden_size * shape.intermediate_size) as f64,
            read_gigabytes_per_second: read_rate,
            gemm_crate_gigaflops: gemm,
        });
    }
    Ok(())
}

/// Rows of the dense product that a batch is compared with, at most: beyond, its rate is constant.
const GEMM_ROWS_MAX: usize = 4096;
/// Tokens of a batch that are compared with the definition.
const CHECKED_TOKENS: usize = 4;
/// Largest relative error of a result whose time counts.
const ERROR_MAX: f64 = 5e-3;

impl Layers {
    fn new(options: &Options, shape: &LayerShape, format: Format) -> Result<Self> {
        let (hidden_size, intermediate_size) = (shape.hidden_size, shape.intermediate_size);
        let numbers = 3 * hidden_size * intermediate_size;
        let bytes = bytes_of(format, numbers);
        let fitting = options.weight_bytes_max / bytes;
        let num_experts = shape.num_experts.min(fitting);
        ensure!(num_experts >= shape.top_k, "{fitting} experts of {} fit", shape.name);
        let config = MoeShape { hidden_size, intermediate_size, num_experts, top_k: shape.top_k };
        let config = MoeConfig::new(config, Activation::Silu)?;
        let (mut layers, mut buffers) = (Vec::new(), Vec::new());
        let mut bytes_per_expert = 0;
        for layer in 0..fitting / num_experts {
            let buffer = random_buffer(format, numbers * num_experts, layer as u64);
            let expert = |expert: usize| {
                expert_over(format, &buffer, expert, [hidden_size, intermediate_size])
            };
            let experts = (0..num_experts).map(expert).collect::<Result<Vec<_>>>()?;
            let parts = experts[0].w13.iter().chain([&experts[0].w2]);
            bytes_per_expert = parts.map(|part| part.bytes()).sum();
            let gate = Gate::new(random_matrix(Format::Bf16, num_experts, hidden_size, 9)?, None)?;
            let method = RoutingMethod::softmax_renormalize();
            let router = Router::new(RouterConfig::new(method, num_experts, shape.top_k)?)?;
            let experts = AnyExperts::new(experts)?;
            let features = options.features;
            layers.push(AnyMoeLayer::new(config.clone(), gate, router, experts, features)?);
            buffers.push(buffer);
        }
        Ok(Self { layers, buffers, num_experts, bytes_per_expert })
    }
}

struct Timed {
    microseconds: f64,
    microseconds_min: f64,
    /// Mean number of different experts of a step.
    experts_touched: f64,
    /// Of the last step, against float64.
    relative_error: f64,
}

/// One batch size: at least `seconds_per_row` and at least nine steps, each with a new routing.
fn time(options: &Options, shape: &LayerShape, layers: &Layers, tokens: usize) -> Result<Timed> {
    let mut rng = ChaCha8Rng::seed_from_u64(tokens as u64);
    let hidden_states = random_floats(tokens * shape.hidden_size, 7);
    let mut out = vec![0f32; hidden_states.len()];
    let mut ws = AnyWorkspace::new(options.features);
    let (mut times, mut touched) = (Vec::new(), Vec::new());
    let (mut spent, mut relative_error) = (0.0, f64::NAN);
    for step in 0.. {
        let topk = uniform_routing(&mut rng, tokens, shape.top_k, layers.num_experts);
        let layer = &layers.layers[step % layers.layers.len()];
        let start = Instant::now();
        layer.experts(&hidden_states, &topk, &mut ws, &mut out)?;
        let seconds = start.elapsed().as_secs_f64();
        // The first steps allocate.
        if step < 2 {
            continue;
        }
        times.push(seconds * 1e6);
        touched.push(distinct_experts(&topk.ids, layers.num_experts) as f64);
        spent += seconds;
        if spent >= options.seconds_per_row && times.len() >= 9 {
            relative_error = compare(layer, &hidden_states, &topk, &out)?;
            break;
        }
    }
    ensure!(
        relative_error <= ERROR_MAX,
        "{tokens} tokens of {}: the error against float64 is {relative_error:.1e}, expected \
         {ERROR_MAX:.0e} at most; no time stands for a wrong result",
        shape.name
    );
    let microseconds_min = times.iter().copied().fold(f64::INFINITY, f64::min);
    let experts_touched = touched.iter().sum::<f64>() / touched.len() as f64;
    Ok(Timed { microseconds: median(times), microseconds_min, experts_touched, relative_error })
}

/// `|out - definition| / |definition|` over the first tokens of a batch.
fn compare(layer: &AnyMoeLayer, hidden_states: &[f32], topk: &TopK, out: &[f32]) -> Result<f64> {
    let hidden_size = layer.config().shape().hidden_size;
    let of_token = |token: usize| -> Result<[f64; 2]> {
        let (row, topk) = (token * hidden_size, topk.of_tokens(token..token + 1));
        let expected = layer.experts_reference(&hidden_states[row..row + hidden_size], &topk)?;
        Ok(expected.iter().zip(&out[row..]).fold([0.0; 2], |[error, norm], (expected, &found)| {
            [error + (expected - f64::from(found)).powi(2), norm + expected.powi(2)]
        }))
    };
    let tokens = (hidden_states.len() / hidden_size).min(CHECKED_TOKENS);
    let squares = (0..tokens).into_par_iter().map(of_token).collect::<Result<Vec<_>>>()?;
    let sum = |part: usize| squares.iter().map(|squares| squares[part]).sum::<f64>();
    Ok((sum(0) / sum(1)).sqrt())
}

/// Every token's experts are different and equally likely.
fn uniform_routing(rng: &mut ChaCha8Rng, tokens: usize, top_k: usize, experts: usize) -> TopK {
    let mut ids = Vec::with_capacity(tokens * top_k);
    for _ in 0..tokens {
        ids.extend(sample(rng, experts, top_k).into_iter().map(|expert| expert as i32));
    }
    let weights = vec![1.0 / top_k as f32; ids.len()];
    TopK { ids, weights, top_k }
}

/// How many of `experts` experts are among the ids, all of which are such.
pub(super) fn distinct_experts(ids: &[i32], experts: usize) -> usize {
    let mut seen = vec![false; experts];
    ids.iter().for_each(|&id| seen[id as usize] = true);
    seen.into_iter().filter(|&seen| seen).count()
}
