use half::{bf16, f16};

use super::*;

/// Deterministic numbers that look random, in -4 .. 4.
pub(super) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 24) as f32 * 8.0 - 4.0
    };
    (0..count).map(next).collect()
}

pub(super) fn router_for(config: RouterConfig, seed: u32) -> Router {
    let count = match config.method().bias {
        SelectionBias::None => 0,
        SelectionBias::PerExpert => config.num_logits(),
    };
    Router::with_bias(config, noise(count, seed)).unwrap()
}

/// Every published method, at `num_experts` divisible by 4.
pub(super) fn published_methods() -> Vec<RoutingMethod> {
    vec![
        RoutingMethod::softmax(),
        RoutingMethod::softmax_renormalize(),
        RoutingMethod::top_k_then_softmax(),
        RoutingMethod::sigmoid(),
        RoutingMethod::sigmoid_renormalize(),
        RoutingMethod::minimax2(),
        RoutingMethod::deepseek_v2(4, 2),
        RoutingMethod::deepseek_v3(4, 2),
        RoutingMethod::deepseek_v4(),
        RoutingMethod::deepseek_v4().with_bias(),
        RoutingMethod::llama4(),
        RoutingMethod::top_k_logits(),
        RoutingMethod::softmax().with_bias(),
        RoutingMethod::softmax_renormalize().with_bias().with_groups(4, 3),
    ]
}

pub(super) fn assert_same(fast: &Routing, slow: &Routing) {
    assert_eq!(fast.topk.top_k, slow.topk.top_k);
    assert_eq!(fast.topk.ids, slow.topk.ids);
    assert_close(&fast.topk.weights, &slow.topk.weights);
    assert_close(&fast.identity_weights, &slow.identity_weights);
}

fn assert_close(fast: &[f32], slow: &[f32]) {
    assert_eq!(fast.len(), slow.len());
    for (position, (fast, slow)) in fast.iter().zip(slow).enumerate() {
        let limit = 2e-6 * slow.abs() + 1e-30;
        assert!((fast - slow).abs() <= limit, "weight {position}: {fast} is not {slow}");
    }
}

fn routed<T: Element>(router: &Router, logits: &Logits<'_, T>) -> Routing {
    let (mut fast, mut slow) = (Routing::default(), Routing::default());
    cpu::route(router, logits, &mut fast).unwrap();
    reference::route(router, logits, &mut slow).unwrap();
    assert_same(&fast, &slow);
    fast
}

fn route_one(method: RoutingMethod, top_k: usize, logits: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let router = Router::new(RouterConfig::new(method, logits.len(), top_k).unwrap()).unwrap();
    let routing = routed(&router, &Logits::new(logits, 1));
    (routing.topk.ids, routing.topk.weights)
}

#[test]
fn cpu_agrees_with_the_reference_for_every_method_and_size() {
    for method in published_methods() {
        // 1000 tokens of 40 experts are on the parallel side, the rest on the other.
        for (tokens, experts, top_k) in
            [(0, 8, 2), (1, 4, 1), (1, 4, 2), (3, 12, 4), (17, 256, 8), (1000, 40, 7), (2, 8, 4)]
        {
            let config = RouterConfig::new(method, experts, top_k).unwrap();
            let config = config.with_routed_scaling_factor(2.5).unwrap();
            let logits = noise(tokens * experts, tokens as u32);
            let routing = routed(&router_for(config, 7), &Logits::new(&logits, tokens));
            assert_eq!(routing.topk.tokens(), tokens);
        }
    }
}

#[test]
fn both_sides_of_the_parallel_switch_agree() {
    for method in published_methods() {
        let router = router_for(RouterConfig::new(method, 128, 8).unwrap(), 3);
        for tokens in [255, 256, 257] {
            let logits = noise(tokens * 128, 5);
            routed(&router, &Logits::new(&logits, tokens));
        }
    }
}

#[test]
fn half_precision_logits_are_routed_as_their_float32_values() {
    let router = router_for(RouterConfig::new(RoutingMethod::minimax2(), 64, 6).unwrap(), 1);
    let wide = noise(5 * 64, 2);
    let narrow: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
    let widened: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
    let expected = routed(&router, &Logits::new(&widened, 5));
    assert_same(&routed(&router, &Logits::new(&narrow, 5)), &expected);
    let narrow: Vec<f16> = wide.iter().map(|&x| f16::from_f32(x)).collect();
    let widened: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
    let expected = routed(&router, &Logits::new(&widened, 5));
    assert_same(&routed(&router, &Logits::new(&narrow, 5)), &expected);
}

#[test]
fn ties_go_to_the_lower_index() {
    let (ids, weights) = route_one(RoutingMethod::sigmoid(), 3, &[1.0, 2.0, 1.0, 2.0, 1.0]);
    assert_eq!(ids, [1, 3, 0]);
    assert!(weights[0] > weights[2]);
    assert_eq!(route_one(RoutingMethod::softmax(), 3, &[0.0; 6]).0, [0, 1, 2]);
}

#[test]
fn bad_scores_become_zero() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for method in [RoutingMethod::softmax(), RoutingMethod::softmax_renormalize()] {
            assert_eq!(route_one(method, 3, &[bad; 8]), (vec![0, 1, 2], vec![0.0; 3]));
        }
        let selected = route_one(RoutingMethod::top_k_then_softmax(), 2, &[bad; 4]);
        assert_eq!(selected, (vec![0, 1], vec![0.0; 2]));
    }
    // One NaN spoils the sum of a softmax, so no score of the token is usable.
    let spoiled = route_one(RoutingMethod::softmax_renormalize(), 2, &[1.0, f32::NAN, 3.0]);
    assert_eq!(spoiled, (vec![0, 1], vec![0.0; 2]));
    // Sigmoid scores each expert alone.
    let (ids, _) = route_one(RoutingMethod::sigmoid(), 3, &[f32::NAN, -1.0, 2.0, f32::NAN]);
    assert_eq!(ids, [2, 1, 0]);
    // A softmax gives an expert that is masked by minus infinity nothing.
    let masked = route_one(RoutingMethod::top_k_then_softmax(), 2, &[f32::NEG_INFINITY, -5.0]);
    assert_eq!(masked, (vec![1, 0], vec![1.0, 0.0]));
}

#[test]
fn a_bias_selects_but_never_weighs() {
    let config = RouterConfig::new(RoutingMethod::minimax2(), 4, 2).unwrap();
    let router = Router::with_bias(config, vec![0.0, 10.0, 0.0, 5.0]).unwrap();
    let routing = routed(&router, &Logits::new(&[4.0f32, 0.0, 3.0, 0.0], 1));
    assert_eq!(routing.topk.ids, [1, 3]);
    assert_eq!(routing.topk.weights, [0.5, 0.5]);
}

#[test]
fn keys_far_below_minus_one_are_still_ordered() {
    let config = RouterConfig::new(RoutingMethod::softmax().with_bias(), 5, 2).unwrap();
    let router = Router::with_bias(config, vec![-9.0, -8.0, -3.0, -7.0, -2.0]).unwrap();
    let routing = routed(&router, &Logits::new(&[0.0f32; 5], 1));
    assert_eq!(routing.topk.ids, [4, 2]);
    let router = Router::with_bias(config, vec![f32::MIN; 5]).unwrap();
    assert_eq!(routed(&router, &Logits::new(&[0.0f32; 5], 1)).topk.ids, [0, 1]);
}

#[test]
fn groups_count_their_two_best_with_bias_and_their_best_without() {
    // Group 0 has the single best expert, group 1 the better pair.
    let logits = [3.0f32, -9.0, 1.0, 1.0];
    let grouped = RouterConfig::new(RoutingMethod::deepseek_v3(2, 1), 4, 2).unwrap();
    let biased = Router::with_bias(grouped, vec![0.0; 4]).unwrap();
    assert_eq!(routed(&biased, &Logits::new(&logits, 1)).topk.ids, [2, 3]);
    let plain = RoutingMethod::sigmoid_renormalize().with_groups(2, 1);
    assert_eq!(route_one(plain, 2, &logits).0, [0, 1]);
    // Equal groups: the lower one stays.
    assert_eq!(route_one(RoutingMethod::deepseek_v2(3, 1), 2, &[1.0; 6]).0, [0, 1]);
    // Groups of one expert have no second best.
    let single = RouterConfig::new(RoutingMethod::deepseek_v3(4, 2), 4, 2).unwrap();
    let single = Router::with_bias(single, vec![0.0; 4]).unwrap();
    assert_eq!(routed(&single, &Logits::new(&logits, 1)).topk.ids, [0, 2]);
}

#[test]
fn llama4_weighs_its_one_expert_by_a_sigmoid() {
    let (ids, weights) = route_one(RoutingMethod::llama4(), 1, &[30.0, 0.0, 31.0, -2.0]);
    assert_eq!((ids, weights), (vec![2], vec![1.0]), "sigmoid saturates, the logits do not");
    assert_eq!(route_one(RoutingMethod::llama4(), 1, &[0.0, -1.0]).1, [0.5]);
}

#[test]
fn shared_experts_follow_the_routed_ones() {
    let config = RouterConfig::new(RoutingMethod::softmax_renormalize(), 4, 1).unwrap();
    let config = config.with_fused_shared_experts(2, 0.25).unwrap();
    let config = config.with_routed_scaling_factor(3.0).unwrap();
    let logits = Logits::new(&[0.0f32, 9.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0], 2);
    let routing = routed(&router_for(config, 0), &logits);
    assert_eq!(routing.topk.ids, [1, 4, 5, 0, 4, 5]);
    assert_eq!(routing.topk.weights, [3.0, 0.25, 0.25, 3.0, 0.25, 0.25]);
}

#[test]
fn zero_experts_report_an_identity_weight() {
    let config = RouterConfig::new(RoutingMethod::softmax().with_bias(), 2, 2).unwrap();
    let config = config.with_zero_experts(2).unwrap().with_routed_scaling_factor(4.0).unwrap();
    let router = Router::with_bias(config, vec![0.0, 1.0, 2.0, 0.0]).unwrap();
    let routing = routed(&router, &Logits::new(&[0.0f32; 4], 1));
    assert_eq!(routing.topk.ids, [0, 1]);
    assert_eq!(routing.topk.weights, [0.0, 1.0]);
    assert_eq!(routing.identity_weights, [1.0]);
}

#[test]
fn padding_rows_choose_nobody() {
    for method in published_methods() {
        let config = RouterConfig::new(method, 8, 3).unwrap();
        let config = config.with_fused_shared_experts(1, 1.0).unwrap();
        let logits = noise(4 * 8, 4);
        let logits = Logits::new(&logits, 4).with_unpadded_tokens(1);
        let routing = routed(&router_for(config, 9), &logits);
        assert!(routing.topk.ids[..4].iter().all(|&id| id >= 0));
        assert_eq!(routing.topk.ids[4..], [-1; 12]);
        assert_eq!(routing.topk.weights[4..], [0.0; 12]);
    }
}

#[test]
fn a_reused_output_forgets_the_batch_before() {
    let config = RouterConfig::new(RoutingMethod::softmax(), 8, 2).unwrap();
    let config = config.with_zero_experts(8).unwrap();
    let router = router_for(config, 0);
    let mut reused = Routing::default();
    for tokens in [3000, 3, 0, 40] {
        let logits = noise(tokens * 16, tokens as u32);
        let logits = Logits::new(&logits, tokens);
        cpu::route(&router, &logits, &mut reused).unwrap();
        assert_same(&reused, &routed(&router, &logits));
    }
}

#[test]
fn published_names() {
    use RoutingMethodType as Name;
    let names: Vec<_> = published_methods().iter().map(RoutingMethod::published_type).collect();
    assert_eq!(
        names,
        [
            Name::Default,
            Name::RenormalizeNaive,
            Name::Renormalize,
            Name::Sigmoid,
            Name::SigmoidRenorm,
            Name::MiniMax2,
            Name::Default,
            Name::DeepSeekV3,
            Name::DeepseekV4,
            Name::DeepseekV4,
            Name::Llama4,
            Name::TopK,
            Name::Unspecified,
            Name::Unspecified,
        ]
    );
    assert_eq!(Name::DeepseekV4 as i32, 100);
}

#[test]
fn illegal_routers_are_refused() {
    let refused = |method, experts, top_k, field: &str| {
        let error = RouterConfig::new(method, experts, top_k).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    refused(RoutingMethod::softmax(), 0, 1, "num_experts");
    refused(RoutingMethod::softmax(), 32769, 1, "num_experts");
    refused(RoutingMethod::softmax(), 8, 0, "top_k");
    refused(RoutingMethod::softmax(), 8, 9, "top_k");
    refused(RoutingMethod::deepseek_v3(0, 0), 8, 2, "n_group");
    refused(RoutingMethod::deepseek_v3(3, 1), 8, 2, "n_group");
    refused(RoutingMethod::deepseek_v3(4, 5), 8, 2, "topk_group");
    refused(RoutingMethod::deepseek_v3(4, 1), 8, 3, "topk_group");
    refused(RoutingMethod::llama4().with_bias(), 8, 1, "method");
    refused(RoutingMethod::llama4().with_groups(2, 1), 8, 1, "method");
    let legal = RouterConfig::new(RoutingMethod::minimax2(), 8, 2).unwrap();
    assert!(legal.with_routed_scaling_factor(f32::NAN).is_err());
    assert!(legal.with_fused_shared_experts(1, f32::INFINITY).is_err());
    assert!(legal.with_fused_shared_experts(usize::MAX, 1.0).is_err());
    assert!(legal.with_zero_experts(40000).is_err());
    assert!(Router::new(legal).is_err(), "a bias is missing");
    assert!(Router::with_bias(legal, vec![0.0; 7]).is_err());
    let nan = Router::with_bias(legal, vec![0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(nan.unwrap_err().to_string(), "selection bias[2] is NaN, but must be finite");
}

#[test]
fn wrong_logits_are_refused() {
    let router = router_for(RouterConfig::new(RoutingMethod::softmax(), 8, 2).unwrap(), 0);
    let mut out = Routing::default();
    for (length, tokens) in [(15, 2), (16, 3), (16, usize::MAX)] {
        let values = vec![0f32; length];
        assert!(cpu::route(&router, &Logits::new(&values, tokens), &mut out).is_err());
        assert!(reference::route(&router, &Logits::new(&values, tokens), &mut out).is_err());
    }
    let values = [0f32; 16];
    let logits = Logits::new(&values, 2).with_unpadded_tokens(3);
    assert!(cpu::route(&router, &logits, &mut out).is_err());
}

#[test]
fn odd_sizes_agree_with_the_reference() {
    for method in published_methods() {
        if method.selection != Selection::TopK {
            continue;
        }
        for (experts, top_k) in [(1, 1), (5, 5), (77, 3), (257, 32), (1023, 1)] {
            let router = router_for(RouterConfig::new(method, experts, top_k).unwrap(), 2);
            let logits = noise(3 * experts, 8);
            routed(&router, &Logits::new(&logits, 3));
        }
    }
}

#[test]
fn a_warm_output_is_not_reallocated() {
    let config = RouterConfig::new(RoutingMethod::deepseek_v3(8, 4), 256, 8).unwrap();
    let router = router_for(config.with_zero_experts(8).unwrap(), 0);
    let logits = noise(200 * 264, 1);
    let mut out = Routing::default();
    let mut addresses = Vec::new();
    for tokens in [200, 1, 0, 7, 200] {
        let logits = Logits::new(&logits[..tokens * 264], tokens);
        cpu::route(&router, &logits, &mut out).unwrap();
        let buffers = [&out.topk.weights, &out.identity_weights, &out.scratch];
        addresses.push((out.topk.ids.as_ptr(), buffers.map(|buffer| buffer.as_ptr())));
    }
    addresses.dedup();
    assert_eq!(addresses.len(), 1);
}

#[test]
fn some_tokens_are_cut_out_with_their_weights() {
    let topk = TopK { ids: vec![4, 2, 0, 1, 3, -1], weights: vec![0.5; 6], top_k: 2 };
    let some = topk.of_tokens(1..3);
    assert_eq!((&some.ids[..], some.tokens()), (&[0, 1, 3, -1][..], 2));
    assert_eq!((some.weights.len(), some.top_k), (4, 2));
    assert_eq!(topk.of_tokens(3..3).tokens(), 0);
    assert_eq!(topk.of_tokens(0..3), topk);
}
