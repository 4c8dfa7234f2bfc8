use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{Cluster, EplbConfig, LoadWindow, Placement, PolicyName, RecordFlag, balance};
use crate::MoeError;

/// What a step of the model computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// Tokens of requests.
    Real,
    /// Nothing but padding, because another rank has tokens. Its load does not count; its step does,
    /// so that all ranks rebalance in the same one.
    Dummy,
    /// A trial run that measures memory. Neither counts.
    Profile,
}

/// How even the ranks were in one step, over all layers: the published figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Balancedness {
    /// Steps since the last rebalance.
    pub step: usize,
    /// Tokens of the mean rank, summed over layers.
    pub avg_tokens: f64,
    /// Tokens of the most loaded rank of each layer, summed over layers.
    pub max_tokens: f64,
    /// `avg_tokens / max_tokens`: 1 is perfect; 0 without tokens.
    pub balancedness: f64,
    /// Steps from this one to the next rebalance; 0 while the last one is still moving experts.
    pub steps_until_rebalance: usize,
    /// Tokens of each rank, `[layers][ranks]`.
    pub rank_loads: Vec<Vec<f64>>,
}

impl fmt::Display for Balancedness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, avg_tokens, max_tokens, balancedness, steps_until_rebalance, .. } = self;
        write!(
            formatter,
            "EPLB step {step}: avg_tokens={avg_tokens:.2}, max_tokens={max_tokens:.0}, \
             balancedness={balancedness:.4}, steps until the next rebalance: {steps_until_rebalance}"
        )
    }
}

/// What follows from a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutcome {
    /// Whether the next step records its load. The controller's [`RecordFlag`] says the same.
    pub record_next: bool,
    /// How even this step was, when it is one to log.
    pub balancedness: Option<Balancedness>,
    /// Load of the experts, `[layers][L]`: place them anew. With `use_async`, call
    /// [`EplbController::finish_rebalance`] when all have moved. Where every rank has a controller of
    /// its own and counts what it sends, add the loads of all ranks first.
    pub rebalance: Option<Vec<Vec<f64>>>,
    /// The same load: only compute the shares of the copies anew.
    pub resplit: Option<Vec<Vec<f64>>>,
}

/// Decides when load is recorded, logged and balanced, by the steps of the model.
///
/// A call of [`EplbController::step`] does, in this order, as published:
/// 1. A dummy step's load is dropped.
/// 2. A profile step ends here.
/// 3. If this is a step to log, how even the ranks were.
/// 4. If this step is one to record, its load enters the window.
/// 5. The step counts, also a dummy one.
/// 6. After `step_interval` steps it is time to rebalance: the count begins again. While an
///    asynchronous rebalance is still moving experts, the count goes on instead and the next
///    rebalance follows in the step after it ends.
/// 7. Whether the next step records.
///
/// The count begins at three quarters of the interval, so that the first rebalance comes early.
#[derive(Debug)]
pub struct EplbController {
    config: EplbConfig,
    cluster: Cluster,
    placements: Vec<Placement>,
    window: LoadWindow,
    flag: RecordFlag,
    steps_since_rebalance: usize,
    steps_since_resplit: usize,
    moving_since: Option<Instant>,
}

impl EplbController {
    /// A controller of layers that start at `placements`, `[layers]`.
    ///
    /// # Errors
    /// [`MoeError`] for a configuration out of range, no layers, layers that differ in the number of
    /// experts, or a placement that is not of these ranks.
    pub fn new(
        config: EplbConfig,
        cluster: Cluster,
        placements: Vec<Placement>,
    ) -> Result<Self, MoeError> {
        config.check()?;
        let num_logical = placements.first().map_or(0, Placement::num_logical);
        for placement in &placements {
            MoeError::check_shape("experts of a layer", num_logical, placement.num_logical())?;
            cluster.check(placement)?;
        }
        let window = LoadWindow::new(config.window_size, placements.len(), num_logical)?;
        let interval = config.step_interval;
        let controller = Self {
            config,
            cluster,
            placements,
            window,
            flag: RecordFlag::default(),
            steps_since_rebalance: interval - interval / 4,
            steps_since_resplit: 0,
            moving_since: None,
        };
        // vLLM records the first step in any case. Where that is outside the window, its load would
        // be added to that of the first step inside.
        controller.flag.set(controller.should_record());
        Ok(controller)
    }

    /// Ends a step. `slot_loads` is what it recorded, `[layers][P]`, over all ranks; it is 0 after.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the load is not `[layers][P]`; the step does not count then.
    pub fn step(
        &mut self,
        kind: StepKind,
        slot_loads: &mut [Vec<i32>],
    ) -> Result<StepOutcome, MoeError> {
        self.check(slot_loads)?;
        if kind != StepKind::Real {
            clear(slot_loads);
        }
        if kind == StepKind::Profile {
            return Ok(StepOutcome { record_next: self.flag.is_on(), ..StepOutcome::default() });
        }
        let balancedness = self.is_logged().then(|| self.balancedness(slot_loads));
        if kind == StepKind::Real && self.should_record() {
            self.window.record(slot_loads, &self.placements)?;
        }
        clear(slot_loads);
        self.steps_since_rebalance += 1;
        self.steps_since_resplit += 1;
        let rebalance = self.rebalance_if_due();
        let resplit = self.resplit_if_due();
        let record_next = self.should_record();
        self.flag.set(record_next);
        Ok(StepOutcome { record_next, balancedness, rebalance, resplit })
    }

    /// Puts the experts of a layer where they are now. Load of earlier steps stays credited to the
    /// experts that had it.
    ///
    /// # Errors
    /// [`MoeError`] when there is no such layer, or the placement is of other experts or ranks; the
    /// layer stays as it was.
    pub fn commit(&mut self, layer: usize, next: Placement) -> Result<&Placement, MoeError> {
        self.cluster.check(&next)?;
        let layers = self.placements.len();
        let Some(current) = self.placements.get_mut(layer) else {
            return Err(MoeError::config("layer", layer, format!("below {layers}")));
        };
        *current = current.successor(next)?;
        Ok(current)
    }

    /// All experts of the last rebalance have moved, or it was given up.
    pub fn finish_rebalance(&mut self) {
        self.moving_since = None;
    }

    /// Whether experts of the last rebalance are still moving.
    pub fn is_moving(&self) -> bool {
        self.moving_since.is_some()
    }

    /// How long they have been moving, once that is longer than the configuration allows: then
    /// something is stuck, and without a word there would never be another rebalance.
    pub fn stuck_for(&self) -> Option<Duration> {
        let moving = self.moving_since.map(|since| since.elapsed());
        moving.filter(|time| *time >= self.config.move_timeout())
    }

    /// The switch that layers record by.
    pub fn record_flag(&self) -> &RecordFlag {
        &self.flag
    }

    /// What was configured.
    pub fn config(&self) -> &EplbConfig {
        &self.config
    }

    /// The ranks.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where the experts of each layer are, `[layers]`.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// The load so far.
    pub fn window(&self) -> &LoadWindow {
        &self.window
    }

    /// Steps since the last rebalance, or what the count began at.
    pub fn steps_since_rebalance(&self) -> usize {
        self.steps_since_rebalance
    }

    fn check(&self, slot_loads: &[Vec<i32>]) -> Result<(), MoeError> {
        MoeError::check_shape("layers of the load", self.placements.len(), slot_loads.len())?;
        let slots = self.cluster.slots();
        slot_loads
            .iter()
            .try_for_each(|loads| MoeError::check_shape("load of a layer", slots, loads.len()))
    }

    fn is_logged(&self) -> bool {
        let interval = self.config.log_balancedness_interval;
        self.config.log_balancedness && self.steps_since_rebalance.is_multiple_of(interval)
    }

    fn balancedness(&self, slot_loads: &[Vec<i32>]) -> Balancedness {
        let of_layer = |loads: &Vec<i32>| {
            let loads: Vec<f64> = loads.iter().map(|&load| f64::from(load)).collect();
            balance::rank_loads(&loads, &self.cluster)
        };
        let rank_loads: Vec<Vec<f64>> = slot_loads.iter().map(of_layer).collect();
        let (avg_tokens, max_tokens) = balance::mean_and_max(&rank_loads);
        let interval = self.config.step_interval;
        Balancedness {
            step: self.steps_since_rebalance,
            avg_tokens,
            max_tokens,
            balancedness: balance::balancedness(&rank_loads),
            steps_until_rebalance: interval.saturating_sub(self.steps_since_rebalance),
            rank_loads,
        }
    }

    /// Whether the step after as many as have been counted is one to record: the window ends with
    /// the next rebalance, the next re-split or the next line of the log.
    fn should_record(&self) -> bool {
        let window = self.config.window_size;
        let is_near = |step: usize, interval: usize| interval.saturating_sub(step) <= window;
        is_near(self.steps_since_rebalance, self.config.step_interval)
            || (self.config.resplit_interval)
                .is_some_and(|interval| is_near(self.steps_since_resplit, interval))
            || self.config.log_balancedness && {
                let interval = self.config.log_balancedness_interval;
                (interval - self.steps_since_rebalance % interval) % interval <= window
            }
    }

    fn rebalance_if_due(&mut self) -> Option<Vec<Vec<f64>>> {
        if self.steps_since_rebalance < self.config.step_interval || self.is_moving() {
            return None;
        }
        self.steps_since_rebalance = 0;
        if self.config.policy == PolicyName::None {
            return None;
        }
        // A rebalance computes the shares too.
        self.steps_since_resplit = 0;
        self.moving_since = self.config.use_async.then(Instant::now);
        Some(self.window.logical_loads())
    }

    /// Shares of copies that are about to move would be void, so none are computed meanwhile.
    fn resplit_if_due(&mut self) -> Option<Vec<Vec<f64>>> {
        let interval = self.config.resplit_interval?;
        if self.steps_since_resplit < interval || self.is_moving() {
            return None;
        }
        self.steps_since_resplit = 0;
        Some(self.window.logical_loads())
    }
}

fn clear(slot_loads: &mut [Vec<i32>]) {
    slot_loads.iter_mut().for_each(|loads| loads.fill(0));
}

#[cfg(test)]
mod tests;
