use std::collections::VecDeque;

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::{
    CopyRule, ReplayConfig,
    rule::{add_quotas, add_to_copies, draw_copies},
};
use crate::{
    MoeError,
    eplb::{
        Cluster, LayerPlan, LayerQuery, Placement, Policy, balance,
        policy::{Batch, Copies, few_experts, nearest_copies, resplit, water_fill},
    },
};

/// One layer on its way through a replay.
#[derive(Debug)]
pub(super) struct LayerReplay {
    pub(super) plan: LayerPlan,
    copies: Copies,
    /// The copy that each source rank is nearest to, `[ranks][L]`.
    nearest: Vec<Vec<i32>>,
    /// Load of the experts in the last steps, the oldest first, `[W][L]`, and its sum.
    window: VecDeque<Vec<u32>>,
    sums: Vec<u64>,
    random: ChaCha8Rng,
}

/// What a step did to a layer.
#[derive(Debug)]
pub(super) struct LayerStep {
    /// Pairs of each rank.
    pub(super) rank_loads: Vec<f64>,
    /// Time of the slowest rank, in pairs of a rank of speed 1.
    pub(super) slowest: f64,
    /// The same if ranks shared the work perfectly.
    pub(super) ideal: f64,
    /// Experts with pairs on the rank that has most of them.
    pub(super) activated: usize,
}

/// What a new plan changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    /// Slots that hold another expert than before.
    pub(super) moved_slots: usize,
    /// Experts that come to each rank from others, `[ranks]`.
    pub(super) arrivals: Vec<usize>,
    /// Slowest rank and ideal under the load that the plan was made for.
    pub(super) planned: (f64, f64),
}

impl LayerReplay {
    pub(super) fn new(plan: LayerPlan, seed: u64, cluster: &Cluster) -> Result<Self, MoeError> {
        let copies = Copies::new(&plan.placement, cluster)?;
        let nearest = nearest_copies(&plan.placement, cluster)?;
        let sums = vec![0; plan.placement.num_logical()];
        let random = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self { plan, copies, nearest, window: VecDeque::new(), sums, random })
    }

    /// Serves a step: the counts `[L]` of each source rank that has tokens.
    pub(super) fn step(
        &mut self,
        counts: &[(usize, &[i32])],
        rule: CopyRule,
        config: &ReplayConfig,
    ) -> Result<LayerStep, MoeError> {
        let cluster = &config.cluster;
        let mut slot_loads = vec![0.0; cluster.slots()];
        let mut total = vec![0u32; self.sums.len()];
        for (_, counts) in counts {
            let pairs = total.iter_mut().zip(*counts);
            pairs.for_each(|(total, count)| *total = total.saturating_add_signed(*count));
        }
        match rule {
            CopyRule::Hash | CopyRule::Shares => {
                let by_share = rule == CopyRule::Shares;
                for (_, counts) in counts {
                    let (plan, random) = (&self.plan, &mut self.random);
                    draw_copies(counts, plan, by_share, random, &mut slot_loads);
                }
            }
            CopyRule::WaterFill if config.source_ranks > 1 => {
                for &(source, counts) in counts {
                    let counts: Vec<u32> = counts.iter().map(|&count| count as u32).collect();
                    let batch = Batch::OfRank(source % cluster.ranks());
                    add_quotas(&water_fill(&counts, &self.copies, batch)?, &mut slot_loads);
                }
            }
            CopyRule::WaterFill => {
                let quotas = water_fill(&total, &self.copies, Batch::Replicated)?;
                add_quotas(&quotas, &mut slot_loads);
            }
            CopyRule::Nearest => {
                for &(source, counts) in counts {
                    let copies = &self.nearest[source % cluster.ranks()];
                    add_to_copies(counts, copies, &mut slot_loads);
                }
            }
            CopyRule::FewExperts => {
                add_quotas(&few_experts(&total, &self.copies)?, &mut slot_loads);
            }
        }
        self.remember(total, config.window.get());
        Ok(LayerStep::of(&slot_loads, cluster))
    }

    fn remember(&mut self, counts: Vec<u32>, window: usize) {
        let add = |(sum, count): (&mut u64, &u32)| *sum += u64::from(*count);
        self.sums.iter_mut().zip(&counts).for_each(add);
        self.window.push_back(counts);
        if self.window.len() > window
            && let Some(oldest) = self.window.pop_front()
        {
            let subtract = |(sum, count): (&mut u64, &u32)| *sum -= u64::from(*count);
            self.sums.iter_mut().zip(&oldest).for_each(subtract);
        }
    }

    /// Load of the experts over the window, `[L]`.
    fn load(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| *sum as f64).collect()
    }

    /// Places the experts anew. A layer without load stays as it is.
    pub(super) fn rebalance(
        &mut self,
        policy: &dyn Policy,
        cluster: &Cluster,
    ) -> Result<Change, MoeError> {
        let load = self.load();
        let current = &self.plan.placement;
        let plan = match load.iter().any(|load| *load > 0.0) {
            true => policy.plan(&LayerQuery { load: &load, cluster, current })?,
            false => self.plan.clone(),
        };
        cluster.check(&plan.placement)?;
        let step = LayerStep::of(&plan.shares.slot_loads(&plan.placement, &load), cluster);
        let change = Change {
            moved_slots: moved_slots(current, &plan.placement),
            arrivals: arrivals(current, &plan.placement, cluster),
            planned: (step.slowest, step.ideal),
        };
        self.copies = Copies::new(&plan.placement, cluster)?;
        self.nearest = nearest_copies(&plan.placement, cluster)?;
        self.plan = plan;
        Ok(change)
    }

    /// Shares the load of the window among the copies that are there.
    pub(super) fn resplit(&mut self, cluster: &Cluster) -> Result<(), MoeError> {
        let load = self.load();
        if load.iter().any(|load| *load > 0.0) {
            self.plan.shares = resplit(&self.plan.placement, &load, cluster)?;
        }
        Ok(())
    }
}

impl LayerStep {
    fn of(slot_loads: &[f64], cluster: &Cluster) -> Self {
        let speed: f64 = cluster.living().map(|rank| cluster.speeds()[rank]).sum();
        let times = balance::rank_times(slot_loads, cluster);
        let active = |slots: &[f64]| slots.iter().filter(|load| **load > 0.0).count();
        Self {
            rank_loads: balance::rank_loads(slot_loads, cluster),
            slowest: times.into_iter().fold(0.0, f64::max),
            ideal: slot_loads.iter().sum::<f64>() / speed,
            activated: slot_loads
                .chunks(cluster.slots_per_rank())
                .map(active)
                .max()
                .unwrap_or_default(),
        }
    }
}

/// Slots that hold another expert than before.
fn moved_slots(before: &Placement, after: &Placement) -> usize {
    let slots = before.physical_to_logical().iter().zip(after.physical_to_logical());
    slots.filter(|(before, after)| before != after && **after >= 0).count()
}

/// Experts that come to each rank: its new ones, once each. What a rank has already it copies by
/// itself.
fn arrivals(before: &Placement, after: &Placement, cluster: &Cluster) -> Vec<usize> {
    let of_rank = |rank| {
        let slots = cluster.slots_of(rank);
        let held = &before.physical_to_logical()[slots.clone()];
        let mut new: Vec<i32> = after.physical_to_logical()[slots].to_vec();
        new.sort_unstable();
        new.dedup();
        new.into_iter().filter(|expert| *expert >= 0 && !held.contains(expert)).count()
    };
    (0..cluster.ranks()).map(of_rank).collect()
}
