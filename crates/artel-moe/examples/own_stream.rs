//! The experts inside an engine of your own, on a GPU: the engine owns context, stream, weights and
//! buffers; the library owns kernels and a workspace, launches on the engine's stream and returns.
//!
//!     cargo run --release -p artel-moe --features cuda --example own_stream [KERNEL_PACK]
//!
//! Kernels come from the pack, or are compiled if a toolkit is installed (`cargo xtask toolkit`).
//! For a machine with a GPU and no toolkit, `own_stream build KERNEL_PACK` makes the pack elsewhere.

use std::path::Path;

use artel_device::HostBuffer;
use artel_device::cpu::CpuFeatures;
use artel_device::cuda::{
    Architecture, Compiler, Context, DeviceBuffer, KernelPack, Kernels, compile_all,
};
use artel_moe::MoeError;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, RouterConfig};
use artel_moe::cuda::shipped;
use artel_moe::layer::MoeLayer;
use artel_moe::layer::cuda::{CudaExperts, DeviceRouting, ExpertsKernels};
use artel_moe::plan::gpu::GpuPlan;
use artel_moe::quant::{AnyMatrix, DenseMatrix, Element, Format, Fp8Block128};
use artel_moe::router::simulator::{Simulator, SimulatorConfig, Workload};
use artel_moe::router::{Gate, Router, RoutingMethod, TopK};
use artel_moe::weights::cuda::DeviceExperts;
use artel_moe::weights::{AnyExperts, ExpertTensors, ExpertWeights};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FORMAT: Format = Format::Fp8Block128;
const EXPERTS: usize = 16;
const TOP_K: usize = 4;
const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 512;
/// The largest batch of the plan, and of the workspace.
const TOKENS_MAX: usize = 256;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["build", pack] => build(Path::new(pack)),
        [pack] => run(vec![KernelPack::load(Path::new(pack))?]),
        _ => run(Vec::new()),
    }
}

/// Everything an engine does once, and then for every batch.
fn run(packs: Vec<KernelPack>) -> Result<()> {
    let context = Context::new(0)?;
    let stream = context.stream()?;

    // Once: plan, kernels, weights. Nothing is compiled or allocated after this.
    let plan = plan(context.architecture())?;
    println!("{plan}");
    let mut kernels = Kernels::open(&context, packs, Compiler::find().ok());
    let loaded = ExpertsKernels::load(&mut kernels, &config()?, FORMAT, &plan)?;
    let weights = weights()?;
    let on_gpu = DeviceExperts::upload(&context, &config()?, &weights)?;
    let mut experts = CudaExperts::<Fp8Block128>::new(&context, config()?, plan, loaded, on_gpu)?;
    let reference = reference(weights)?;

    // For every batch: launch on the engine's stream, between kernels of the engine's own; the call
    // may also be recorded into a CUDA graph.
    for tokens in [1, 3, 64, TOKENS_MAX] {
        let (hidden_states, topk) = batch(tokens)?;
        let hidden = DeviceBuffer::from_host(&context, &hidden_states)?;
        let ids = DeviceBuffer::from_host(&context, &topk.ids)?;
        let topk_weights = DeviceBuffer::from_host(&context, &topk.weights)?;
        let mut out = context.buffer::<bf16>(tokens * HIDDEN)?;
        let routing = DeviceRouting::Pairs { ids: ids.slice(), weights: topk_weights.slice() };
        experts.forward(&stream, hidden.slice(), routing, tokens, &mut out.slice_mut())?;
        let found = out.to_host(&stream)?;

        let error = relative_error(&reference, &hidden_states, &topk, &found)?;
        println!("{tokens:>4} tokens: relative error {error:.1e}, {}", experts.way(tokens));
        // The definition rounds to bfloat16 before it quantises; the GPU does not.
        assert!(error <= 1e-2, "{tokens} tokens: the error against the definition is {error:.1e}");
    }
    Ok(())
}

/// Compiles what `run` will ask for, also for packed ids and weights; needs no GPU.
fn build(path: &Path) -> Result<()> {
    let architecture = Architecture::Sm90;
    let mut kernels = Kernels::list(architecture);
    let (config, plan) = (config()?, plan(architecture)?);
    ExpertsKernels::<bf16>::load(&mut kernels, &config, FORMAT, &plan)?;
    ExpertsKernels::<bf16>::load_packed(&mut kernels, &config, FORMAT, &plan)?;
    let mut pack = KernelPack::default();
    for kernel in compile_all(&Compiler::find()?, kernels.specs(), architecture, |_| {})? {
        pack.insert(kernel);
    }
    pack.save(path)?;
    println!("{} kernels for {architecture} in {}", pack.len(), path.display());
    Ok(())
}

fn config() -> std::result::Result<MoeConfig, MoeError> {
    let shape = MoeShape {
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_experts: EXPERTS,
        top_k: TOP_K,
    };
    MoeConfig::new(shape, Activation::Silu)
}

fn plan(architecture: Architecture) -> Result<GpuPlan> {
    Ok(shipped::plan_in_steps(architecture, &config()?, FORMAT, TOKENS_MAX)?)
}

/// Random experts, rounded to the format.
fn weights() -> Result<ExpertWeights<Fp8Block128>> {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    let mut expert = || {
        let expert = ExpertTensors {
            w13: vec![matrix(rng, 2 * INTERMEDIATE, HIDDEN)?],
            w13_bias: None,
            w2: matrix(rng, HIDDEN, INTERMEDIATE)?,
            w2_bias: None,
        };
        expert.convert(FORMAT)
    };
    let experts = (0..EXPERTS).map(|_| expert()).collect::<std::result::Result<Vec<_>, _>>()?;
    match AnyExperts::new(experts)? {
        AnyExperts::Fp8Block128(weights) => Ok(weights),
        other => Err(format!("experts in {}, expected {FORMAT}", other.format()).into()),
    }
}

fn matrix(
    rng: &mut ChaCha8Rng,
    rows: usize,
    columns: usize,
) -> std::result::Result<AnyMatrix, MoeError> {
    let limit = 2.0 * (columns as f32).sqrt().recip();
    let numbers = (0..rows * columns).map(|_| rng.random_range(-limit..limit)).collect();
    Ok(AnyMatrix::F32(DenseMatrix::new(HostBuffer::from_vec::<f32>(numbers), rows, columns)?))
}

/// Random tokens, and the experts that a router chose for them.
fn batch(tokens: usize) -> Result<(Vec<bf16>, TopK)> {
    let mut rng = ChaCha8Rng::seed_from_u64(tokens as u64);
    let config = SimulatorConfig { num_experts: EXPERTS, top_k: TOP_K, seed: 3, layer: 0 };
    let mut topk = TopK::default();
    Simulator::new(Workload::Uniform, config)?.route(tokens, &mut topk);
    topk.weights.iter_mut().for_each(|weight| *weight = rng.random_range(0.1..0.5));
    let number = |_| <bf16 as Element>::from_f32(rng.random_range(-1.0..1.0));
    Ok(((0..tokens * HIDDEN).map(number).collect(), topk))
}

/// The layer on the CPU, for its definition; the gate is not used.
fn reference(weights: ExpertWeights<Fp8Block128>) -> Result<MoeLayer<Fp8Block128>> {
    let method = RoutingMethod::softmax_renormalize();
    let router = Router::new(RouterConfig::new(method, EXPERTS, TOP_K)?)?;
    let gate = Gate::new(matrix(&mut ChaCha8Rng::seed_from_u64(4), EXPERTS, HIDDEN)?, None)?;
    Ok(MoeLayer::new(config()?, gate, router, weights, CpuFeatures::detect())?)
}

/// Frobenius norm of the error over that of the result in float64.
fn relative_error(
    reference: &MoeLayer<Fp8Block128>,
    hidden_states: &[bf16],
    topk: &TopK,
    found: &[bf16],
) -> Result<f64> {
    let expected = reference.fused_experts_reference(hidden_states, topk)?;
    let (mut error, mut norm) = (0.0, 0.0);
    for (expected, found) in expected.iter().zip(found) {
        error += (expected - f64::from(Element::to_f32(*found))).powi(2);
        norm += expected.powi(2);
    }
    Ok((error / norm).sqrt())
}
