use artel_device::cpu::CpuFeatures;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::quant::Element;

struct Case<'a> {
    ids: &'a [i32],
    top_k: usize,
    hidden_size: usize,
    locality: Locality<'a>,
}

const ALL: Locality<'_> = Locality::All { num_experts: 8 };

fn check(case: Case<'_>) {
    check_as::<f32>(&case, 1e-6);
    check_as::<f16>(&case, 1.0 / 1024.0);
    check_as::<bf16>(&case, 1.0 / 128.0);
}

fn check_as<A: Element>(case: &Case<'_>, tolerance: f64) {
    let weights: Vec<f32> = (0..case.ids.len()).map(|pair| 0.25 + pair as f32 / 16.0).collect();
    let count = case.ids.len() * case.hidden_size;
    let mut rows: Vec<A> =
        (0..count).map(|i| A::from_f32((i * 37 % 101) as f32 / 50.0 - 1.0)).collect();
    for (pair, &id) in case.ids.iter().enumerate() {
        if !case.locality.computes(id) {
            // What a skipped slot holds must not matter.
            let row = pair * case.hidden_size..(pair + 1) * case.hidden_size;
            rows[row].fill(A::from_f32(f32::NAN));
        }
    }
    let tokens = case.ids.len() / case.top_k;
    let hidden_states: Vec<A> =
        (0..tokens * case.hidden_size).map(|i| A::from_f32((i % 13) as f32 - 6.0)).collect();
    let identity = Identity { weights: &weights[..tokens], hidden_states: &hidden_states };
    for (weights, identity) in
        [(RowWeights::One, None), (RowWeights::Routed(&weights), Some(identity))]
    {
        let slots = Slots { ids: case.ids, weights, top_k: case.top_k, locality: case.locality };
        let work = Combine { slots, rows: &rows, identity };
        let expected = reference::combine(&work, case.hidden_size);
        for features in CpuFeatures::every_supported() {
            let mut out = vec![A::from_f32(7.0); expected.len()];
            combine(features, work, &mut out).unwrap();
            for (found, expected) in out.iter().zip(&expected) {
                let error = (f64::from(found.to_f32()) - expected).abs();
                assert!(error <= tolerance * (1.0 + expected.abs()), "{found:?}, not {expected}");
            }
        }
    }
}

#[test]
fn tokens_of_all_sizes() {
    for hidden_size in [1, 255, 256, 257] {
        check(Case { ids: &[], top_k: 2, hidden_size, locality: ALL });
        check(Case { ids: &[3], top_k: 1, hidden_size, locality: ALL });
        check(Case { ids: &[0, 1, 2, 3, 4, 5], top_k: 3, hidden_size, locality: ALL });
    }
}

#[test]
fn slots_without_an_expert_here_are_skipped() {
    check(Case { ids: &[-1, -1, 2, -1], top_k: 2, hidden_size: 5, locality: ALL });
    check(Case { ids: &[8, 0, i32::MAX, 1], top_k: 2, hidden_size: 5, locality: ALL });
    let locality = Locality::Map(&[-1, 0, -1, 1]);
    check(Case { ids: &[0, 1, 2, 3, 4, -1], top_k: 2, hidden_size: 5, locality });
}

#[test]
fn duplicate_experts_both_count() {
    check(Case { ids: &[2, 2], top_k: 2, hidden_size: 3, locality: ALL });
}

#[test]
fn shapes_that_do_not_belong_together_are_errors() {
    let features = CpuFeatures::detect();
    let slots = Slots { ids: &[0, 1], weights: RowWeights::One, top_k: 2, locality: ALL };
    let run = |slots, rows: &[f32]| {
        combine(features, Combine { slots, rows, identity: None }, &mut [0.0; 3])
    };
    assert_eq!(run(slots, &[0.0; 6]), Ok(()));
    assert!(run(slots, &[0.0; 5]).is_err());
    assert!(run(Slots { top_k: 0, ..slots }, &[0.0; 6]).is_err());
    assert!(run(Slots { weights: RowWeights::Routed(&[1.0]), ..slots }, &[0.0; 6]).is_err());
    let identity = Some(Identity { weights: &[1.0], hidden_states: &[0.0; 2] });
    let short = Combine { slots, rows: &[0.0; 6], identity };
    assert!(combine(features, short, &mut [0.0; 3]).is_err());
}

proptest! {
    #[test]
    fn a_token_depends_on_its_own_slots_only(
        ids in prop::collection::vec(-2i32..10, 12), hidden_size in 1usize..20,
    ) {
        let features = CpuFeatures::detect();
        let rows: Vec<f32> = (0..12 * hidden_size).map(|i| (i % 17) as f32 - 8.0).collect();
        let slots = Slots { ids: &ids, weights: RowWeights::One, top_k: 3, locality: ALL };
        let mut together = vec![0.0; 4 * hidden_size];
        combine(features, Combine { slots, rows: &rows, identity: None }, &mut together).unwrap();
        for token in 0..4 {
            let slots = Slots { ids: &ids[3 * token..3 * token + 3], ..slots };
            let rows = &rows[3 * token * hidden_size..3 * (token + 1) * hidden_size];
            let mut alone = vec![0.0; hidden_size];
            combine(features, Combine { slots, rows, identity: None }, &mut alone).unwrap();
            prop_assert_eq!(&alone[..], &together[token * hidden_size..(token + 1) * hidden_size]);
        }
    }
}
