use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::{
    CopyRule, Replay, StepReport, WindowReport,
    layer::{Change, LayerReplay, LayerStep},
    report::LayerMean,
};
use crate::{
    MoeError,
    eplb::{
        Cluster, LayerPlan, Placement, Policy,
        trace::{TraceError, TraceRecord},
    },
};

/// Who places experts and which copy serves a token.
#[derive(Debug, Clone, Copy)]
pub struct Strategy<'a> {
    /// Who places; `None`: experts and shares stay as they are at the start.
    pub policy: Option<&'a dyn Policy>,
    /// Which copy serves.
    pub rule: CopyRule,
}

/// What load is replayed on.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// The ranks. Slots beyond the number of experts are redundant.
    pub cluster: Cluster,
    /// Steps whose load a plan sees.
    pub window: NonZeroUsize,
    /// Steps between plans. The first one comes after a quarter of them, as in a server.
    pub interval: NonZeroUsize,
    /// Steps between two computations of the shares, without moves; `None`: only with a plan.
    pub resplit_interval: Option<NonZeroUsize>,
    /// Ranks that tokens come from. 1: all ranks see the same tokens.
    pub source_ranks: usize,
    /// Microseconds of a rank of speed 1 for one pair of token and expert.
    pub us_per_token: f64,
    /// Bytes of the weights of one expert.
    pub bytes_per_expert: u64,
    /// Bytes that a rank receives in a second while experts move.
    pub bytes_per_second: f64,
    /// Plans to begin with, one a layer; empty: every expert once, then the first ones again.
    pub initial: Vec<LayerPlan>,
    /// Seed of the draws that stand for hashes of tokens.
    pub seed: u64,
}

impl ReplayConfig {
    /// One pair of an expert of 3072 x 1536 in FP8 takes an H200 about 0.05 us in large batches:
    /// twice the 0.026 us of `docs/gpu-layer.md` for half of it (m2.5-tp2-fp8, 8192 tokens).
    pub const US_PER_TOKEN: f64 = 0.05;
    /// That expert: three matrices of 3072 x 1536 bytes.
    pub const BYTES_PER_EXPERT: u64 = 3 * 3072 * 1536;
    /// One network card of 400 Gbit/s for each rank.
    pub const BYTES_PER_SECOND: f64 = 50e9;

    /// Plans every 100 steps of the last 100 steps, and the costs above.
    pub fn new(cluster: Cluster) -> Self {
        let hundred = NonZeroUsize::new(100).expect("this is a bug: 100 is 0");
        Self {
            source_ranks: cluster.ranks(),
            cluster,
            window: hundred,
            interval: hundred,
            resplit_interval: None,
            us_per_token: Self::US_PER_TOKEN,
            bytes_per_expert: Self::BYTES_PER_EXPERT,
            bytes_per_second: Self::BYTES_PER_SECOND,
            initial: Vec::new(),
            seed: 0,
        }
    }

    /// Steps before the first plan.
    pub fn first_plan(&self) -> usize {
        (self.interval.get() / 4).max(1)
    }

    fn check(&self) -> Result<(), MoeError> {
        for (field, value, least) in [
            ("us_per_token", self.us_per_token, 0.0),
            ("bytes_per_second", self.bytes_per_second, f64::MIN_POSITIVE),
        ] {
            if !(value >= least && value.is_finite()) {
                let allowed = if least > 0.0 { "above 0" } else { "0 or more" };
                return Err(MoeError::config(field, value, allowed));
            }
        }
        Ok(())
    }

    /// Layers as they begin.
    fn layers(&self, layers: usize, experts: usize) -> Result<Vec<LayerReplay>, MoeError> {
        let redundant = self.cluster.slots().checked_sub(experts).ok_or_else(|| {
            let allowed = format!("the number of experts, {experts}, or more");
            MoeError::config("slots of all ranks", self.cluster.slots(), allowed)
        })?;
        let start = |layer: usize| match self.initial.get(layer) {
            Some(plan) => {
                MoeError::check_shape("experts of a plan", experts, plan.placement.num_logical())?;
                Ok(plan.clone())
            }
            None if self.initial.is_empty() => {
                Placement::initial(experts, redundant).map(LayerPlan::equal)
            }
            None => Err(MoeError::check_shape("layers of plans", layers, self.initial.len())
                .expect_err("this is a bug: a layer has no plan")),
        };
        // Layers draw from streams of their own.
        let of_layer = |layer: usize| {
            let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(layer as u64);
            LayerReplay::new(start(layer)?, seed, &self.cluster)
        };
        (0..layers).map(of_layer).collect()
    }
}

/// Replays steps: each is the records of its source ranks, as [`by_step`](super::by_step) and
/// [`Synthetic`](super::Synthetic) make them.
///
/// # Errors
/// What reading a step gave; [`TraceError::Input`] for steps of different layers or experts, a
/// cluster too small for the experts, or a policy that fails.
pub fn replay(
    steps: impl Iterator<Item = Result<Vec<TraceRecord>, TraceError>>,
    strategy: &Strategy<'_>,
    config: &ReplayConfig,
) -> Result<Replay, TraceError> {
    config.check()?;
    let mut run = Run::new(config);
    for records in steps {
        let records = records?;
        if run.layers.is_empty() {
            let layers = records.first().map_or(&[][..], |record| &record.counts);
            run.begin(layers.len(), layers.first().map_or(0, Vec::len))?;
        }
        run.step(&records, strategy)?;
    }
    Ok(run.end())
}

/// A replay on its way.
struct Run<'a> {
    config: &'a ReplayConfig,
    layers: Vec<LayerReplay>,
    since_plan: usize,
    /// What the plan in force cost, until its first step reports it.
    pending: Option<Change>,
    before: LayerMean,
    after: LayerMean,
    replay: Replay,
}

impl<'a> Run<'a> {
    fn new(config: &'a ReplayConfig) -> Self {
        let mean = LayerMean::default();
        let replay = Replay::default();
        let (layers, before, after) = (Vec::new(), mean.clone(), mean);
        Self { config, layers, since_plan: 0, pending: None, before, after, replay }
    }

    fn begin(&mut self, layers: usize, experts: usize) -> Result<(), MoeError> {
        self.layers = self.config.layers(layers, experts)?;
        self.replay.windows.push(WindowReport::default());
        Ok(())
    }

    fn step(&mut self, records: &[TraceRecord], strategy: &Strategy<'_>) -> Result<(), MoeError> {
        self.plan_if_due(strategy)?;
        let experts = self.layers.first().map_or(0, |layer| layer.plan.placement.num_logical());
        for record in records {
            MoeError::check_shape("layers of a step", self.layers.len(), record.counts.len())?;
            for counts in &record.counts {
                MoeError::check_shape("experts of a step", experts, counts.len())?;
            }
        }
        let config = self.config;
        let serve = |(index, layer): (usize, &mut LayerReplay)| {
            let of_layer = |record| of_source(record, index);
            let counts: Vec<(usize, &[i32])> = records.iter().map(of_layer).collect();
            layer.step(&counts, strategy.rule, config)
        };
        let layers = self.layers.par_iter_mut().enumerate().map(serve);
        let layers = layers.collect::<Result<Vec<LayerStep>, MoeError>>()?;
        self.report(records.first().map_or(0, |record| record.step), &layers);
        self.since_plan += 1;
        Ok(())
    }

    /// Plans and splits before a step, as a server does after the one before.
    fn plan_if_due(&mut self, strategy: &Strategy<'_>) -> Result<(), MoeError> {
        let served = self.replay.steps.len();
        let Some(policy) = strategy.policy else { return Ok(()) };
        let config = self.config;
        let first = config.first_plan();
        if served >= first && (served - first).is_multiple_of(config.interval.get()) {
            let plan = |layer: &mut LayerReplay| layer.rebalance(policy, &config.cluster);
            let changes = self.layers.par_iter_mut().map(plan);
            let change = sum(changes.collect::<Result<Vec<Change>, MoeError>>()?);
            self.replay.windows.push(WindowReport::of(&change, config));
            self.pending = Some(change);
            self.since_plan = 0;
        } else if let Some(interval) = config.resplit_interval
            && served >= first
            && self.since_plan.is_multiple_of(interval.get())
        {
            self.layers.par_iter_mut().try_for_each(|layer| layer.resplit(&config.cluster))?;
        }
        Ok(())
    }

    fn report(&mut self, step: u64, layers: &[LayerStep]) {
        let mut report = StepReport::of(step, layers, self.config.us_per_token);
        report.plan_age = self.since_plan;
        if let Some(change) = self.pending.take() {
            report.moved_slots = change.moved_slots;
            report.moved_bytes =
                change.arrivals.iter().sum::<usize>() as u64 * self.config.bytes_per_expert;
        }
        let replay = &mut self.replay;
        if replay.watched.is_empty() {
            replay.watched_layer = most_uneven(layers);
        }
        let watched = &layers[replay.watched_layer].rank_loads;
        replay.watched.push(watched.iter().map(|load| *load as f32).collect());
        let first = replay.steps.len() < self.config.first_plan();
        let mean = if first { &mut self.before } else { &mut self.after };
        mean.add(layers);
        if let Some(window) = replay.windows.last_mut() {
            window.add(&report);
        }
        replay.steps.push(report);
    }

    fn end(self) -> Replay {
        Replay {
            settled: self.config.first_plan().min(self.replay.steps.len()),
            before: self.before.loads(),
            after: self.after.loads(),
            plans: self.layers.into_iter().map(|layer| layer.plan).collect(),
            ..self.replay
        }
    }
}

/// Where the tokens of a record came from, and their experts in a layer.
fn of_source(record: &TraceRecord, layer: usize) -> (usize, &[i32]) {
    (record.source_rank, &record.counts[layer])
}

fn most_uneven(layers: &[LayerStep]) -> usize {
    let lost = |layer: &LayerStep| layer.slowest - layer.ideal;
    let by_loss = |a: &usize, b: &usize| lost(&layers[*a]).total_cmp(&lost(&layers[*b]));
    (0..layers.len()).max_by(by_loss).unwrap_or_default()
}

/// One change of all layers.
fn sum(changes: Vec<Change>) -> Change {
    let ranks = changes.first().map_or(0, |change| change.arrivals.len());
    let none = Change { moved_slots: 0, arrivals: vec![0; ranks], planned: (0.0, 0.0) };
    changes.into_iter().fold(none, |mut sum, change| {
        sum.moved_slots += change.moved_slots;
        sum.arrivals.iter_mut().zip(change.arrivals).for_each(|(sum, more)| *sum += more);
        sum.planned.0 += change.planned.0;
        sum.planned.1 += change.planned.1;
        sum
    })
}
