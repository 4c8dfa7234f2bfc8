use std::cmp::Ordering;

use super::{pack::Packing, swap::swap};
use crate::eplb::Cluster;

/// Limits on the load of a copy that are tried first.
const LIMITS: usize = 12;
/// Experts that may give up a copy in one round: those whose copies would stay lightest.
const DONORS: usize = 3;
const ROUNDS_MAX: usize = 8;

/// Looks for other counts of copies by which the slowest rank is faster, until it needs no more than
/// `target`. First all counts anew: heavy experts get as many copies as a limit on the load of a copy
/// demands, and what is left makes light experts lighter, so that they fit beside. Then copies move
/// one by one from another expert to one of the slowest rank. With two slots a rank packing is exact
/// (the heaviest with the lightest), so only counts can gain.
pub(super) fn search(load: &[f64], packing: Packing, cluster: &Cluster, target: f64) -> Packing {
    let mut best = packing;
    let heaviest = best.copies.iter().flatten().map(|copy| copy.load).fold(0.0, f64::max);
    let fastest = best.speeds.iter().copied().fold(0.0, f64::max);
    let slowest = best.time(best.slowest());
    // A rank has to hold the heaviest copy.
    if slowest <= target.max(heaviest / fastest * (1.0 + 1e-9)) {
        return best;
    }
    let step = (slowest * fastest / heaviest).powf(1.0 / LIMITS as f64);
    let limits = (1..LIMITS).map(|power| heaviest * step.powi(power as i32));
    let ranks = best.loads.len();
    let all =
        limits.filter_map(|limit| below(limit, load, ranks, ranks * cluster.slots_per_rank()));
    take_best(&mut best, all, load, cluster, target);
    for _ in 0..ROUNDS_MAX {
        if best.time(best.slowest()) <= target {
            break;
        }
        let counts = exchanged(load, &best);
        if !take_best(&mut best, counts, load, cluster, target) {
            break;
        }
    }
    best
}

/// Packs each of the counts; whether the best of them is better than what there was.
fn take_best(
    best: &mut Packing,
    counts: impl IntoIterator<Item = Vec<usize>>,
    load: &[f64],
    cluster: &Cluster,
    target: f64,
) -> bool {
    let mut limit = best.time(best.slowest()) * (1.0 - 1e-9);
    let mut better = false;
    for counts in counts {
        let mut packing = Packing::new(load, &counts, cluster);
        swap(&mut packing, target);
        let slowest = packing.time(packing.slowest());
        if slowest < limit {
            (limit, *best, better) = (slowest, packing, true);
        }
    }
    better
}

/// Counts by which no copy is heavier than the limit, as far as ranks allow; nothing if there are too
/// few slots.
fn below(limit: f64, load: &[f64], ranks: usize, slots: usize) -> Option<Vec<usize>> {
    let demanded = |load: &f64| ((load / limit).ceil() as usize).clamp(1, ranks);
    let mut counts: Vec<usize> = load.iter().map(demanded).collect();
    let left = slots.checked_sub(counts.iter().sum())?;
    for _ in 0..left {
        let a_copy = |expert: usize| load[expert] / counts[expert] as f64;
        let lightest_last = |&a: &usize, &b: &usize| {
            let light = |expert: usize| load[expert] <= limit;
            (light(a), a_copy(a)).partial_cmp(&(light(b), a_copy(b))).unwrap_or(Ordering::Equal)
        };
        let with_room = (0..load.len()).filter(|&expert| counts[expert] < ranks);
        let heaviest = with_room.max_by(lightest_last)?;
        counts[heaviest] += 1;
    }
    Some(counts)
}

/// The counts of a packing with one copy moved to an expert of the slowest rank.
fn exchanged(load: &[f64], packing: &Packing) -> Vec<Vec<usize>> {
    let counts = packing.counts(load.len());
    let mut donors: Vec<usize> = (0..load.len()).filter(|&expert| counts[expert] > 1).collect();
    let after = |expert: usize| load[expert] / (counts[expert] - 1) as f64;
    donors.sort_by(|&a, &b| after(a).total_cmp(&after(b)));
    let takers = packing.copies[packing.slowest()].iter().map(|copy| copy.expert);
    let takers = takers.filter(|&taker| counts[taker] < packing.loads.len());
    let pairs = takers.flat_map(|taker| donors.iter().take(DONORS).map(move |&d| (d, taker)));
    pairs
        .filter(|(donor, taker)| donor != taker)
        .map(|(donor, taker)| {
            let mut counts = counts.clone();
            counts[donor] -= 1;
            counts[taker] += 1;
            counts
        })
        .collect()
}
