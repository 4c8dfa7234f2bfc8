use serde::Serialize;

use super::{
    ReplayConfig,
    layer::{Change, LayerStep},
};
use crate::eplb::LayerPlan;

/// What a step cost. Maxima are taken over ranks first, layer by layer; sums come later.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StepReport {
    /// Number of the step.
    pub step: u64,
    /// Pairs of the slowest rank of each layer (divided by its speed), summed over layers.
    pub max_tokens: f64,
    /// The same if ranks shared every layer perfectly.
    pub avg_tokens: f64,
    /// Slowest rank over the perfect one in the worst layer; 1 without tokens.
    pub imbalance_worst: f64,
    /// Microseconds in which ranks wait for the slowest, summed over layers.
    pub lost_us: f64,
    /// Experts with tokens on the rank that has most of them, mean over layers.
    pub activated_experts: f64,
    /// Steps that the plan has served before this one.
    pub plan_age: usize,
    /// Slots that got another expert before this step, over all layers.
    pub moved_slots: usize,
    /// Bytes of experts that came to other ranks before this step.
    pub moved_bytes: u64,
}

impl StepReport {
    pub(super) fn of(step: u64, layers: &[LayerStep], us_per_token: f64) -> Self {
        let max_tokens: f64 = layers.iter().map(|layer| layer.slowest).sum();
        let avg_tokens: f64 = layers.iter().map(|layer| layer.ideal).sum();
        let activated: usize = layers.iter().map(|layer| layer.activated).sum();
        let of_layer = |layer: &LayerStep| ratio(layer.slowest, layer.ideal);
        Self {
            step,
            max_tokens,
            avg_tokens,
            imbalance_worst: layers.iter().map(of_layer).fold(1.0, f64::max),
            lost_us: (max_tokens - avg_tokens) * us_per_token,
            activated_experts: activated as f64 / layers.len().max(1) as f64,
            ..Self::default()
        }
    }

    /// Time of the step over the time with perfect balance, in pairs; 1 without tokens.
    pub fn imbalance(&self) -> f64 {
        ratio(self.max_tokens, self.avg_tokens)
    }
}

/// The steps that one plan served. The first window is that of the placement to begin with.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WindowReport {
    /// Number of its first step.
    pub first_step: u64,
    /// Its steps.
    pub steps: usize,
    /// Imbalance that the plan would have had on the load that it was made for; 0 without a plan.
    pub planned_imbalance: f64,
    /// Imbalance that it had: the time of its steps over that with perfect balance, in pairs.
    pub imbalance: f64,
    /// The same of its worst layer in its worst step.
    pub imbalance_worst: f64,
    /// Microseconds lost.
    pub lost_us: f64,
    /// Slots that the plan changed, over all layers.
    pub moved_slots: usize,
    /// Bytes that came to other ranks for it.
    pub moved_bytes: u64,
    /// Microseconds in which the rank that gets most receives its share.
    pub move_us: f64,
    /// Pairs of the slowest rank of each layer and step (divided by its speed), added up.
    pub max_tokens: f64,
    /// The same if ranks shared every layer and step perfectly.
    pub avg_tokens: f64,
}

impl WindowReport {
    pub(super) fn of(change: &Change, config: &ReplayConfig) -> Self {
        let bytes = |experts: usize| experts as u64 * config.bytes_per_expert;
        let most = change.arrivals.iter().copied().max().unwrap_or_default();
        Self {
            planned_imbalance: ratio(change.planned.0, change.planned.1),
            moved_slots: change.moved_slots,
            moved_bytes: bytes(change.arrivals.iter().sum()),
            move_us: bytes(most) as f64 / config.bytes_per_second * 1e6,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, step: &StepReport) {
        if self.steps == 0 {
            self.first_step = step.step;
        }
        self.steps += 1;
        self.max_tokens += step.max_tokens;
        self.avg_tokens += step.avg_tokens;
        self.imbalance = ratio(self.max_tokens, self.avg_tokens);
        self.imbalance_worst = self.imbalance_worst.max(step.imbalance_worst);
        self.lost_us += step.lost_us;
    }
}

/// Everything that a replay found.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// One report a step.
    pub steps: Vec<StepReport>,
    /// One report a plan.
    pub windows: Vec<WindowReport>,
    /// Steps before the first plan can be in force: the same for every policy.
    pub settled: usize,
    /// Pairs of each rank before the first plan, mean over steps, `[layers][ranks]`.
    pub before: Vec<Vec<f64>>,
    /// The same after it.
    pub after: Vec<Vec<f64>>,
    /// The layer that was most uneven in the first step.
    pub watched_layer: usize,
    /// Pairs of each rank in that layer, `[steps][ranks]`.
    pub watched: Vec<Vec<f32>>,
    /// The plans in force at the end, one a layer.
    pub plans: Vec<LayerPlan>,
}

/// A replay in a few numbers, over the steps after the first plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Steps.
    pub steps: usize,
    /// Time over the time with perfect balance, in pairs.
    pub imbalance: f64,
    /// The 99th percentile of the imbalance of a step.
    pub imbalance_p99: f64,
    /// The worst layer of the worst step.
    pub imbalance_worst: f64,
    /// What plans promised on the load that they were made for, mean over plans; 0 without plans.
    pub planned_imbalance: f64,
    /// Microseconds lost in a step.
    pub lost_us_per_step: f64,
    /// Experts with tokens on the rank that has most of them, mean over layers and steps.
    pub activated_experts: f64,
    /// Plans made.
    pub plans: usize,
    /// Slots changed by a plan and layer.
    pub moved_slots_per_plan: f64,
    /// Bytes that came to other ranks, over all plans and layers.
    pub moved_bytes: u64,
    /// Microseconds of all moves, each as long as the rank that receives most.
    pub move_us: f64,
}

impl Replay {
    /// The steps after the first plan in a few numbers. A replay that ends before has none.
    pub fn summary(&self) -> Summary {
        let steps = &self.steps[self.settled..];
        let plans = self.windows.get(1..).unwrap_or_default();
        let sum = |of: fn(&StepReport) -> f64| steps.iter().map(of).sum::<f64>();
        let count = steps.len().max(1) as f64;
        let mut imbalances: Vec<f64> = steps.iter().map(StepReport::imbalance).collect();
        imbalances.sort_by(f64::total_cmp);
        let p99 = (imbalances.len() * 99).div_ceil(100).saturating_sub(1);
        let of_plans = (plans.len() * self.plans.len()).max(1) as f64;
        let moved: usize = plans.iter().map(|window| window.moved_slots).sum();
        let planned: f64 = plans.iter().map(|window| window.planned_imbalance).sum();
        Summary {
            steps: steps.len(),
            imbalance: ratio(sum(|step| step.max_tokens), sum(|step| step.avg_tokens)),
            imbalance_p99: imbalances.get(p99).copied().unwrap_or(1.0),
            imbalance_worst: steps.iter().map(|step| step.imbalance_worst).fold(1.0, f64::max),
            planned_imbalance: planned / plans.len().max(1) as f64,
            lost_us_per_step: sum(|step| step.lost_us) / count,
            activated_experts: sum(|step| step.activated_experts) / count,
            plans: plans.len(),
            moved_slots_per_plan: moved as f64 / of_plans,
            moved_bytes: plans.iter().map(|window| window.moved_bytes).sum(),
            // An empty sum of floating-point numbers is -0.
            move_us: plans.iter().map(|window| window.move_us).sum::<f64>() + 0.0,
        }
    }
}

/// Whether redundant slots earn what they cost, under one strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redundancy {
    /// Microseconds that a step loses less.
    pub saved_us_per_step: f64,
    /// Microseconds of moves that a step pays more, if steps wait for moves.
    pub move_us_per_step: f64,
    /// Bytes of redundant slots on each rank, over all layers.
    pub bytes_per_rank: u64,
    /// Whether a step saves more than it pays. Memory has a price of its own.
    pub pays: bool,
}

impl Redundancy {
    /// Compares replays of the same steps with `slots` redundant ones on each rank and layer, and
    /// without.
    pub fn of(with: &Replay, without: &Replay, slots: usize, bytes_per_expert: u64) -> Self {
        let [with_summary, without_summary] = [with.summary(), without.summary()];
        let per_step = |summary: &Summary| summary.move_us / summary.steps.max(1) as f64;
        let saved = without_summary.lost_us_per_step - with_summary.lost_us_per_step;
        let paid = per_step(&with_summary) - per_step(&without_summary);
        Self {
            saved_us_per_step: saved,
            move_us_per_step: paid,
            bytes_per_rank: (slots * with.plans.len()) as u64 * bytes_per_expert,
            pays: saved > paid.max(0.0),
        }
    }
}

/// Loads of ranks summed over steps.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerMean {
    sums: Vec<Vec<f64>>,
    steps: usize,
}

impl LayerMean {
    pub(super) fn add(&mut self, layers: &[LayerStep]) {
        self.steps += 1;
        self.sums.resize_with(layers.len(), Vec::new);
        for (sums, layer) in self.sums.iter_mut().zip(layers) {
            sums.resize(layer.rank_loads.len(), 0.0);
            sums.iter_mut().zip(&layer.rank_loads).for_each(|(sum, load)| *sum += load);
        }
    }

    /// Mean over steps, `[layers][ranks]`.
    pub(super) fn loads(self) -> Vec<Vec<f64>> {
        let steps = self.steps.max(1) as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| sum / steps).collect();
        self.sums.into_iter().map(mean).collect()
    }
}

/// `slowest / ideal`, 1 without load.
fn ratio(slowest: f64, ideal: f64) -> f64 {
    if ideal > 0.0 { slowest / ideal } else { 1.0 }
}
