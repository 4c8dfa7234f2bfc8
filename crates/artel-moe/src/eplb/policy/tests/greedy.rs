use proptest::prelude::*;

use crate::eplb::{
    Cluster, LayerPlan, Placement,
    balance::imbalance_of,
    policy::{Greedy, LayerQuery, Policy, keep_slots, reference},
};

struct Published {
    load: &'static [f64],
    groups: usize,
    nodes: usize,
    ranks: usize,
    slots: &'static [i32],
    imbalance: f64,
}

const README: [[f64; 12]; 2] = [
    [90.0, 132.0, 40.0, 61.0, 104.0, 165.0, 39.0, 4.0, 73.0, 56.0, 183.0, 86.0],
    [20.0, 107.0, 104.0, 64.0, 19.0, 197.0, 187.0, 157.0, 172.0, 86.0, 16.0, 27.0],
];
const EXTREME: [f64; 8] = [1000.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
const ONE_NODE: [i32; 16] = [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1];

/// The README of deepseek-ai/EPLB, then vLLM's `tests/distributed/test_eplb_algo.py`.
const PUBLISHED: [Published; 7] = [
    Published {
        load: &README[0],
        groups: 4,
        nodes: 2,
        ranks: 8,
        slots: &[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        imbalance: 1.2081,
    },
    Published {
        load: &README[1],
        groups: 4,
        nodes: 2,
        ranks: 8,
        slots: &[7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
        imbalance: 1.2422,
    },
    Published {
        load: &README[0],
        groups: 1,
        nodes: 2,
        ranks: 8,
        slots: &ONE_NODE,
        imbalance: 1.0726,
    },
    Published {
        load: &README[0],
        groups: 4,
        nodes: 8,
        ranks: 8,
        slots: &ONE_NODE,
        imbalance: 1.0726,
    },
    Published {
        load: &[100.0, 50.0, 200.0, 75.0, 150.0, 25.0, 300.0, 80.0],
        groups: 4,
        nodes: 2,
        ranks: 4,
        slots: &[6, 6, 7, 0, 6, 1, 2, 3, 4, 2, 4, 5],
        imbalance: 1.1429,
    },
    Published {
        load: &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0],
        groups: 3,
        nodes: 2,
        ranks: 4,
        slots: &[3, 0, 2, 4, 5, 4, 5, 1],
        imbalance: 1.0476,
    },
    // Nodes first: the heavy expert cannot leave its node.
    Published {
        load: &EXTREME,
        groups: 2,
        nodes: 2,
        ranks: 4,
        slots: &[0, 0, 3, 0, 1, 2, 6, 4, 4, 7, 5, 5],
        imbalance: 2.6521,
    },
];

fn place(load: &[f64], groups: usize, nodes: usize, ranks: usize, slots: usize) -> Placement {
    let cluster = Cluster::of_slots(slots, ranks).unwrap().with_nodes(nodes).unwrap();
    Greedy { groups }.place(load, &cluster).unwrap()
}

fn counts(load: &[f64], groups: usize, nodes: usize, ranks: usize, slots: usize) -> Vec<i32> {
    place(load, groups, nodes, ranks, slots).logical_replica_count().to_vec()
}

#[test]
fn published_placements() {
    for case in PUBLISHED {
        let placement = place(case.load, case.groups, case.nodes, case.ranks, case.slots.len());
        assert_eq!(placement.physical_to_logical(), case.slots);
        let cluster = Cluster::of_slots(case.slots.len(), case.ranks).unwrap();
        let found = imbalance_of(&LayerPlan::equal(placement), case.load, &cluster);
        assert!((found - case.imbalance).abs() < 1e-4, "{found} {}", case.imbalance);
    }
}

#[test]
fn published_counts() {
    assert_eq!(counts(&README[0], 4, 2, 8, 16), [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]);
    assert_eq!(counts(&README[1], 4, 2, 8, 16), [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]);
    assert_eq!(counts(&[10.0, 20.0, 30.0, 40.0], 1, 1, 1, 4), [1; 4]);
    assert_eq!(counts(&[50.0; 8], 2, 2, 4, 8), [1; 8]);
    let extreme = counts(&EXTREME, 2, 2, 4, 12);
    assert!(extreme[0] > extreme[1]);
    let mut load = [200.0, 150.0, 100.0, 50.0, 25.0, 12.0];
    assert!(counts(&load, 3, 1, 2, 10)[0] >= 2);
    load.reverse();
    assert!(counts(&load, 3, 1, 2, 10)[5] >= 2);
    // As published: without load the first expert is the heaviest every time.
    assert_eq!(counts(&[0.0; 4], 1, 1, 2, 8), [5, 1, 1, 1]);
}

/// The example of vLLM-Ascend's FlashLB.
#[test]
fn two_slots_a_rank() {
    let load = [600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0];
    let plan = LayerPlan::equal(place(&load, 1, 1, 8, 16));
    let cluster = Cluster::new(8, 2).unwrap();
    let imbalance = imbalance_of(&plan, &load, &cluster);
    assert!((imbalance * 181.25 - 232.0).abs() < 0.5, "{}", imbalance * 181.25);
}

/// The case of SGLang's `balanced_packing` test.
#[test]
fn packs_have_equal_size() {
    assert_eq!(place(&[9.0, 1.0, 1.0, 1.0], 1, 1, 2, 4).physical_to_logical(), [0, 3, 1, 2]);
}

#[test]
fn impossible_requests_are_refused() {
    let refused = |greedy: Greedy, load: &[f64], cluster: Cluster| {
        greedy.place(load, &cluster).unwrap_err().to_string()
    };
    let cluster = || Cluster::new(4, 2).unwrap();
    assert!(refused(Greedy { groups: 0 }, &[1.0; 8], cluster()).contains("groups"));
    assert!(refused(Greedy { groups: 3 }, &[1.0; 8], cluster()).contains("divisor"));
    let full = refused(Greedy { groups: 1 }, &[1.0; 8], cluster().without(&[1]).unwrap());
    assert_eq!(full, "slots of living ranks is 6, but must be 8 or more, the number of experts");
}

#[test]
fn dead_ranks_get_nothing() {
    let cluster = Cluster::new(4, 3).unwrap().with_nodes(2).unwrap();
    let load = [5.0, 1.0, 2.0, 3.0];
    let one_dead = cluster.clone().without(&[1]).unwrap();
    let placement = Greedy { groups: 2 }.place(&load, &one_dead).unwrap();
    one_dead.check(&placement).unwrap();
    let alone = Greedy { groups: 1 }.place(&load, &Cluster::new(3, 3).unwrap()).unwrap();
    let living: Vec<i32> =
        placement.physical_to_logical().iter().copied().filter(|&logical| logical >= 0).collect();
    assert_eq!(living, alone.physical_to_logical());
    // Both nodes lost a rank: the groups stay on their nodes.
    let both = cluster.without(&[0, 2]).unwrap();
    let placement = Greedy { groups: 2 }.place(&load, &both).unwrap();
    assert_eq!(placement.physical_to_logical(), [-1, -1, -1, 0, 0, 1, -1, -1, -1, 2, 3, 3]);
}

/// The cases of vLLM's `test_preserve_intragpu_slots`.
#[test]
fn experts_that_stay_keep_their_slot() {
    let check = |old: Vec<i32>, new: Vec<i32>, ranks: usize, num_logical: usize| {
        let cluster = Cluster::of_slots(old.len(), ranks).unwrap();
        let old = Placement::new(old, num_logical).unwrap();
        let new = Placement::new(new, num_logical).unwrap();
        let kept = keep_slots(&old, &new, &cluster).unwrap();
        for rank in 0..ranks {
            let of = |placement: &Placement| {
                placement.physical_to_logical()[cluster.slots_of(rank)].to_vec()
            };
            let sorted = |mut slots: Vec<i32>| {
                slots.sort_unstable();
                slots
            };
            assert_eq!(sorted(of(&kept)), sorted(of(&new)));
            for expert in 0..num_logical as i32 {
                let count = |slots: &[i32]| slots.iter().filter(|&&e| e == expert).count();
                let stays = count(&of(&old)).min(count(&of(&new)));
                let same = of(&old).into_iter().zip(of(&kept));
                assert_eq!(same.filter(|&(a, b)| a == b && a == expert).count(), stays);
            }
        }
    };
    check((0..8).collect(), vec![1, 5, 0, 4, 6, 2, 7, 3], 2, 8);
    check(vec![0, 1, 0, 2, 3, 4, 5, 6, 1, 2], vec![0, 5, 4, 0, 1, 6, 2, 3, 2, 1], 2, 7);
    check([0, 1, 2, 3].repeat(3), vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0], 3, 4);
}

#[test]
fn a_plan_moves_nothing_that_can_stay() {
    let cluster = Cluster::new(4, 3).unwrap();
    let current = Placement::initial(8, 4).unwrap();
    let load = [9.0, 4.0, 7.0, 1.0, 3.0, 3.0, 8.0, 2.0];
    let query = LayerQuery { load: &load, cluster: &cluster, current: &current };
    let plan = Greedy { groups: 1 }.plan(&query).unwrap();
    let again = LayerQuery { current: &plan.placement, ..query };
    assert_eq!(Greedy { groups: 1 }.plan(&again).unwrap(), plan);
}

#[derive(Debug, Clone)]
struct Case {
    load: Vec<f64>,
    groups: usize,
    nodes: usize,
    ranks: usize,
    slots: usize,
}

/// Sizes that divide each other, with loads that are often equal.
fn case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..4, 1usize..4, 1usize..4, 1usize..6, 0usize..5);
    sizes.prop_flat_map(|(nodes, groups_a_node, ranks_a_node, group_size, extra)| {
        let (groups, ranks) = (nodes * groups_a_node, nodes * ranks_a_node);
        let experts = groups * group_size;
        let slots = (experts.div_ceil(ranks) + extra) * ranks;
        let few_values = prop::collection::vec((0u8..4).prop_map(f64::from), experts);
        let many_values = prop::collection::vec(0.0..1e6f64, experts);
        // Groups that do not fit the nodes fall back to one node.
        let groups = prop::sample::select(vec![groups, 1, groups + 1]);
        (prop_oneof![few_values, many_values], groups).prop_filter_map(
            "groups of different size",
            move |(load, groups)| {
                let usable = groups % nodes != 0 || load.len() % groups == 0;
                usable.then_some(Case { load, groups, nodes, ranks, slots })
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_fast_version_equals_the_reference(case in case()) {
        let Case { load, groups, nodes, ranks, slots } = case;
        let single: Vec<f32> = load.iter().map(|&load| load as f32).collect();
        let expect = reference::place(&single, groups, nodes, ranks, slots);
        let found = place(&load, groups, nodes, ranks, slots);
        prop_assert_eq!(found.physical_to_logical(), &expect[..]);
    }
}
