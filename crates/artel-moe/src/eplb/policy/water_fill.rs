use std::cmp::Ordering;

use super::{
    Copies,
    level::{Basin, level},
    resplit::Split,
};
use crate::MoeError;

/// More sweeps over the experts do not pay: paths find what is left.
const SWEEPS_MAX: usize = 4;
/// With so many pairs a seat it is faster to split them like water first and then to make them whole.
const MANY: u64 = 64;

/// Whose tokens are dealt out. Everybody who deals out the same tokens must come to the same result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// The tokens that one rank sends to the experts (all-to-all). Of equally loaded ranks it takes
    /// itself first; between others sources take turns, so that those with few tokens do not all
    /// choose the same.
    OfRank(usize),
    /// Tokens that every rank sees (all-gather).
    Replicated,
}

impl Batch {
    /// The rank that goes first in ties.
    fn source(self, copies: &Copies) -> Result<usize, MoeError> {
        match self {
            Self::Replicated => Ok(0),
            Self::OfRank(rank) if rank < copies.ranks() => Ok(rank),
            Self::OfRank(rank) => {
                let allowed = format!("below the number of ranks, {}", copies.ranks());
                Err(MoeError::config("rank of a batch", rank, allowed))
            }
        }
    }
}

/// How many of the pairs of each expert every slot gets, `[P]`: whole pairs that add up to the
/// expert's `counts` `[L]`, so that the slowest rank is as fast as whole pairs and the placement
/// allow. No randomness: the same input gives the same quotas everywhere.
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::{Batch, Copies, water_fill}};
/// let placement = Placement::new(vec![0, 1, 0, 2], 3)?;
/// let copies = Copies::new(&placement, &Cluster::new(2, 2)?)?;
/// assert_eq!(water_fill(&[8, 6, 2], &copies, Batch::Replicated)?, [2, 6, 6, 2]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError`] for counts of other experts, or a rank that does not exist.
pub fn water_fill(counts: &[u32], copies: &Copies, batch: Batch) -> Result<Vec<u32>, MoeError> {
    let mut quotas = vec![0; copies.num_physical()];
    let of_seats = fill(counts, copies, batch)?;
    for (seat, quota) in of_seats.into_iter().enumerate() {
        let slots = copies.slots_of(seat);
        let (each, more) = (quota / slots.len() as u32, quota % slots.len() as u32);
        for (position, &slot) in (0..).zip(slots) {
            quotas[slot as usize] = each + u32::from(position < more);
        }
    }
    Ok(quotas)
}

/// The same by seat.
pub(super) fn fill(counts: &[u32], copies: &Copies, batch: Batch) -> Result<Vec<u32>, MoeError> {
    MoeError::check_shape("pairs of experts", copies.num_logical(), counts.len())?;
    let mut filling = Filling::new(counts, copies, batch.source(copies)?);
    if counts.iter().map(|&count| u64::from(count)).sum::<u64>() >= MANY * copies.num_seats() as u64
    {
        filling.pour();
    }
    filling.sweep();
    filling.relieve();
    Ok(filling.quotas)
}

/// Quotas of seats on their way to the best.
struct Filling<'a> {
    counts: &'a [u32],
    copies: &'a Copies,
    source: usize,
    quotas: Vec<u32>,
    /// Pairs of each rank: whole numbers, far below 2^53.
    rank_loads: Vec<f64>,
    basins: Vec<Basin>,
    /// Quotas of the expert at hand before it was dealt out again.
    before: Vec<u32>,
}

impl<'a> Filling<'a> {
    /// Experts on one rank are dealt out, the others not yet.
    fn new(counts: &'a [u32], copies: &'a Copies, source: usize) -> Self {
        let mut quotas = vec![0; copies.num_seats()];
        let mut rank_loads = vec![0.0; copies.ranks()];
        for (expert, &count) in counts.iter().enumerate() {
            let seats = copies.seats(expert);
            if seats.len() == 1 {
                quotas[seats.start] = count;
                rank_loads[copies.rank_of[seats.start] as usize] += f64::from(count);
            }
        }
        Self { counts, copies, source, quotas, rank_loads, basins: Vec::new(), before: Vec::new() }
    }

    /// Deals out the whole part of what the best split of loads gives each seat.
    fn pour(&mut self) {
        let load: Vec<f64> = self.counts.iter().map(|&count| f64::from(count)).collect();
        let split = Split::solve(self.copies, &load);
        for &expert in &self.copies.spread {
            for seat in self.copies.seats(expert as usize) {
                // The conversion cuts off what is not whole.
                self.quotas[seat] = split.parts[seat] as u32;
                let rank = self.copies.rank_of[seat] as usize;
                self.rank_loads[rank] += f64::from(self.quotas[seat]);
            }
        }
    }

    /// Deals out expert after expert, given the others, until nothing changes.
    fn sweep(&mut self) {
        for _ in 0..SWEEPS_MAX {
            let mut changed = false;
            for &expert in &self.copies.spread {
                changed |= self.counts[expert as usize] > 0 && self.refill(expert as usize);
            }
            if !changed {
                break;
            }
        }
    }

    /// Deals out one expert: whole pairs below the common level, then one by one. Whether that
    /// changed anything.
    fn refill(&mut self, expert: usize) -> bool {
        let (copies, seats) = (self.copies, self.copies.seats(expert));
        self.basins.clear();
        for seat in seats.clone() {
            let rank = copies.rank_of[seat] as usize;
            self.rank_loads[rank] -= f64::from(self.quotas[seat]);
            self.basins.push(Basin { load: self.rank_loads[rank], speed: copies.speeds[rank] });
        }
        self.before.clear();
        self.before.extend_from_slice(&self.quotas[seats.clone()]);
        let mut left = self.counts[expert];
        let level = level(f64::from(left), &mut self.basins);
        for seat in seats.clone() {
            let rank = copies.rank_of[seat] as usize;
            let below = (level * copies.speeds[rank] - self.rank_loads[rank]).max(0.0);
            // The conversion cuts off what is not whole.
            let quota = left.min(below as u32);
            self.quotas[seat] = quota;
            self.rank_loads[rank] += f64::from(quota);
            left -= quota;
        }
        for _ in 0..left {
            let Some(seat) = seats.clone().min_by(|&a, &b| self.by_next_time(a, b)) else { break };
            self.quotas[seat] += 1;
            self.rank_loads[copies.rank_of[seat] as usize] += 1.0;
        }
        self.before != self.quotas[seats]
    }

    /// Orders seats by the time of their rank with one pair more, then by turn.
    fn by_next_time(&self, a: usize, b: usize) -> Ordering {
        let [rank_a, rank_b] = [a, b].map(|seat| self.copies.rank_of[seat] as usize);
        let times = self.next_time(rank_a).total_cmp(&self.next_time(rank_b));
        times.then_with(|| self.turn(a).cmp(&self.turn(b)))
    }

    /// Place of a seat among those of its expert: that of the source itself, then another one first for
    /// every source and expert.
    fn turn(&self, seat: usize) -> (bool, usize) {
        let expert = self.copies.expert_of[seat] as usize;
        let seats = self.copies.seats(expert);
        let first = (self.source + expert) % seats.len();
        let turn = (seat - seats.start + seats.len() - first) % seats.len();
        (self.copies.rank_of[seat] as usize != self.source, turn)
    }

    fn next_time(&self, rank: usize) -> f64 {
        (self.rank_loads[rank] + 1.0) / self.copies.speeds[rank]
    }

    /// Takes pairs from the slowest rank along paths of ranks that share experts until there is no
    /// such path to a faster rank: then no quotas have a faster slowest rank.
    fn relieve(&mut self) {
        let ranks = self.copies.ranks();
        let time = |loads: &[f64], rank: usize| loads[rank] / self.copies.speeds[rank];
        loop {
            let loads = &self.rank_loads;
            let slowest = (0..ranks).max_by(|&a, &b| time(loads, a).total_cmp(&time(loads, b)));
            match slowest.and_then(|slowest| self.path_from(slowest)) {
                Some(path) => self.shift(&path),
                None => break,
            }
        }
    }

    /// Steps (seat that gives, seat that takes) from a rank to one that stays faster than it with a
    /// pair more; the last step comes first. Breadth first, so the path is short.
    fn path_from(&self, slowest: usize) -> Option<Vec<(usize, usize)>> {
        let copies = self.copies;
        let limit = self.rank_loads[slowest] / copies.speeds[slowest];
        let mut step_to = vec![None; copies.ranks()];
        let mut queue = vec![slowest];
        let mut head = 0;
        while let Some(&rank) = queue.get(head) {
            head += 1;
            for &giver in copies.spread_seats_on(rank) {
                let giver = giver as usize;
                if self.quotas[giver] == 0 {
                    continue;
                }
                for taker in copies.seats(copies.expert_of[giver] as usize) {
                    let next = copies.rank_of[taker] as usize;
                    if next == slowest || step_to[next].is_some() {
                        continue;
                    }
                    step_to[next] = Some((giver, taker));
                    if self.next_time(next) < limit {
                        return Some(self.steps_back(next, slowest, &step_to));
                    }
                    queue.push(next);
                }
            }
        }
        None
    }

    fn steps_back(
        &self,
        mut rank: usize,
        slowest: usize,
        step_to: &[Option<(usize, usize)>],
    ) -> Vec<(usize, usize)> {
        let mut path = Vec::new();
        while rank != slowest
            && let Some(step) = step_to[rank]
        {
            path.push(step);
            rank = self.copies.rank_of[step.0] as usize;
        }
        path
    }

    /// Moves pairs along a path: as many as bring both ends to the same time, at least one.
    fn shift(&mut self, path: &[(usize, usize)]) {
        let (Some(first), Some(last)) = (path.last(), path.first()) else { return };
        let [from, to] = [first.0, last.1].map(|seat| self.copies.rank_of[seat] as usize);
        let [v_from, v_to] = [from, to].map(|rank| self.copies.speeds[rank]);
        let even = (self.rank_loads[from] * v_to - self.rank_loads[to] * v_from) / (v_from + v_to);
        let most = path.iter().map(|&(giver, _)| self.quotas[giver]).min().unwrap_or(0);
        let pairs = most.min((even as u32).max(1));
        for &(giver, taker) in path {
            self.quotas[giver] -= pairs;
            self.quotas[taker] += pairs;
        }
        self.rank_loads[from] -= f64::from(pairs);
        self.rank_loads[to] += f64::from(pairs);
    }
}
