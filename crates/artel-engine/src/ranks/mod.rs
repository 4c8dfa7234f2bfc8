//! Ranks that compute the experts of a model, and what keeps their load even between the steps of an
//! engine.

mod balancer;
mod metrics;
mod planner;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use artel_moe::dispatch::{ExpertParallel, MoveEvent, RankGroup};
use artel_moe::eplb::{Cluster, EplbConfig, LayerPlan, Policy};
use balancer::{Balancer, Decision};
pub use metrics::RankMetrics;

use crate::Result;

/// How often arrived experts are looked for where steps wait for them.
const POLL: Duration = Duration::from_micros(200);
/// Time that the experts of a lost rank may take to their new places.
const RECOVERY: Duration = Duration::from_secs(60);

/// Ranks with the experts of all layers of a model. Every step of the model is followed by
/// [`after_step`](Self::after_step); weights travel beside steps, maps change between them.
#[derive(Debug)]
pub struct ExpertRanks {
    group: RankGroup,
    balancer: Option<Balancer>,
    /// Plans of layers that wait for their turn.
    waiting: VecDeque<(usize, LayerPlan)>,
    /// The layer that is moving.
    moving: Option<usize>,
    metrics: RankMetrics,
}

impl ExpertRanks {
    /// Ranks whose experts stay where they are.
    pub fn new(group: RankGroup) -> Self {
        let plans = group.layers().iter().map(ExpertParallel::plan).collect();
        let metrics = RankMetrics::new(group.cluster().clone(), plans);
        Self { group, balancer: None, waiting: VecDeque::new(), moving: None, metrics }
    }

    /// The same, placed anew by their load as `config` says.
    ///
    /// # Errors
    /// When a setting makes no sense, or there is no thread to have.
    pub fn balanced(self, config: EplbConfig) -> Result<Self> {
        let policy = config.policy(1).into();
        self.balanced_by(config, policy)
    }

    /// The same with another policy than those that have names.
    ///
    /// # Errors
    /// As [`balanced`](Self::balanced).
    pub fn balanced_by(mut self, config: EplbConfig, policy: Arc<dyn Policy>) -> Result<Self> {
        let placements = self.metrics.plans.iter().map(|plan| plan.placement.clone()).collect();
        let balancer = Balancer::new(config, policy, self.cluster().clone(), placements)?;
        self.group.follow(balancer.record_flag());
        self.balancer = Some(balancer);
        self.metrics.is_balanced = true;
        Ok(self)
    }

    /// The ranks.
    pub fn cluster(&self) -> &Cluster {
        self.group.cluster()
    }

    /// Where experts are and what has moved.
    pub fn metrics(&self) -> &RankMetrics {
        &self.metrics
    }

    /// Ends a step of the model: counts its load and moves experts on. Balancing that fails leaves
    /// experts where they are.
    ///
    /// # Errors
    /// When a rank is gone, so that no further step can be computed.
    pub fn after_step(&mut self) -> Result<()> {
        let decision = match self.end_step() {
            Ok(None) => return Ok(()),
            Ok(Some(decision)) => decision,
            Err(why) => {
                tracing::error!("experts are not balanced any more: {why}");
                self.balancer = None;
                return self.advance_moves();
            }
        };
        self.metrics.rebalances += u64::from(decision.plans.is_some());
        self.waiting.extend(decision.plans.into_iter().flatten().enumerate());
        if decision.moves_beside_steps { self.advance_moves() } else { self.finish_moves() }
    }

    /// Goes on without a rank that is gone: the others get the experts that only it had.
    ///
    /// # Errors
    /// When the others have too few slots, or one of them is gone too.
    pub fn recover(&mut self, rank: usize) -> Result<()> {
        self.group.recover(&[rank], RECOVERY)?;
        self.waiting.clear();
        self.moving = None;
        let cluster = self.group.living();
        let plans: Vec<LayerPlan> = self.group.layers().iter().map(ExpertParallel::plan).collect();
        if let Some(balancer) = self.balancer.take() {
            let placements = plans.iter().map(|plan| plan.placement.clone()).collect();
            let balancer = balancer.restarted(cluster.clone(), placements)?;
            self.group.follow(balancer.record_flag());
            self.balancer = Some(balancer);
        }
        self.metrics.lost_ranks += 1;
        self.metrics.cluster = Arc::new(cluster);
        self.metrics.plans = Arc::new(plans);
        Ok(())
    }

    /// Hands the load of the step over, while slots mean what they meant in it.
    fn end_step(&mut self) -> Result<Option<Decision>> {
        let Some(balancer) = &mut self.balancer else { return Ok(None) };
        let slots = self.group.cluster().slots();
        let load = |layer: &ExpertParallel| match balancer.record_flag().is_on() {
            true => layer.take_load(),
            false => vec![0; slots],
        };
        let mut loads: Vec<Vec<i32>> = self.group.layers().iter().map(load).collect();
        let decision = balancer.end_step(&mut loads)?;
        self.metrics.steps_since_rebalance = balancer.steps_since_rebalance();
        if let Some(balancedness) = &decision.balancedness {
            tracing::info!("{balancedness}");
            self.metrics.balancedness = Some(balancedness.clone());
        }
        Ok(Some(decision))
    }

    /// Waits until nothing moves any more.
    fn finish_moves(&mut self) -> Result<()> {
        self.advance_moves()?;
        while self.moving.is_some() {
            thread::sleep(POLL);
            self.advance_moves()?;
        }
        Ok(())
    }

    /// Switches the layer whose experts have arrived, and begins with the next one.
    fn advance_moves(&mut self) -> Result<()> {
        let mut events = self.group.poll();
        if self.group.switch_ready()? > 0 {
            self.moving.map_or(Ok(()), |layer| self.note_placement(layer))?;
            events.extend(self.group.poll());
        }
        for event in events {
            self.take_in(event)?;
        }
        if self.moving.is_none()
            && let Some((layer, plan)) = self.waiting.pop_front()
        {
            match self.group.begin_move(layer, plan) {
                Ok(()) => self.moving = Some(layer),
                Err(why) => self.take_in(MoveEvent::Aborted { layer, why })?,
            }
        }
        self.metrics.layers_to_move = self.waiting.len() + usize::from(self.moving.is_some());
        if self.metrics.layers_to_move == 0
            && let Some(balancer) = &mut self.balancer
        {
            balancer.finish_rebalance();
        }
        Ok(())
    }

    fn take_in(&mut self, event: MoveEvent) -> Result<()> {
        let metrics = &mut self.metrics;
        let layer = match event {
            MoveEvent::Moved { layer, slots, bytes, took } => {
                metrics.moves += 1;
                metrics.moved_slots += slots as u64;
                metrics.moved_bytes += bytes as u64;
                metrics.move_time += took;
                layer
            }
            MoveEvent::Aborted { layer, why } => {
                tracing::error!("experts of layer {layer} stay where they were: {why}");
                metrics.failed_moves += 1;
                layer
            }
        };
        self.moving = None;
        self.note_placement(layer)
    }

    /// Counts load by what slots of a layer hold now.
    fn note_placement(&mut self, layer: usize) -> Result<()> {
        let plan = self.group.layer(layer)?.plan();
        if let Some(balancer) = &mut self.balancer {
            balancer.commit(layer, plan.placement.clone())?;
        }
        Arc::make_mut(&mut self.metrics.plans)[layer] = plan;
        Ok(())
    }
}
