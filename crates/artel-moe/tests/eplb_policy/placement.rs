use artel_moe::eplb::{
    Cluster, LayerPlan, LayerQuery, Placement, Policy,
    balance::imbalance_of,
    policy::{Balanced, Greedy, bounds, resplit},
};

use crate::{
    EXPERTS,
    loads::{Skew, drifted, load},
};

const DRAWS: u64 = 10;

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    values.sum::<f64>() / DRAWS as f64
}

fn worst(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// What equal shares reach, relative to a perfect split, in each draw: greedy, balanced, bound.
fn placed(skew: Skew, ranks: usize, slots_per_rank: usize) -> Vec<[f64; 3]> {
    let cluster = Cluster::new(ranks, slots_per_rank).unwrap();
    let draws: Vec<[f64; 3]> = (0..DRAWS)
        .map(|seed| {
            let load = load(skew, EXPERTS, seed);
            let imbalance = |placement| imbalance_of(&LayerPlan::equal(placement), &load, &cluster);
            [
                imbalance(Greedy { groups: 1 }.place(&load, &cluster).unwrap()),
                imbalance(Balanced::default().place(&load, &cluster).unwrap()),
                bounds::equal_shares(&load, &cluster).unwrap()
                    / bounds::perfect_split(&load, &cluster).unwrap(),
            ]
        })
        .collect();
    let [greedy, balanced, bound] = [0, 1, 2].map(|column| mean(draws.iter().map(|d| d[column])));
    println!(
        "{skew:?} on {ranks} x {slots_per_rank}: \
         greedy {greedy:.4}, balanced {balanced:.4}, bound {bound:.4}"
    );
    draws
}

#[test]
fn placements_are_within_three_thousandths_of_the_bound() {
    for (ranks, slots_per_rank) in [(32, 9), (64, 5), (72, 4)] {
        for skew in [Skew::Lognormal(0.5), Skew::Lognormal(1.0), Skew::Zipf(0.8)] {
            for [greedy, balanced, bound] in placed(skew, ranks, slots_per_rank) {
                assert!(balanced <= 1.003 * bound, "{balanced} {bound}");
                assert!(balanced <= greedy, "{balanced} {greedy}");
            }
        }
    }
}

/// With two or three slots a rank, and loads of which one expert has a tenth, the bound is weak.
/// The limits are what simulated annealing over a million steps reached, or the greedy where it did
/// not gain; with one slot a rank the bound is exact.
#[test]
fn hard_cases_are_below_their_limits() {
    for (skew, ranks, slots_per_rank, limit) in [
        (Skew::Lognormal(1.0), 96, 3, 1.0177),
        (Skew::Zipf(0.8), 96, 3, 1.1979),
        (Skew::Lognormal(0.5), 144, 2, 1.0555),
        (Skew::Lognormal(1.0), 144, 2, 1.3600),
        (Skew::Zipf(1.2), 64, 5, 1.0100),
        (Skew::Zipf(0.8), 8, 32, 1.0336),
        (Skew::Zipf(0.8), 8, 36, 1.0003),
    ] {
        let draws = placed(skew, ranks, slots_per_rank);
        assert!(draws.iter().all(|[greedy, balanced, _]| balanced <= greedy));
        let balanced = mean(draws.iter().map(|draw| draw[1]));
        assert!(balanced <= limit, "{balanced} {limit}");
    }
    for [_, balanced, bound] in placed(Skew::Lognormal(1.0), 320, 1) {
        assert!((balanced / bound - 1.0).abs() < 1e-6);
    }
}

/// A placement for the load of yesterday, and the load of today.
fn yesterday(slots_per_rank: usize, sigma: f64, seed: u64) -> (Cluster, Placement, Vec<f64>) {
    let cluster = Cluster::new(32, slots_per_rank).unwrap();
    let old = load(Skew::Lognormal(1.0), EXPERTS, seed);
    let placement = Balanced::default().place(&old, &cluster).unwrap();
    (cluster, placement, drifted(&old, sigma, 1000 + seed))
}

#[test]
fn new_shares_absorb_drift_without_moving_a_weight() {
    // (slots a rank, drift, limit of the mean, limit of every draw)
    for (slots_per_rank, sigma, mean_limit, limit) in [
        (9, 0.1, 1.035, 1.08),
        (9, 0.2, 1.080, 1.18),
        (10, 0.2, 1.003, 1.01),
        (10, 0.4, 1.030, 1.12),
        (12, 0.4, 1.001, 1.01),
    ] {
        let draws: Vec<[f64; 2]> = (0..DRAWS)
            .map(|seed| {
                let (cluster, placement, load) = yesterday(slots_per_rank, sigma, seed);
                let stale = imbalance_of(&LayerPlan::equal(placement.clone()), &load, &cluster);
                let shares = resplit(&placement, &load, &cluster).unwrap();
                [stale, imbalance_of(&LayerPlan { placement, shares }, &load, &cluster)]
            })
            .collect();
        let [stale, split] = [0, 1].map(|column| mean(draws.iter().map(|draw| draw[column])));
        println!("32 x {slots_per_rank}, drift {sigma}: stale {stale:.4}, new shares {split:.4}");
        assert!(split <= mean_limit && worst(draws.iter().map(|draw| draw[1])) <= limit);
    }
}

#[test]
fn a_few_moves_absorb_the_rest() {
    for (slots_per_rank, sigma, moves, limit) in [
        (9, 0.1, 8, 1.01),
        (9, 0.2, 8, 1.02),
        (9, 0.4, 8, 1.03),
        (9, 0.2, 32, 1.003),
        (9, 0.4, 32, 1.005),
        (10, 0.4, 8, 1.003),
    ] {
        let policy = Balanced { max_moves_per_layer: Some(moves), ..Balanced::default() };
        let (mut imbalances, mut moved_most) = (Vec::new(), 0);
        for seed in 0..DRAWS {
            let (cluster, current, load) = yesterday(slots_per_rank, sigma, seed);
            let query = LayerQuery { load: &load, cluster: &cluster, current: &current };
            let plan = policy.plan(&query).unwrap();
            let slots = current.physical_to_logical().iter();
            let moved = slots.zip(plan.placement.physical_to_logical()).filter(|(a, b)| a != b);
            moved_most = moved_most.max(moved.count());
            imbalances.push(imbalance_of(&plan, &load, &cluster));
        }
        let mean = mean(imbalances.into_iter());
        println!("32 x {slots_per_rank}, drift {sigma}, {moves} moves: {mean:.4}");
        assert!(mean <= limit && moved_most <= moves, "{mean} {moved_most}");
    }
}
