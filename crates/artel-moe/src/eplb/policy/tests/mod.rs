mod balanced;
mod greedy;
mod mask;
mod quotas;
mod resplit;

use proptest::prelude::*;

use crate::eplb::{Cluster, Placement};

/// Few ranks, at times of different speed or dead, with a placement that has every expert.
fn placed() -> impl Strategy<Value = (Cluster, Placement)> {
    let sizes = (1usize..6, 1usize..5, 0usize..2);
    sizes.prop_flat_map(|(ranks, slots_per_rank, dead)| {
        let dead = dead.min(ranks - 1);
        let living = (ranks - dead) * slots_per_rank;
        let speeds = prop_oneof![
            Just(vec![1.0; ranks]),
            prop::collection::vec(prop::sample::select(vec![0.5, 1.0, 1.25, 3.0]), ranks)
        ];
        let experts = 1..=living;
        (speeds, experts, prop::collection::vec(any::<u16>(), living)).prop_flat_map(
            move |(speeds, experts, random)| {
                // Every expert once, the rest at random, some slots empty.
                let fill = |(slot, random): (usize, &u16)| match slot < experts {
                    true => slot as i32,
                    false => i32::from(*random) % (experts as i32 + 1) - 1,
                };
                let slots: Vec<i32> = random.iter().enumerate().map(fill).collect();
                Just(slots).prop_shuffle().prop_map(move |mut slots| {
                    let cluster = Cluster::new(ranks, slots_per_rank).unwrap();
                    let cluster = cluster.with_speeds(speeds.clone()).unwrap();
                    slots.resize(ranks * slots_per_rank, -1);
                    let last: Vec<usize> = (ranks - dead..ranks).collect();
                    let placement = Placement::new(slots, experts).unwrap();
                    (cluster.without(&last).unwrap(), placement)
                })
            },
        )
    })
}

/// For every set of living ranks: its ranks, and the experts that have no copy elsewhere.
fn closed_sets(cluster: &Cluster, placement: &Placement) -> Vec<(Vec<usize>, Vec<usize>)> {
    let living: Vec<usize> = cluster.living().collect();
    let sets = 1usize..1 << living.len();
    let of_set = |set: usize| {
        let chosen = living.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
        let ranks: Vec<usize> = chosen.map(|(_, &rank)| rank).collect();
        let inside = |&expert: &usize| {
            let slots = placement.replicas(expert as i32).iter();
            slots.into_iter().all(|&slot| ranks.contains(&cluster.rank_of(slot as usize)))
        };
        let experts = (0..placement.num_logical()).filter(inside).collect();
        (ranks, experts)
    };
    sets.map(of_set).collect()
}
