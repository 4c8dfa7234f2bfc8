use super::{
    Copies, LayerPlan, LayerQuery, Policy,
    level::{Basin, level},
    mask::{check_load, rehome},
};
use crate::{
    MoeError,
    eplb::{Cluster, Placement, Shares},
};

/// Sweeps over the experts until their ranks are this even, relative to the mean time of a rank.
const TOLERANCE: f64 = 1e-5;
const SWEEPS_MAX: usize = 500;

/// Shares that make the slowest rank as fast as the placement allows; no weight moves.
///
/// Each sweep takes every expert with copies on several ranks and fills its load back in, the
/// lightest of its ranks first. That is the exact minimum over this expert of the sum of squared
/// rank loads; sweeps converge to the minimum over all experts, which has the smallest maximum too
/// (load vectors of a placement form a base polytope).
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::resplit};
/// let placement = Placement::new(vec![0, 1, 0, 2], 3)?;
/// let shares = resplit(&placement, &[8.0, 6.0, 2.0], &Cluster::new(2, 2)?)?;
/// assert_eq!(shares.of_slots(), [0.25, 1.0, 0.75, 1.0]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError`] for a load that is negative, not finite or of other experts; for other ranks than
/// the placement's.
pub fn resplit(placement: &Placement, load: &[f64], cluster: &Cluster) -> Result<Shares, MoeError> {
    check_load(load, placement.num_logical())?;
    let copies = Copies::new(placement, cluster)?;
    let parts = Split::solve(&copies, load).parts;
    let mut shares = vec![0.0; cluster.slots()];
    for expert in 0..load.len() {
        let seats = copies.seats(expert);
        let total: f64 = parts[seats.clone()].iter().sum();
        for seat in seats {
            let slots = copies.slots_of(seat);
            // Loads beside which an expert's vanishes leave it no parts.
            let part = match total > 0.0 {
                true => parts[seat] / total / slots.len() as f64,
                false => 1.0 / f64::from(placement.logical_replica_count()[expert]),
            };
            slots.iter().for_each(|&slot| shares[slot as usize] = part);
        }
    }
    Shares::new(shares, placement)
}

/// The policy that never moves a weight: only [`resplit`]. Experts that ranks took with them when
/// they died are the exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resplit;

impl Policy for Resplit {
    fn name(&self) -> &'static str {
        "resplit"
    }

    fn plan(&self, query: &LayerQuery<'_>) -> Result<LayerPlan, MoeError> {
        query.check()?;
        let placement = rehome(query.current, query.load, query.cluster)?;
        let shares = resplit(&placement, query.load, query.cluster)?;
        Ok(LayerPlan { placement, shares })
    }
}

/// The best split of loads over seats.
pub(super) struct Split<'a> {
    copies: &'a Copies,
    load: &'a [f64],
    /// Load of each seat.
    pub parts: Vec<f64>,
    pub rank_loads: Vec<f64>,
    basins: Vec<Basin>,
}

impl<'a> Split<'a> {
    /// Sweeps until the ranks of every expert are even.
    pub fn solve(copies: &'a Copies, load: &'a [f64]) -> Self {
        let mut split = Self::even(copies, load);
        let total: f64 = load.iter().sum();
        let tolerance = TOLERANCE * total / copies.speeds.iter().sum::<f64>();
        for _ in 0..SWEEPS_MAX {
            let gains = copies.spread.iter().map(|&expert| split.refill(expert as usize));
            if gains.fold(0.0, f64::max) <= tolerance {
                break;
            }
        }
        split
    }

    /// Every expert evenly on its ranks.
    fn even(copies: &'a Copies, load: &'a [f64]) -> Self {
        let mut parts = vec![0.0; copies.num_seats()];
        let mut rank_loads = vec![0.0; copies.ranks()];
        for (expert, &load) in load.iter().enumerate() {
            let seats = copies.seats(expert);
            let part = load / seats.len() as f64;
            for seat in seats {
                parts[seat] = part;
                rank_loads[copies.rank_of[seat] as usize] += part;
            }
        }
        Self { copies, load, parts, rank_loads, basins: Vec::new() }
    }

    /// Fills an expert in again; how much the slowest of its ranks gained by it.
    fn refill(&mut self, expert: usize) -> f64 {
        let seats = self.copies.seats(expert);
        self.basins.clear();
        let mut slowest = 0f64;
        for seat in seats.clone() {
            let rank = self.copies.rank_of[seat] as usize;
            let speed = self.copies.speeds[rank];
            if self.parts[seat] > 0.0 {
                slowest = slowest.max(self.rank_loads[rank] / speed);
            }
            self.rank_loads[rank] -= self.parts[seat];
            self.basins.push(Basin { load: self.rank_loads[rank], speed });
        }
        let level = level(self.load[expert], &mut self.basins);
        for seat in seats {
            let rank = self.copies.rank_of[seat] as usize;
            let part = (level * self.copies.speeds[rank] - self.rank_loads[rank]).max(0.0);
            self.parts[seat] = part;
            self.rank_loads[rank] += part;
        }
        slowest - level
    }
}
