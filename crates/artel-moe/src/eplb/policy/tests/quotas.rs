use proptest::prelude::*;

use super::{closed_sets, placed};
use crate::eplb::{
    Cluster, Placement,
    balance::rank_times,
    policy::{Batch, Copies, Objective, few_experts, quotas, water_fill},
};

fn time_of(cluster: &Cluster, quotas: &[u32]) -> f64 {
    let loads: Vec<f64> = quotas.iter().map(|&quota| f64::from(quota)).collect();
    rank_times(&loads, cluster).into_iter().fold(0.0, f64::max)
}

/// Whether some set of ranks cannot do in less than `time` the pairs that only it can do; then no
/// quotas are faster (Hall's theorem for whole pairs).
fn none_is_faster(cluster: &Cluster, placement: &Placement, counts: &[u32], time: f64) -> bool {
    let less = time * (1.0 - 1e-9);
    time == 0.0
        || closed_sets(cluster, placement).into_iter().any(|(ranks, experts)| {
            let pairs: f64 = experts.into_iter().map(|expert| f64::from(counts[expert])).sum();
            pairs > ranks.into_iter().map(|rank| (less * cluster.speeds()[rank]).floor()).sum()
        })
}

fn check_sums(placement: &Placement, counts: &[u32], quotas: &[u32]) {
    let mut sums = vec![0; counts.len()];
    for (&logical, &quota) in placement.physical_to_logical().iter().zip(quotas) {
        match usize::try_from(logical) {
            Ok(logical) => sums[logical] += quota,
            Err(_) => assert_eq!(quota, 0),
        }
    }
    assert_eq!(sums, counts);
}

/// Few pairs, and so many that they are split like water first.
fn counts() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![
        prop::collection::vec(0u32..4, 20),
        prop::collection::vec(0u32..1000, 20),
        prop::collection::vec(0u32..1_000_000, 20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_quotas_are_faster((cluster, placement) in placed(), counts in counts(), rank in 0usize..6) {
        let counts = &counts[..placement.num_logical()];
        let copies = Copies::new(&placement, &cluster).unwrap();
        for batch in [Batch::Replicated, Batch::OfRank(rank % cluster.ranks())] {
            let found = water_fill(counts, &copies, batch).unwrap();
            check_sums(&placement, counts, &found);
            let time = time_of(&cluster, &found);
            prop_assert!(none_is_faster(&cluster, &placement, counts, time), "{:?}", found);
            prop_assert_eq!(found, water_fill(counts, &copies, batch).unwrap());
        }
    }

    #[test]
    fn no_choice_of_copies_activates_fewer((cluster, placement) in placed(), counts in counts()) {
        let counts = &counts[..placement.num_logical()];
        let copies = Copies::new(&placement, &cluster).unwrap();
        let found = few_experts(counts, &copies).unwrap();
        check_sums(&placement, counts, &found);
        let active: Vec<u32> = found.iter().map(|&quota| quota.min(1)).collect();
        let active_experts: Vec<u32> = counts.iter().map(|&count| count.min(1)).collect();
        check_sums(&placement, &active_experts, &active);
        let time = time_of(&cluster, &active);
        prop_assert!(none_is_faster(&cluster, &placement, &active_experts, time), "{:?}", found);
    }
}

fn copies(slots: Vec<i32>, experts: usize, ranks: usize) -> Copies {
    let cluster = Cluster::of_slots(slots.len(), ranks).unwrap();
    Copies::new(&Placement::new(slots, experts).unwrap(), &cluster).unwrap()
}

/// One token of each rank for the same expert, which is on every second rank.
#[test]
fn ranks_with_one_token_take_turns() {
    let copies = copies([0, 1].repeat(16), 2, 32);
    let mut quotas = vec![0; 32];
    for rank in 0..32 {
        let of_rank = water_fill(&[1, 0], &copies, Batch::OfRank(rank)).unwrap();
        assert!(rank % 2 == 1 || of_rank[rank] == 1, "its own copy comes first");
        quotas.iter_mut().zip(of_rank).for_each(|(sum, quota)| *sum += quota);
    }
    assert!(quotas.iter().all(|&quota| quota <= 3), "{quotas:?}");
}

/// Load can only leave rank 0 through rank 1 to rank 2: no expert is on both ends.
#[test]
fn pairs_move_along_chains_of_ranks() {
    let copies = copies(vec![0, 1, 1, 2, 2, 3], 4, 3);
    assert_eq!(water_fill(&[9, 3, 3, 0], &copies, Batch::Replicated), Ok(vec![9, 0, 3, 0, 3, 0]));
    assert_eq!(water_fill(&[2, 4, 4, 2], &copies, Batch::Replicated), Ok(vec![2, 2, 2, 2, 2, 2]));
}

#[test]
fn copies_on_one_rank_divide_its_pairs() {
    let copies = copies(vec![0, 0, 0, 1], 2, 2);
    assert_eq!(water_fill(&[9, 4], &copies, Batch::Replicated), Ok(vec![4, 3, 2, 4]));
    assert_eq!(few_experts(&[9, 4], &copies), Ok(vec![9, 0, 0, 4]));
}

#[test]
fn the_largest_counts_fit() {
    let copies = copies(vec![0, 1, 0, 2, 1, 2], 3, 3);
    let quotas = water_fill(&[u32::MAX, u32::MAX, 7], &copies, Batch::Replicated).unwrap();
    let most = quotas.chunks(2).map(|q| u64::from(q[0]) + u64::from(q[1])).max();
    assert_eq!(most, Some((2 * u64::from(u32::MAX) + 7).div_ceil(3)));
}

#[test]
fn the_objective_chooses() {
    let copies = copies(vec![0, 1, 0, 2], 3, 2);
    let of = |objective, batch| quotas(objective, &[8, 6, 2], &copies, batch);
    assert_eq!(of(Objective::Tokens, Batch::Replicated), Ok(vec![2, 6, 6, 2]));
    assert_eq!(of(Objective::ActiveExperts, Batch::Replicated).unwrap().iter().sum::<u32>(), 16);
    assert!(of(Objective::Tokens, Batch::OfRank(1)).is_ok());
    let alone = of(Objective::ActiveExperts, Batch::OfRank(1)).unwrap_err().to_string();
    assert!(alone.contains("objective is ActiveExperts"), "{alone}");
    let stranger = of(Objective::Tokens, Batch::OfRank(2)).unwrap_err().to_string();
    assert!(stranger.contains("is 2") && stranger.contains("below"), "{stranger}");
    assert!(water_fill(&[1; 2], &copies, Batch::Replicated).is_err());
}
