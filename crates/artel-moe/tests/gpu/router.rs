//! Routing: the ids of the reference, weights within a few roundings.

use artel_device::cuda::Kernels;
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::quant::Element;
use artel_moe::router::cuda::{LogitElement, Route, RouteBuffers};
use artel_moe::router::{
    Logits, Router, RouterConfig, Routing, RoutingMethod, SelectionBias, reference,
};
use half::bf16;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, method) in published_methods() {
        for (experts, top_k) in [(4, 1), (12, 4), (256, 8)] {
            let name = format!("router::{name}_{top_k}_of_{experts}");
            cases.push(batches(name, scaled(method, experts, top_k)));
        }
    }
    for (experts, top_k) in [(1, 1), (77, 3), (160, 6), (384, 8), (512, 10), (512, 32), (1023, 1)] {
        for (name, method) in plain_methods() {
            let name = format!("router::{name}_{top_k}_of_{experts}");
            cases.push(batches(name, scaled(method, experts, top_k)));
        }
    }
    // Groups of twenty: both groups and their members are padded.
    let groups_of_twenty = RoutingMethod::deepseek_v3(6, 2);
    cases.push(batches("router::groups_of_twenty", scaled(groups_of_twenty, 120, 6)));
    let single_experts = RoutingMethod::deepseek_v3(8, 5);
    cases.push(batches("router::groups_of_one", scaled(single_experts, 8, 4)));
    let shared = scaled(RoutingMethod::minimax2(), 64, 6).with_fused_shared_experts(2, 0.25);
    cases.push(batches("router::shared_experts", shared.expect("legal")));
    let zero = scaled(RoutingMethod::softmax().with_bias(), 64, 12).with_zero_experts(32);
    cases.push(batches("router::zero_experts", zero.expect("legal")));
    cases.push(bad_logits());
    cases.push(saturated_scores());
    cases.push(narrow_logits());
    cases.push(parts());
    cases
}

fn published_methods() -> Vec<(&'static str, RoutingMethod)> {
    vec![
        ("softmax", RoutingMethod::softmax()),
        ("top_k_then_softmax", RoutingMethod::top_k_then_softmax()),
        ("sigmoid", RoutingMethod::sigmoid()),
        ("deepseek_v2", RoutingMethod::deepseek_v2(4, 2)),
        ("deepseek_v3", RoutingMethod::deepseek_v3(4, 2)),
        ("deepseek_v4", RoutingMethod::deepseek_v4()),
        ("deepseek_v4_biased", RoutingMethod::deepseek_v4().with_bias()),
        ("llama4", RoutingMethod::llama4()),
        ("top_k_logits", RoutingMethod::top_k_logits()),
        ("softmax_grouped", RoutingMethod::softmax_renormalize().with_bias().with_groups(4, 3)),
        ("softmax_renormalize", RoutingMethod::softmax_renormalize()),
        ("minimax2", RoutingMethod::minimax2()),
    ]
}

/// Methods for any number of experts.
fn plain_methods() -> [(&'static str, RoutingMethod); 2] {
    [
        ("softmax_renormalize", RoutingMethod::softmax_renormalize()),
        ("minimax2", RoutingMethod::minimax2()),
    ]
}

fn scaled(method: RoutingMethod, experts: usize, top_k: usize) -> RouterConfig {
    let config = RouterConfig::new(method, experts, top_k).expect("legal");
    config.with_routed_scaling_factor(2.5).expect("finite")
}

/// Deterministic numbers that look random, in -4 .. 4.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 24) as f32 * 8.0 - 4.0
    };
    (0..count).map(next).collect()
}

fn router(config: &RouterConfig) -> Router {
    let count = match config.method().bias {
        SelectionBias::None => 0,
        SelectionBias::PerExpert => config.num_logits(),
    };
    Router::with_bias(*config, noise(count, 7)).expect("a bias for each logit")
}

fn batches(name: impl Into<String>, config: RouterConfig) -> Case {
    let load = move |kernels: &mut Kernels| Route::<f32>::load(kernels, &config);
    Case::new(name, load, move |gpu, route| {
        for (tokens, unpadded) in [(0, 0), (1, 1), (3, 3), (17, 16), (64, 64), (1000, 999)] {
            let logits = noise(tokens * config.num_logits(), tokens as u32);
            check(gpu, route, &router(&config), &logits, (tokens, unpadded))?;
        }
        Ok(())
    })
}

fn bad_logits() -> Case {
    let configs: Vec<RouterConfig> = published_methods()
        .into_iter()
        .map(|(_, method)| RouterConfig::new(method, 12, 4).expect("legal"))
        .collect();
    let load = {
        let configs = configs.clone();
        move |kernels: &mut Kernels| {
            configs.iter().map(|config| Route::<f32>::load(kernels, config)).collect()
        }
    };
    Case::new("router::bad_logits", load, move |gpu, routes: &Vec<Route<f32>>| {
        const NAN: f32 = f32::NAN;
        const INF: f32 = f32::INFINITY;
        let mut logits = Vec::new();
        for bad in [NAN, -NAN, INF, -INF] {
            logits.extend([bad; 12]);
            logits.extend([1.0, bad, 3.0, 2.0, bad, 0.0, -0.0, 1.0, 1.0, 5.0, -2.0, 4.0]);
        }
        logits.extend([0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0]);
        logits.extend([1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
        logits.extend([-INF, NAN, INF, 3.0, 3.0, -INF, 1.0, 2.0, NAN, INF, 2.0, 2.0]);
        logits.extend([
            f32::MAX,
            f32::MIN,
            1.0,
            88.0,
            89.0,
            -88.0,
            -89.0,
            -104.0,
            0.1,
            0.2,
            9.0,
            1.0,
        ]);
        for (config, route) in configs.iter().zip(routes) {
            let tokens = logits.len() / 12;
            check(gpu, route, &router(config), &logits, (tokens, tokens))?;
        }
        Ok(())
    })
}

/// Sigmoids of large logits are all 1, and the bias decides; without one, the lower id.
fn saturated_scores() -> Case {
    let biased = scaled(RoutingMethod::minimax2(), 256, 8);
    let plain = scaled(RoutingMethod::sigmoid(), 256, 8);
    let load = move |kernels: &mut Kernels| -> Result<_, MoeError> {
        Ok((Route::<f32>::load(kernels, &biased)?, Route::<f32>::load(kernels, &plain)?))
    };
    Case::new("router::saturated_scores", load, move |gpu, (with_bias, without)| {
        for scale in [1e-7, 1e-3, 8.0, 40.0] {
            let logits: Vec<f32> = noise(200 * 256, 3).iter().map(|x| x * scale).collect();
            check(gpu, with_bias, &router(&biased), &logits, (200, 200))?;
            check(gpu, without, &router(&plain), &logits, (200, 200))?;
        }
        Ok(())
    })
}

fn narrow_logits() -> Case {
    let config = scaled(RoutingMethod::minimax2(), 160, 6);
    let load = move |kernels: &mut Kernels| Route::<bf16>::load(kernels, &config);
    Case::new("router::narrow_logits", load, move |gpu, route| {
        let logits: Vec<bf16> = noise(65 * 160, 2).into_iter().map(bf16::from_f32).collect();
        check(gpu, route, &router(&config), &logits, (65, 64))
    })
}

/// Logits that arrive in parts are those of the sum.
fn parts() -> Case {
    let config = scaled(RoutingMethod::minimax2(), 256, 8);
    let load = move |kernels: &mut Kernels| Route::<f32>::load_parts(kernels, &config, 8);
    Case::new("router::parts", load, move |gpu, route| {
        let logits = noise(8 * 9 * 256, 11);
        let mut sum = logits[..9 * 256].to_vec();
        for part in logits.chunks_exact(9 * 256).skip(1) {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let routed = run(gpu, route, &router(&config), &logits, (9, 9))?;
        compare(&routed, &expected(&router(&config), &sum, (9, 9)));
        Ok(())
    })
}

fn check<L: LogitElement + Element>(
    gpu: &Gpu,
    route: &Route<L>,
    router: &Router,
    logits: &[L],
    tokens: (usize, usize),
) -> Result<(), MoeError> {
    compare(&run(gpu, route, router, logits, tokens)?, &expected(router, logits, tokens));
    Ok(())
}

fn expected<L: Element>(
    router: &Router,
    logits: &[L],
    (tokens, unpadded): (usize, usize),
) -> Routing {
    let mut routing = Routing::default();
    let logits = Logits::new(logits, tokens).with_unpadded_tokens(unpadded);
    reference::route(router, &logits, &mut routing).expect("shapes agree");
    routing
}

fn run<L: LogitElement>(
    gpu: &Gpu,
    route: &Route<L>,
    router: &Router,
    logits: &[L],
    (tokens, unpadded): (usize, usize),
) -> Result<Routing, MoeError> {
    let config = router.config();
    let (logits, bias) = (gpu.upload(logits), gpu.upload(router.bias()));
    let unpadded_tokens = gpu.upload(&[unpadded as i32]);
    let mut ids = gpu.poisoned(tokens * config.slots());
    let mut weights = gpu.poisoned(tokens * config.slots());
    let mut identity_weights = gpu.poisoned(if config.zero_experts() > 0 { tokens } else { 0 });
    let buffers = RouteBuffers {
        logits: logits.slice(),
        bias: bias.slice(),
        unpadded_tokens: unpadded_tokens.slice(),
        topk_ids: ids.slice_mut(),
        topk_weights: weights.slice_mut(),
        identity_weights: identity_weights.slice_mut(),
    };
    route.launch(&gpu.stream, tokens, buffers)?;
    let mut routing = Routing::default();
    routing.topk.top_k = config.slots();
    routing.topk.ids = gpu.download(&ids);
    routing.topk.weights = gpu.download(&weights);
    routing.identity_weights = gpu.download(&identity_weights);
    Ok(routing)
}

fn compare(routed: &Routing, expected: &Routing) {
    let top_k = expected.topk.top_k;
    let rows = routed.topk.ids.chunks(top_k).zip(expected.topk.ids.chunks(top_k));
    for (token, (routed, expected)) in rows.enumerate() {
        assert_eq!(routed, expected, "ids of token {token}");
    }
    compare_weights(&routed.topk.weights, &expected.topk.weights);
    compare_weights(&routed.identity_weights, &expected.identity_weights);
}

fn compare_weights(routed: &[f32], expected: &[f32]) {
    assert_eq!(routed.len(), expected.len());
    for (position, (routed, expected)) in routed.iter().zip(expected).enumerate() {
        let limit = 1e-6 * expected.abs() + 1e-37;
        assert!((routed - expected).abs() <= limit, "weight {position}: {routed} not {expected}");
    }
}
