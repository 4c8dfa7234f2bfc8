//! The layer inside an engine of your own, on the CPU: the engine brings weights, hidden states and
//! memory for the result; the layer routes, computes and allocates nothing once it is warm.
//!
//!     cargo run --release -p artel-moe --example own_threads

use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, with_threads};
use artel_moe::MoeError;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, RouterConfig};
use artel_moe::layer::{AnyMoeLayer, AnyWorkspace};
use artel_moe::quant::{AnyMatrix, DenseMatrix, Format};
use artel_moe::router::{Gate, Router, RoutingMethod};
use artel_moe::weights::{AnyExperts, ExpertTensors};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EXPERTS: usize = 16;
const TOP_K: usize = 4;
const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 512;
const TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layer = layer(Format::Bf16)?;
    println!("{}", layer.plan());
    let hidden_states = numbers(&mut ChaCha8Rng::seed_from_u64(2), TOKENS * HIDDEN, 1.0);
    let mut out = vec![0.0; TOKENS * HIDDEN];
    let mut workspace = AnyWorkspace::new(CpuFeatures::detect());
    // Threads are the engine's choice; the bits of the result do not depend on how many there are.
    with_threads(1, || layer.forward(&hidden_states, &mut workspace, &mut out))??;
    let mut again = vec![0.0; out.len()];
    with_threads(2, || layer.forward(&hidden_states, &mut workspace, &mut again))??;
    assert_eq!(out, again);
    let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
    println!("{TOKENS} tokens, norm of the output {norm:.4}, the same bits on 1 and 2 threads");
    Ok(())
}

/// A layer with random experts that are stored in `format`.
fn layer(format: Format) -> Result<AnyMoeLayer, MoeError> {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let mut expert = || {
        let expert = ExpertTensors {
            w13: vec![matrix(rng, INTERMEDIATE, HIDDEN)?, matrix(rng, INTERMEDIATE, HIDDEN)?],
            w13_bias: None,
            w2: matrix(rng, HIDDEN, INTERMEDIATE)?,
            w2_bias: None,
        };
        expert.convert(format)
    };
    let experts = (0..EXPERTS).map(|_| expert()).collect::<Result<Vec<_>, _>>()?;
    let shape = MoeShape {
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_experts: EXPERTS,
        top_k: TOP_K,
    };
    let config = MoeConfig::new(shape, Activation::Silu)?;
    let method = RoutingMethod::softmax_renormalize();
    let router = Router::new(RouterConfig::new(method, EXPERTS, TOP_K)?)?;
    let gate = Gate::new(matrix(rng, EXPERTS, HIDDEN)?, None)?;
    AnyMoeLayer::new(config, gate, router, AnyExperts::new(experts)?, CpuFeatures::detect())
}

fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Result<AnyMatrix, MoeError> {
    let limit = (columns as f32).sqrt().recip();
    let buffer = HostBuffer::from_vec(numbers(rng, rows * columns, limit));
    Ok(AnyMatrix::F32(DenseMatrix::new(buffer, rows, columns)?))
}

fn numbers(rng: &mut ChaCha8Rng, count: usize, limit: f32) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-limit..limit)).collect()
}
