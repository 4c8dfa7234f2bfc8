use super::{Copies, nodes::crossing, resplit::Split};
use crate::{
    MoeError,
    eplb::{Cluster, Placement},
};

/// Slow ranks that give, fast ranks that take, and changes that are worked out to the end.
const SLOW_RANKS: usize = 4;
const FAST_RANKS: usize = 8;
const FINALISTS: usize = 6;
/// Exponent of rank times in the cost: the slowest ranks decide, but every rank counts.
const STEEPNESS: i32 = 16;
/// This close to a perfect split nothing more moves.
const CLOSE: f64 = 1e-3;
/// Steps that gain less are not worth their bytes.
const GAIN_MIN: f64 = 1e-6;

/// Changes at most `changes_max` slots so that the placement with the best shares gains most. One step
/// puts a copy of an expert of a slow rank in the place of a copy on a fast rank that can be spared
/// (one change), or exchanges two slots (two). What a step would gain with the other shares as they
/// are is an estimate; the best few are split anew, and the one with the largest gain a change is
/// taken.
pub(super) fn improve(
    placement: &Placement,
    load: &[f64],
    cluster: &Cluster,
    changes_max: usize,
    cross_node_penalty: f64,
) -> Result<Placement, MoeError> {
    let mut best = State::new(placement.clone(), load, cluster, cross_node_penalty)?;
    let mut left = changes_max;
    while left > 0 && best.times.iter().any(|&time| time > 1.0 + CLOSE) {
        let mut candidates = best.candidates(load, cluster);
        candidates.retain(|candidate| candidate.changes() <= left);
        candidates.sort_by(|a, b| b.estimate.total_cmp(&a.estimate));
        candidates.truncate(FINALISTS);
        let mut next: Option<(f64, usize, State)> = None;
        for candidate in candidates {
            let changed = candidate.apply(&best.placement)?;
            let state = State::new(changed, load, cluster, cross_node_penalty)?;
            let gain = (best.cost - state.cost) / candidate.changes() as f64;
            if gain > GAIN_MIN && next.as_ref().is_none_or(|(most, ..)| gain > *most) {
                next = Some((gain, candidate.changes(), state));
            }
        }
        let Some((_, changes, state)) = next else { break };
        left -= changes;
        best = state;
    }
    Ok(best.placement)
}

/// Slots that get another expert.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    slot: usize,
    expert: i32,
    /// Where the expert of `slot` goes in exchange, if the place of the new one is given up.
    exchange: Option<usize>,
    /// Estimated gain a change.
    estimate: f64,
}

impl Candidate {
    fn changes(&self) -> usize {
        1 + usize::from(self.exchange.is_some())
    }

    fn apply(&self, placement: &Placement) -> Result<Placement, MoeError> {
        let mut slots = placement.physical_to_logical().to_vec();
        let replaced = std::mem::replace(&mut slots[self.slot], self.expert);
        if let Some(slot) = self.exchange {
            slots[slot] = replaced;
        }
        Placement::new(slots, placement.num_logical())
    }
}

/// A placement with its best shares.
struct State {
    placement: Placement,
    /// Load of each slot.
    slot_loads: Vec<f64>,
    /// Time of each rank over the mean.
    times: Vec<f64>,
    /// Time of a perfect split.
    mean: f64,
    cost: f64,
}

impl State {
    fn new(
        placement: Placement,
        load: &[f64],
        cluster: &Cluster,
        cross_node_penalty: f64,
    ) -> Result<Self, MoeError> {
        let copies = Copies::new(&placement, cluster)?;
        let split = Split::solve(&copies, load);
        let mut slot_loads = vec![0.0; cluster.slots()];
        for (seat, part) in split.parts.iter().enumerate() {
            let slots = copies.slots_of(seat);
            slots.iter().for_each(|&slot| slot_loads[slot as usize] = part / slots.len() as f64);
        }
        let speed: f64 = cluster.living().map(|rank| cluster.speeds()[rank]).sum();
        let mean = (load.iter().sum::<f64>() / speed).max(f64::MIN_POSITIVE);
        let loads = split.rank_loads.iter().zip(cluster.speeds());
        let times: Vec<f64> = loads.map(|(load, speed)| load / speed / mean).collect();
        let crossing = match cross_node_penalty > 0.0 {
            true => crossing(&placement, load, cluster),
            false => 0.0,
        };
        let uneven: f64 = times.iter().map(|&time| steep(time)).sum();
        let cost = uneven.powf(1.0 / f64::from(STEEPNESS)) + cross_node_penalty * crossing;
        Ok(Self { placement, slot_loads, times, mean, cost })
    }

    /// Steps that may gain.
    fn candidates(&self, load: &[f64], cluster: &Cluster) -> Vec<Candidate> {
        let mut by_time: Vec<usize> = cluster.living().collect();
        by_time.sort_by(|&a, &b| self.times[b].total_cmp(&self.times[a]));
        let mut candidates = Vec::new();
        for &slow in by_time.iter().take(SLOW_RANKS) {
            for &fast in by_time.iter().rev().take(FAST_RANKS) {
                if self.times[fast] < self.times[slow] {
                    self.between(slow, fast, load, cluster, &mut candidates);
                }
            }
        }
        candidates
    }

    /// Steps by which a slow rank hands load to a fast one.
    fn between(
        &self,
        slow: usize,
        fast: usize,
        load: &[f64],
        cluster: &Cluster,
        candidates: &mut Vec<Candidate>,
    ) {
        let slots = self.placement.physical_to_logical();
        let held = |rank: usize, expert: i32| slots[cluster.slots_of(rank)].contains(&expert);
        for giving in cluster.slots_of(slow) {
            let expert = slots[giving];
            if expert < 0 || held(fast, expert) {
                continue;
            }
            for slot in cluster.slots_of(fast) {
                let estimate = self.gain_of_copy(giving, slot, load, cluster);
                if estimate > 0.0 {
                    candidates.push(Candidate { slot, expert, exchange: None, estimate });
                }
                let moved = self.slot_loads[giving] - self.slot_loads[slot];
                if moved > 0.0 && slots[slot] >= 0 && !held(slow, slots[slot]) {
                    let estimate = self.gain_of_moving(moved, slow, fast, cluster) / 2.0;
                    let exchange = Some(giving);
                    candidates.push(Candidate { slot, expert, exchange, estimate });
                }
            }
        }
    }

    /// Estimated gain when the expert in `giving` gets a copy in `slot`, whose expert has others.
    fn gain_of_copy(&self, giving: usize, slot: usize, load: &[f64], cluster: &Cluster) -> f64 {
        let slots = self.placement.physical_to_logical();
        let [slow, fast] = [giving, slot].map(|slot| cluster.rank_of(slot));
        let replaced = slots[slot];
        let others = self.placement.replicas(replaced).iter().map(|&other| other as usize);
        let to = others
            .filter(|&other| other != slot)
            .map(|other| cluster.rank_of(other))
            .min_by(|&a, &b| self.times[a].total_cmp(&self.times[b]));
        // An empty slot replaces nothing; the last copy of an expert must stay.
        let (freed, to) = match (replaced, to) {
            (-1, _) => (0.0, fast),
            (_, Some(to)) => (self.slot_loads[slot], to),
            (_, None) => return 0.0,
        };
        if to == slow {
            return 0.0;
        }
        let time =
            |rank: usize, load: f64| self.times[rank] + load / cluster.speeds()[rank] / self.mean;
        let [v_slow, v_fast] = [slow, fast].map(|rank| cluster.speeds()[rank]);
        let even = (self.times[slow] - time(fast, -freed)) * self.mean * v_slow * v_fast;
        let moved = (even / (v_slow + v_fast)).min(load[slots[giving] as usize]);
        let before = steep(self.times[slow]) + steep(self.times[fast]);
        if to == fast {
            return before - steep(time(slow, -moved)) - steep(time(fast, moved));
        }
        before + steep(self.times[to])
            - steep(time(slow, -moved))
            - steep(time(fast, moved - freed))
            - steep(time(to, freed))
    }

    fn gain_of_moving(&self, moved: f64, slow: usize, fast: usize, cluster: &Cluster) -> f64 {
        let time =
            |rank: usize, load: f64| self.times[rank] + load / cluster.speeds()[rank] / self.mean;
        steep(self.times[slow]) + steep(self.times[fast])
            - steep(time(slow, -moved))
            - steep(time(fast, moved))
    }
}

fn steep(time: f64) -> f64 {
    time.powi(STEEPNESS)
}
