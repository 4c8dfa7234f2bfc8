use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::eplb::{Cluster, Placement};

/// World, layers, slots a rank and experts of vLLM's tests of weight moves.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(2, 1, 2, 3), (2, 2, 3, 4), (2, 4, 8, 16), (4, 1, 2, 6), (4, 2, 2, 5), (4, 8, 8, 16)];

fn random_placement(rng: &mut ChaCha8Rng, slots: usize, experts: usize) -> Placement {
    let mut placed: Vec<i32> = (0..slots)
        .map(|slot| if slot < experts { slot } else { rng.random_range(0..experts) } as i32)
        .collect();
    for slot in (1..slots).rev() {
        placed.swap(slot, rng.random_range(0..=slot));
    }
    Placement::new(placed, experts).unwrap()
}

/// The published test weights: a run of numbers that no two experts, layers or matrices share.
fn weights(layer: usize, expert: usize) -> Vec<usize> {
    (0..2).flat_map(|w| (0..10).map(move |i| expert * 1000 + layer * 100 + w * 10 + i)).collect()
}

/// Applies a plan as ranks do: reads from the old slots only.
fn apply(plan: &MovePlan, slots: &mut [Vec<usize>], cluster: &Cluster) {
    let old = slots.to_vec();
    for copy in &plan.copies {
        assert_eq!(cluster.rank_of(copy.from_slot), cluster.rank_of(copy.to_slot));
        slots[copy.to_slot].clone_from(&old[copy.from_slot]);
    }
    for transfer in &plan.transfers {
        assert!(transfer.from != transfer.to && !transfer.to_slots.is_empty());
        assert_eq!(cluster.rank_of(transfer.from_slot), transfer.from);
        for &slot in &transfer.to_slots {
            assert_eq!(cluster.rank_of(slot), transfer.to);
            slots[slot].clone_from(&old[transfer.from_slot]);
        }
    }
}

#[test]
fn moved_weights_are_those_of_the_new_placement() {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    for (world, layers, local, logical) in SHAPES {
        let cluster = Cluster::new(world, local).unwrap();
        for layer in 0..layers {
            let mut now = random_placement(&mut rng, cluster.slots(), logical);
            let of_placement = |placement: &Placement| -> Vec<Vec<usize>> {
                let experts = placement.physical_to_logical().iter();
                experts.map(|&expert| weights(layer, expert as usize)).collect()
            };
            let mut slots = of_placement(&now);
            for _ in 0..50 {
                let next = random_placement(&mut rng, cluster.slots(), logical);
                apply(&plan(&now, &next, &cluster).unwrap(), &mut slots, &cluster);
                now = next;
                assert_eq!(slots, of_placement(&now));
                assert_eq!(plan(&now, &now, &cluster).unwrap(), MovePlan::default());
            }
        }
    }
}

#[test]
fn a_rank_receives_an_expert_once_and_slots_that_stay_are_left_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(32);
    let cluster = Cluster::new(4, 8).unwrap();
    for _ in 0..200 {
        let [old, new] = [0; 2].map(|_| random_placement(&mut rng, 32, 16));
        let plan = plan(&old, &new, &cluster).unwrap();
        let changed: Vec<usize> = (0..32)
            .filter(|&slot| old.physical_to_logical()[slot] != new.physical_to_logical()[slot])
            .collect();
        let mut written: Vec<usize> = plan.copies.iter().map(|copy| copy.to_slot).collect();
        written.extend(plan.transfers.iter().flat_map(|transfer| &transfer.to_slots));
        written.sort_unstable();
        assert_eq!((written.as_slice(), plan.changed_slots), (changed.as_slice(), changed.len()));
        let mut received: Vec<_> = plan.transfers.iter().map(|t| (t.to, t.expert)).collect();
        received.sort_unstable();
        assert!(received.windows(2).all(|pair| pair[0] != pair[1]), "an expert received twice");
    }
}

/// Two senders and five receivers: two each, and the first sender one more.
#[test]
fn receivers_are_dealt_to_senders_in_order() {
    let cluster = Cluster::new(8, 1).unwrap();
    let old = Placement::new(vec![1, 0, 2, 2, 0, 2, 2, 2], 3).unwrap();
    let new = Placement::new(vec![1, 0, 0, 0, 0, 0, 0, 2], 3).unwrap();
    let pairs = |moves: &MovePlan| -> Vec<(usize, usize)> {
        moves.transfers.iter().map(|transfer| (transfer.from, transfer.to)).collect()
    };
    assert_eq!(pairs(&plan(&old, &new, &cluster).unwrap()), [(1, 2), (1, 3), (4, 5), (4, 6)]);
    let old = Placement::new(vec![1, 0, 2, 2, 0, 2, 2, 2], 3).unwrap();
    let new = Placement::new(vec![0, 0, 0, 0, 0, 0, 1, 2], 3).unwrap();
    let moves = plan(&old, &new, &cluster).unwrap();
    assert_eq!(pairs(&moves), [(1, 0), (1, 2), (4, 3), (4, 5), (0, 6)]);
}

#[test]
fn what_only_dead_ranks_have_is_loaded_again() {
    let cluster = Cluster::new(3, 2).unwrap().without(&[1]).unwrap();
    let old = Placement::new(vec![0, 1, 2, 1, 3, 0], 4).unwrap();
    let new = Placement::new(vec![2, 1, -1, -1, 3, 0], 4).unwrap();
    let moves = plan(&old, &new, &cluster).unwrap();
    assert_eq!(moves.reloads, [(2, 0)]);
    assert!(moves.transfers.is_empty() && moves.copies.is_empty());
    assert!(plan(&old, &old, &cluster).is_err(), "slots of a dead rank in use");
}

#[test]
fn a_rank_talks_to_one_other_in_a_round() {
    let mut rng = ChaCha8Rng::seed_from_u64(33);
    let cluster = Cluster::new(8, 4).unwrap();
    for _ in 0..100 {
        let [old, new] = [0; 2].map(|_| random_placement(&mut rng, 32, 20));
        let moves = plan(&old, &new, &cluster).unwrap();
        let mut sent: Vec<Transfer> = Vec::new();
        for round in rounds(moves.clone()) {
            for transfer in &round {
                for other in &round {
                    let [a, b] = [transfer, other].map(|transfer| [transfer.from, transfer.to]);
                    assert!(a == b || !a.iter().any(|rank| b.contains(rank)), "{a:?} and {b:?}");
                }
            }
            sent.extend(round);
        }
        let key = |transfer: &Transfer| (transfer.expert, transfer.to);
        sent.sort_by_key(key);
        let mut all = moves.transfers;
        all.sort_by_key(key);
        assert_eq!(sent, all);
    }
}

#[test]
fn stages_are_small_and_no_expert_is_lost_on_the_way() {
    let mut rng = ChaCha8Rng::seed_from_u64(34);
    let changes = |a: &Placement, b: &Placement| {
        let slots = a.physical_to_logical().iter().zip(b.physical_to_logical());
        slots.filter(|(a, b)| a != b).count()
    };
    for experts in [8, 16, 24] {
        for slots_max in [1, 3, 8] {
            let [old, new] = [0; 2].map(|_| random_placement(&mut rng, 24, experts));
            let stages = stages(&old, &new, slots_max).unwrap();
            assert_eq!(stages.last(), Some(&new));
            let mut changed = 0;
            for (before, after) in std::iter::once(&old).chain(&stages).zip(&stages) {
                changed += changes(before, after);
                // Constructors refuse placements without an expert; without copies experts swap.
                let together = changes(before, after);
                assert!(together > 0 && (together <= slots_max || experts == 24 || slots_max < 8));
            }
            assert_eq!(changed, changes(&old, &new), "a slot changes once");
        }
    }
    let swap = [vec![0, 1, 2], vec![1, 0, 2]].map(|slots| Placement::new(slots, 3).unwrap());
    assert_eq!(stages(&swap[0], &swap[1], 1).unwrap(), [swap[1].clone()]);
    assert!(stages(&swap[0], &swap[0], 1).unwrap().is_empty());
}
