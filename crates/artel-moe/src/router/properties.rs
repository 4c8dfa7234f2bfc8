use proptest::prelude::*;

use super::{
    tests::{assert_same, published_methods, router_for},
    *,
};

#[derive(Debug, Clone)]
struct Case {
    config: RouterConfig,
    seed: u32,
    logits: Vec<f32>,
    tokens: usize,
    unpadded_tokens: usize,
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -6f32..6.0,
        4 => (-3i8..3).prop_map(f32::from), // ties
        1 => prop::num::f32::ANY,
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (0usize..9, 1usize..12, prop::sample::select(published_methods()));
    let rest = (any::<u32>(), 0usize..3, any::<prop::sample::Index>(), any::<bool>());
    (shape, rest).prop_flat_map(|((tokens, quarter, method), (seed, shared, index, zeros))| {
        let experts = 4 * quarter;
        // Two of four groups stay selectable in the narrowest method.
        let top_k = 1 + index.index(2 * quarter);
        let config = RouterConfig::new(method, experts, top_k).unwrap();
        let config = config.with_fused_shared_experts(shared, 0.5).unwrap();
        let config = config.with_zero_experts(if zeros { 4 } else { 0 }).unwrap();
        let logits = prop::collection::vec(logit(), tokens * config.num_logits());
        (logits, 0..=tokens).prop_map(move |(logits, unpadded_tokens)| Case {
            config,
            seed,
            logits,
            tokens,
            unpadded_tokens,
        })
    })
}

fn route(case: &Case) -> (Router, Routing) {
    let router = router_for(case.config, case.seed);
    let logits = Logits::new(&case.logits, case.tokens).with_unpadded_tokens(case.unpadded_tokens);
    let mut routing = Routing::default();
    cpu::route(&router, &logits, &mut routing).unwrap();
    (router, routing)
}

proptest! {
    #[test]
    fn cpu_equals_the_reference(case in case()) {
        let (router, fast) = route(&case);
        let mut slow = Routing::default();
        let logits = Logits::new(&case.logits, case.tokens);
        let logits = logits.with_unpadded_tokens(case.unpadded_tokens);
        reference::route(&router, &logits, &mut slow).unwrap();
        assert_same(&fast, &slow);
    }

    #[test]
    fn ids_are_distinct_and_in_range(case in case()) {
        let (_, routing) = route(&case);
        let total = case.config.num_experts() + case.config.fused_shared_experts().count;
        for token in 0..case.unpadded_tokens {
            let slots = token * case.config.slots()..(token + 1) * case.config.slots();
            let ids = &routing.topk.ids[slots];
            prop_assert!(ids.iter().all(|&id| 0 <= id && (id as usize) < total));
            if case.config.zero_experts() == 0 {
                let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
                prop_assert_eq!(distinct.len(), ids.len());
            }
        }
    }

    #[test]
    fn weights_descend_without_bias_and_sum_to_one_when_renormalised(case in case()) {
        let (_, routing) = route(&case);
        let method = case.config.method();
        let renormalised = matches!(
            method.scoring,
            Scoring::BeforeSelection(_, Normalization::Renormalize)
                | Scoring::AfterSelection(SelectedFunction::Softmax)
        );
        if case.config.zero_experts() > 0 {
            return Ok(());
        }
        for token in 0..case.unpadded_tokens {
            let first = token * case.config.slots();
            let weights = &routing.topk.weights[first..first + case.config.top_k()];
            prop_assert!(weights.iter().all(|weight| weight.is_finite()));
            // Unusable logits weigh 0 and come last, where negative logits are weights too.
            let by_logit = Scoring::AfterSelection(SelectedFunction::Logit);
            if method.bias == SelectionBias::None && method.scoring != by_logit {
                prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{:?}", weights);
            }
            let sum: f32 = weights.iter().sum();
            if renormalised && sum > 1e-6 {
                prop_assert!(sum < 1.0 + 1e-5, "{}", sum);
                // Of groups the sum is divided by 1e-20 more: scores that vanish stay below one.
                let is_grouped = matches!(method.selection, Selection::Grouped { .. });
                prop_assert!(is_grouped || sum > 1.0 - 1e-5, "{}", sum);
            }
        }
    }

    #[test]
    fn padding_never_chooses(case in case()) {
        let (_, routing) = route(&case);
        let real = case.unpadded_tokens * case.config.slots();
        prop_assert!(routing.topk.ids[real..].iter().all(|&id| id == -1));
        prop_assert!(routing.topk.weights[real..].iter().all(|&weight| weight == 0.0));
    }

    #[test]
    fn a_token_does_not_depend_on_its_neighbours(case in case()) {
        let (router, all) = route(&case);
        let width = case.config.num_logits();
        for token in 0..case.unpadded_tokens {
            let mut alone = Routing::default();
            let logits = Logits::new(&case.logits[token * width..][..width], 1);
            cpu::route(&router, &logits, &mut alone).unwrap();
            let slots = token * case.config.slots()..(token + 1) * case.config.slots();
            prop_assert_eq!(&alone.topk.ids[..], &all.topk.ids[slots.clone()]);
            prop_assert_eq!(&alone.topk.weights[..], &all.topk.weights[slots]);
        }
    }
}
