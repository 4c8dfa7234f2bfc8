mod cost;
mod split;

use proptest::prelude::*;

use super::*;
use crate::eplb::{Placement, Shares};

fn salted() -> ReplicaRule {
    ReplicaRule::Salted(ReplicaSalt::of_rank(3, 5))
}

fn shares() -> ReplicaRule {
    ReplicaRule::Shares(ReplicaSalt::of_rank(3, 5))
}

fn every_rule() -> [ReplicaRule; 3] {
    [ReplicaRule::TokenHash, salted(), shares()]
}

/// Physical ids and load after one step of the fast version, checked against the reference, where
/// copies share evenly.
fn run(
    ids: &[i32],
    top_k: usize,
    placement: &Placement,
    rule: ReplicaRule,
    gate: (bool, usize),
) -> (Vec<i32>, Vec<i32>) {
    run_plan(ids, top_k, &LayerPlan::equal(placement.clone()), rule, gate)
}

fn run_plan(
    ids: &[i32],
    top_k: usize,
    plan: &LayerPlan,
    rule: ReplicaRule,
    gate: (bool, usize),
) -> (Vec<i32>, Vec<i32>) {
    let table = ReplicaTable::new(plan).unwrap();
    both(
        (ids, table.num_physical()),
        gate,
        |ids, recorder| cpu::map_and_record(ids, top_k, &table, rule, recorder),
        |ids, recorder| reference::map_and_record(ids, top_k, plan, rule, recorder),
    )
}

fn run_quotas(
    ids: &[i32],
    top_k: usize,
    placement: &Placement,
    quotas: &[u32],
    gate: (bool, usize),
) -> (Vec<i32>, Vec<i32>) {
    let table = ReplicaTable::new(&LayerPlan::equal(placement.clone())).unwrap();
    let mut cursor = QuotaCursor::default();
    both(
        (ids, table.num_physical()),
        gate,
        |ids, recorder| cpu::map_by_quotas(ids, top_k, &table, (quotas, &mut cursor), recorder),
        |ids, recorder| reference::map_by_quotas(ids, top_k, placement, quotas, recorder),
    )
}

/// Even quotas, which anybody can compute: the first copies take one more.
fn even_quotas(ids: &[i32], placement: &Placement) -> Vec<u32> {
    let mut counts = vec![0; placement.num_logical()];
    count_pairs(ids, &mut counts);
    let mut quotas = vec![0; placement.num_physical()];
    for (expert, count) in (0..).zip(counts) {
        let slots = placement.replicas(expert);
        for (position, &slot) in (0..).zip(slots) {
            let copies = slots.len() as u32;
            quotas[slot as usize] = count / copies + u32::from(position < count % copies);
        }
    }
    quotas
}

/// The result of two versions, which is the same.
fn both(
    (ids, slots): (&[i32], usize),
    (enabled, unpadded_tokens): (bool, usize),
    fast: impl FnOnce(&mut [i32], LoadRecorder<'_>) -> Result<(), MoeError>,
    slow: impl FnOnce(&mut [i32], LoadRecorder<'_>) -> Result<(), MoeError>,
) -> (Vec<i32>, Vec<i32>) {
    let [mut of_fast, mut of_slow] = [(); 2].map(|()| (ids.to_vec(), vec![0; slots]));
    let recorder = LoadRecorder { expert_load: &mut of_fast.1, enabled, unpadded_tokens };
    fast(&mut of_fast.0, recorder).unwrap();
    let recorder = LoadRecorder { expert_load: &mut of_slow.1, enabled, unpadded_tokens };
    slow(&mut of_slow.0, recorder).unwrap();
    assert_eq!(of_fast, of_slow);
    of_fast
}

struct Published {
    physical_to_logical: &'static [i32],
    num_logical: usize,
    ids: &'static [i32],
    physical: &'static [i32],
    load: &'static [i32],
}

/// The vectors of vLLM's `tests/kernels/moe/test_routing.py`, two experts a token.
const PUBLISHED: [Published; 6] = [
    Published {
        physical_to_logical: &[0, 1, 2, 3],
        num_logical: 4,
        ids: &[0, 1, 2, 3, 0, 2],
        physical: &[0, 1, 2, 3, 0, 2],
        load: &[2, 1, 2, 1],
    },
    Published {
        physical_to_logical: &[1, 2, 3, 0],
        num_logical: 4,
        ids: &[0, 1, 2, 3, 0, 2],
        physical: &[3, 0, 1, 2, 3, 1],
        load: &[1, 2, 1, 2],
    },
    Published {
        physical_to_logical: &[3, -1, 1, -1, -1, 0, -1, 2],
        num_logical: 4,
        ids: &[0, 1, 2, 3],
        physical: &[5, 2, 7, 0],
        load: &[1, 0, 1, 0, 0, 1, 0, 1],
    },
    Published {
        physical_to_logical: &[0, 1, 2, 3, 0, 1],
        num_logical: 4,
        ids: &[0, 1, 2, 3, 0, 2],
        physical: &[0, 1, 2, 3, 0, 2],
        load: &[2, 1, 2, 1, 0, 0],
    },
    Published {
        physical_to_logical: &[0, 1, 2, 3, 0, 1, 2, 3],
        num_logical: 4,
        ids: &[0, 1, 2, 3, 0, 2],
        physical: &[0, 1, 6, 7, 0, 2],
        load: &[2, 1, 1, 0, 0, 0, 1, 1],
    },
    Published {
        physical_to_logical: &[0, 1, 2, 0, 1, 0, 2, 0],
        num_logical: 3,
        ids: &[0, 1, 2, 0, 1, 2],
        physical: &[0, 1, 6, 3, 1, 2],
        load: &[1, 2, 1, 1, 0, 0, 1, 0],
    },
];

#[test]
fn the_published_vectors() {
    for case in PUBLISHED {
        let slots = case.physical_to_logical.to_vec();
        let placement = Placement::new(slots, case.num_logical).unwrap();
        let step = |gate| run(case.ids, 2, &placement, ReplicaRule::TokenHash, gate);
        assert_eq!(step((true, usize::MAX)), (case.physical.to_vec(), case.load.to_vec()));
        assert_eq!(step((false, usize::MAX)).0, case.physical);
        assert!(step((false, usize::MAX)).1.iter().all(|&load| load == 0));
    }
}

#[test]
fn padding_is_mapped_but_not_counted() {
    let placement = Placement::new(vec![0, 1, 2, 3], 4).unwrap();
    let ids = [0, 1, 2, 3, 0, 1, 2, 3];
    for rule in every_rule() {
        let (physical, load) = run(&ids, 2, &placement, rule, (true, 2));
        assert_eq!((physical, load), (ids.to_vec(), vec![1; 4]));
    }
}

#[test]
fn hot_experts_spread_over_their_copies() {
    for (top_k, copies) in [(2, 2), (4, 2), (8, 4), (8, 8)] {
        // The hot expert 0 in every row, the others once each.
        let mut slots: Vec<i32> = (0..top_k as i32).collect();
        slots.extend(vec![0; copies - 1]);
        let placement = Placement::new(slots, top_k).unwrap();
        let row: Vec<i32> = (0..top_k as i32).collect();
        let ids = row.repeat(8192);
        for rule in every_rule() {
            let (_, load) = run(&ids, top_k, &placement, rule, (true, 8192));
            let hot = placement.replicas(0).iter().map(|&slot| load[slot as usize]);
            let max_over_mean = f64::from(hot.max().unwrap()) * copies as f64 / 8192.0;
            assert!(max_over_mean < 1.15, "{max_over_mean} for {copies} copies, {rule:?}");
        }
    }
}

#[test]
fn edge_cases() {
    let placement = Placement::new(vec![0, 1, 0], 2).unwrap();
    for rule in every_rule() {
        let whole = (true, usize::MAX);
        assert_eq!(run(&[], 0, &placement, rule, whole), (vec![], vec![0; 3]));
        assert_eq!(run(&[], 8, &placement, rule, whole), (vec![], vec![0; 3]));
        let strangers = [-1, 2, i32::MIN, i32::MAX, -7, 3];
        assert_eq!(run(&strangers, 3, &placement, rule, whole), (vec![-1; 6], vec![0; 3]));
        assert_eq!(run(&[1], 1, &placement, rule, whole), (vec![1], vec![0, 1, 0]));
        assert_eq!(run(&[1; 4], 2, &placement, rule, (true, 0)).1, [0; 3]);
    }
    let mut load = vec![i32::MAX, 0, 0];
    let placement = Placement::new(vec![0, 1, 2], 3).unwrap();
    let table = ReplicaTable::new(&LayerPlan::equal(placement)).unwrap();
    let recorder = LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 1 };
    cpu::map_and_record(&mut [0], 1, &table, salted(), recorder).unwrap();
    let recorder = LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 1 };
    let quotas: (&[u32], _) = (&[1, 0, 0], &mut QuotaCursor::default());
    cpu::map_by_quotas(&mut [0], 1, &table, quotas, recorder).unwrap();
    assert_eq!(load, [i32::MAX, 0, 0], "a full counter stays full");
}

type Step<'a> = dyn FnMut(&mut [i32], LoadRecorder<'_>) -> Result<(), MoeError> + 'a;

#[test]
fn wrong_shapes_are_refused() {
    let plan = LayerPlan::equal(Placement::new(vec![0, 1, 0], 2).unwrap());
    let table = ReplicaTable::new(&plan).unwrap();
    let mut cursor = QuotaCursor::default();
    for (pairs, top_k, slots) in [(3, 2, 3), (3, 0, 3), (4, 2, 2), (4, 2, 4)] {
        let refused = |step: &mut Step<'_>| {
            let (mut ids, mut load) = (vec![0; pairs], vec![0; slots]);
            let recorder =
                LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 9 };
            assert!(step(&mut ids, recorder).is_err());
            assert_eq!(ids, vec![0; pairs], "and nothing is mapped");
        };
        let placement = &plan.placement;
        refused(&mut |ids, load| cpu::map_and_record(ids, top_k, &table, salted(), load));
        refused(&mut |ids, load| reference::map_and_record(ids, top_k, &plan, salted(), load));
        refused(&mut |ids, load| {
            cpu::map_by_quotas(ids, top_k, &table, (&[4, 0, 0], &mut cursor), load)
        });
        refused(&mut |ids, load| reference::map_by_quotas(ids, top_k, placement, &[4, 0, 0], load));
    }
    for quotas in [[4, 0].as_slice(), &[1; 4]] {
        let (mut ids, mut loads) = ([0; 4], [[0; 3]; 2]);
        let [fast, slow] = loads.each_mut().map(|load| LoadRecorder {
            expert_load: load,
            enabled: true,
            unpadded_tokens: 9,
        });
        let step = cpu::map_by_quotas(&mut ids, 2, &table, (quotas, &mut cursor), fast);
        assert!(step.is_err());
        let step = reference::map_by_quotas(&mut ids, 2, &plan.placement, quotas, slow);
        assert!(step.is_err());
    }
}

#[derive(Debug, Clone)]
struct Case {
    ids: Vec<i32>,
    top_k: usize,
    placement: Placement,
    rule: ReplicaRule,
    unpadded_tokens: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let rules = prop::sample::select(vec![
        ReplicaRule::TokenHash,
        salted(),
        shares(),
        ReplicaRule::Salted(ReplicaSalt::of_replicated_tokens(1)),
    ]);
    (1usize..20, 0usize..40, 1usize..9, 0usize..30, rules).prop_flat_map(
        |(num_logical, redundant, top_k, tokens, rule)| {
            // Every expert once, then copies and empty slots, all shuffled.
            let copies = prop::collection::vec(-1..num_logical as i32, redundant);
            let slots = copies.prop_flat_map(move |copies| {
                Just((0..num_logical as i32).chain(copies).collect::<Vec<i32>>()).prop_shuffle()
            });
            let ids = prop::collection::vec(-2..num_logical as i32 + 2, tokens * top_k);
            (slots, ids, 0..=tokens).prop_map(move |(slots, ids, unpadded_tokens)| Case {
                ids,
                top_k,
                placement: Placement::new(slots, num_logical).unwrap(),
                rule,
                unpadded_tokens,
            })
        },
    )
}

proptest! {
    #[test]
    fn every_pair_lands_on_a_copy_of_its_expert(case in case()) {
        let gate = (true, case.unpadded_tokens);
        let (physical, _) = run(&case.ids, case.top_k, &case.placement, case.rule, gate);
        for (&logical, &slot) in case.ids.iter().zip(&physical) {
            if (0..case.placement.num_logical() as i32).contains(&logical) {
                prop_assert_eq!(case.placement.physical_to_logical()[slot as usize], logical);
            } else {
                prop_assert_eq!(slot, -1);
            }
        }
    }

    #[test]
    fn the_load_counts_every_real_valid_pair_once(case in case()) {
        let gate = (true, case.unpadded_tokens);
        let (_, load) = run(&case.ids, case.top_k, &case.placement, case.rule, gate);
        let real = &case.ids[..case.unpadded_tokens * case.top_k];
        for logical in 0..case.placement.num_logical() as i32 {
            let routed = real.iter().filter(|&&id| id == logical).count() as i32;
            let replicas = case.placement.replicas(logical);
            let counted: i32 = replicas.iter().map(|&slot| load[slot as usize]).sum();
            prop_assert_eq!(counted, routed);
        }
        let valid = real.iter().filter(|&&id| !case.placement.replicas(id).is_empty()).count();
        prop_assert_eq!(load.iter().sum::<i32>(), valid as i32);
    }

    #[test]
    fn recording_off_leaves_the_load_alone(case in case()) {
        let gate = (false, case.unpadded_tokens);
        let (_, load) = run(&case.ids, case.top_k, &case.placement, case.rule, gate);
        prop_assert!(load.iter().all(|&load| load == 0));
    }
}
