use proptest::prelude::*;

use super::{closed_sets, placed};
use crate::eplb::{
    Cluster, LayerPlan, LayerQuery, Placement, Shares,
    balance::{imbalance_of, rank_times},
    policy::{by_name, resplit},
};

/// The time that no shares can beat: experts without a copy elsewhere keep a set of ranks busy for
/// their load over the speed of the set. The largest over all sets is reached by some shares (the
/// theorem of maximal flow and minimal cut).
fn best_time(cluster: &Cluster, placement: &Placement, load: &[f64]) -> f64 {
    let time = |(ranks, experts): (Vec<usize>, Vec<usize>)| {
        let load: f64 = experts.into_iter().map(|expert| load[expert]).sum();
        load / ranks.into_iter().map(|rank| cluster.speeds()[rank]).sum::<f64>()
    };
    closed_sets(cluster, placement).into_iter().map(time).fold(0.0, f64::max)
}

fn slowest(cluster: &Cluster, placement: &Placement, shares: &Shares, load: &[f64]) -> f64 {
    rank_times(&shares.slot_loads(placement, load), cluster).into_iter().fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_shares_are_better(
        (cluster, placement) in placed(),
        random in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1e5f64], 20),
    ) {
        let load = &random[..placement.num_logical()];
        let shares = resplit(&placement, load, &cluster).unwrap();
        let best = best_time(&cluster, &placement, load);
        let found = slowest(&cluster, &placement, &shares, load);
        prop_assert!(found <= best * 1.0005 + 1e-9, "{} {}", found, best);
    }
}

#[test]
fn experts_without_load_share_evenly() {
    let placement = Placement::new(vec![0, 1, 0, 1], 2).unwrap();
    let cluster = Cluster::new(2, 2).unwrap();
    let shares = resplit(&placement, &[0.0, 4.0], &cluster).unwrap();
    assert_eq!(shares.of_slots(), [0.5; 4]);
    assert_eq!(resplit(&placement, &[0.0; 2], &cluster).unwrap(), Shares::equal(&placement));
    // So little that it vanishes in the load of a rank.
    let placement = Placement::new(vec![0, 1, 0, 2], 3).unwrap();
    let shares = resplit(&placement, &[1e-30, 5.0, 5.0], &cluster).unwrap();
    assert_eq!(shares, Shares::equal(&placement));
}

/// Two copies on one rank are as good as one: the rank's part goes to both.
#[test]
fn copies_on_one_rank_divide_its_part() {
    let placement = Placement::new(vec![0, 0, 0, 1], 2).unwrap();
    let shares = resplit(&placement, &[8.0, 4.0], &Cluster::new(2, 2).unwrap()).unwrap();
    assert_eq!(shares.of_slots(), [0.375, 0.375, 0.25, 1.0]);
}

#[test]
fn nonsense_is_refused() {
    let placement = Placement::new(vec![0, 1, 0, 1], 2).unwrap();
    let cluster = Cluster::new(2, 2).unwrap();
    for load in [&[1.0][..], &[1.0, -1.0], &[1.0, f64::NAN], &[f64::INFINITY, 1.0]] {
        assert!(resplit(&placement, load, &cluster).is_err());
    }
    assert!(resplit(&placement, &[1.0; 2], &Cluster::new(4, 2).unwrap()).is_err());
    assert!(resplit(&placement, &[1.0; 2], &cluster.without(&[0]).unwrap()).is_err());
}

#[test]
fn policies_that_keep_placements_move_nothing() {
    let cluster = Cluster::new(3, 2).unwrap();
    let current = Placement::new(vec![0, 1, 2, 0, 1, 3], 4).unwrap();
    let load = [9.0, 1.0, 2.0, 4.0];
    let query = LayerQuery { load: &load, cluster: &cluster, current: &current };
    let [none, split] =
        ["none", "resplit"].map(|name| by_name(name).unwrap().plan(&query).unwrap());
    assert_eq!(none, LayerPlan::equal(current.clone()));
    assert_eq!(split.placement, current);
    let [none, split] = [&none, &split].map(|plan| imbalance_of(plan, &load, &cluster));
    assert!(split < none, "{split} {none}");
}
