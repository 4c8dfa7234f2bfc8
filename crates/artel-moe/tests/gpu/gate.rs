//! The gate: its partial logits add up to the product, and routing follows their sum.

use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::quant::Element;
use artel_moe::router::gate::cuda::{GateBuffers, GateElement, GateRoute, NARROW_TOKENS_MAX};
use artel_moe::router::{
    Logits, Router, RouterConfig, Routing, RoutingMethod, SelectionBias, reference,
};
use half::bf16;

pub fn cases() -> Vec<Case> {
    let config = |method, experts, top_k| RouterConfig::new(method, experts, top_k).expect("legal");
    let minimax2 = config(RoutingMethod::minimax2(), 256, 8);
    let gpt_oss = config(RoutingMethod::top_k_then_softmax(), 32, 4);
    let mixtral = config(RoutingMethod::softmax_renormalize(), 8, 2);
    let deepseek_v2 = config(RoutingMethod::deepseek_v2(8, 3), 160, 6);
    vec![
        gate::<bf16>("gate::minimax2_narrow", (minimax2, 3072, false)),
        gate::<f32>("gate::minimax2_wide", (minimax2, 3072, false)),
        gate::<bf16>("gate::gpt_oss_with_bias", (gpt_oss, 2880, true)),
        gate::<bf16>("gate::mixtral", (mixtral, 4096, false)),
        gate::<f32>("gate::one_step", (deepseek_v2, 64, true)),
        Case::new(
            "gate::sizes_without_a_kernel",
            |_| Ok::<(), MoeError>(()),
            move |gpu, ()| {
                let mut kernels =
                    artel_device::cuda::Kernels::list(gpu.stream.context().architecture());
                assert!(
                    GateRoute::<bf16>::load(&mut kernels, &minimax2, (3000, false), 1).is_err()
                );
                assert!(GateRoute::<bf16>::load(&mut kernels, &minimax2, (0, false), 1).is_err());
                Ok(())
            },
        ),
    ]
}

/// Deterministic numbers that look random, in -1 .. 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 24) as f32 * 2.0 - 1.0
    };
    (0..count).map(next).collect()
}

trait Weight: GateElement + Element {
    fn round(x: f32) -> Self;
}

impl Weight for f32 {
    fn round(x: f32) -> Self {
        x
    }
}

impl Weight for bf16 {
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// A gate with its numbers.
struct Problem<W> {
    router: Router,
    hidden_size: usize,
    weight: Vec<W>,
    logit_bias: Vec<f32>,
}

fn gate<W: Weight>(
    name: &'static str,
    (config, hidden_size, has_bias): (RouterConfig, usize, bool),
) -> Case {
    let load = move |kernels: &mut _| {
        GateRoute::<W>::load(kernels, &config, (hidden_size, has_bias), 2 * NARROW_TOKENS_MAX + 1)
    };
    Case::new(name, load, move |gpu, gate| {
        let logits = config.num_logits();
        let biases = match config.method().bias {
            SelectionBias::None => 0,
            SelectionBias::PerExpert => logits,
        };
        let problem = Problem {
            router: Router::with_bias(config, noise(biases, 1))?,
            hidden_size,
            weight: noise(logits * hidden_size, 2).into_iter().map(W::round).collect(),
            logit_bias: noise(if has_bias { logits } else { 0 }, 3),
        };
        for tokens in [
            0,
            1,
            5,
            16,
            17,
            64,
            65,
            129,
            300,
            NARROW_TOKENS_MAX,
            NARROW_TOKENS_MAX + 1,
            2 * NARROW_TOKENS_MAX + 1,
        ] {
            check(gpu, gate, &problem, tokens)?;
        }
        Ok(())
    })
}

fn check<W: Weight>(
    gpu: &Gpu,
    gate: &GateRoute<W>,
    problem: &Problem<W>,
    tokens: usize,
) -> Result<(), MoeError> {
    let hidden: Vec<bf16> =
        noise(tokens * problem.hidden_size, 4).into_iter().map(bf16::from_f32).collect();
    let (parts, routed) = run(gpu, gate, problem, &hidden)?;
    let again = run(gpu, gate, problem, &hidden)?;
    assert_eq!(parts, again.0, "every run adds alike");
    assert_eq!(routed.topk, again.1.topk);

    let row_len = problem.router.config().num_logits();
    let mut logits = vec![0f32; tokens * row_len];
    if tokens > 0 {
        let mut parts = parts.chunks_exact(tokens * row_len);
        logits.copy_from_slice(parts.next().expect("one part at least"));
        for part in parts {
            logits.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
    compare_logits(problem, &hidden, &logits);
    let mut expected = Routing::default();
    reference::route(&problem.router, &Logits::new(&logits, tokens), &mut expected)?;
    assert_eq!(routed.topk.ids, expected.topk.ids);
    for (routed, expected) in routed.topk.weights.iter().zip(&expected.topk.weights) {
        assert!((routed - expected).abs() <= 1e-6 * expected.abs(), "{routed} not {expected}");
    }
    Ok(())
}

/// Against float64, as a share of what the terms add up to without their signs.
fn compare_logits<W: Weight>(problem: &Problem<W>, hidden: &[bf16], logits: &[f32]) {
    let experts = problem.router.config().num_logits();
    for (position, &logit) in logits.iter().enumerate() {
        let (token, expert) = (position / experts, position % experts);
        let x = &hidden[token * problem.hidden_size..][..problem.hidden_size];
        let w = &problem.weight[expert * problem.hidden_size..][..problem.hidden_size];
        let terms = || x.iter().zip(w).map(|(x, w)| f64::from(x.to_f32()) * f64::from(w.to_f32()));
        let bias = problem.logit_bias.get(expert).copied().map_or(0.0, f64::from);
        let exact = terms().sum::<f64>() + bias;
        let size = terms().map(f64::abs).sum::<f64>() + bias.abs();
        let error = (f64::from(logit) - exact).abs() / size;
        assert!(error <= 1e-6, "token {token}, expert {expert}: {logit} not {exact}, {error:e}");
    }
}

fn run<W: Weight>(
    gpu: &Gpu,
    gate: &GateRoute<W>,
    problem: &Problem<W>,
    hidden: &[bf16],
) -> Result<(Vec<f32>, Routing), MoeError> {
    let config = problem.router.config();
    let tokens = hidden.len() / problem.hidden_size;
    let (hidden, weight) = (gpu.upload(hidden), gpu.upload(&problem.weight));
    let logit_bias = gpu.upload(&problem.logit_bias);
    let selection_bias = gpu.upload(problem.router.bias());
    let unpadded_tokens = gpu.upload(&[tokens as i32]);
    let mut parts = gpu.poisoned(gate.parts_len(tokens));
    let mut ids = gpu.poisoned(tokens * config.slots());
    let mut weights = gpu.poisoned(tokens * config.slots());
    let mut identity_weights = gpu.poisoned(0);
    let buffers = GateBuffers {
        hidden: hidden.slice(),
        weight: weight.slice(),
        logit_bias: logit_bias.slice(),
        selection_bias: selection_bias.slice(),
        unpadded_tokens: unpadded_tokens.slice(),
        parts: parts.slice_mut(),
        topk_ids: ids.slice_mut(),
        topk_weights: weights.slice_mut(),
        identity_weights: identity_weights.slice_mut(),
    };
    gate.launch(&gpu.stream, tokens, buffers)?;
    let mut routing = Routing::default();
    routing.topk.top_k = config.slots();
    routing.topk.ids = gpu.download(&ids);
    routing.topk.weights = gpu.download(&weights);
    let mut parts = gpu.download(&parts);
    parts.truncate(gate.parts(tokens)? * tokens * config.num_logits());
    Ok((parts, routing))
}
