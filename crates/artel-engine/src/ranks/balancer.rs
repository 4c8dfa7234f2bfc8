use std::sync::Arc;

use artel_moe::eplb::policy::Resplit;
use artel_moe::eplb::{
    Balancedness, Cluster, EplbConfig, EplbController, LayerPlan, Placement, Policy, RecordFlag,
    StepKind,
};

use super::planner::{Planner, Question};
use crate::Result;

/// Decides when and how experts are placed anew.
#[derive(Debug)]
pub(super) struct Balancer {
    controller: EplbController,
    policy: Arc<dyn Policy>,
    resplit: Arc<dyn Policy>,
    planner: Planner,
}

/// What follows from a step.
#[derive(Debug)]
pub(super) struct Decision {
    /// How even the step was, when that is to be logged.
    pub(super) balancedness: Option<Balancedness>,
    /// Where experts should be, `[layers]`.
    pub(super) plans: Option<Vec<LayerPlan>>,
    /// Whether steps go on while experts move.
    pub(super) moves_beside_steps: bool,
}

impl Balancer {
    pub(super) fn new(
        config: EplbConfig,
        policy: Arc<dyn Policy>,
        cluster: Cluster,
        placements: Vec<Placement>,
    ) -> Result<Self> {
        Ok(Self {
            policy,
            resplit: Arc::new(Resplit),
            planner: Planner::start(cluster.clone())?,
            controller: EplbController::new(config, cluster, placements)?,
        })
    }

    /// The same for other ranks, as from the beginning.
    pub(super) fn restarted(self, cluster: Cluster, placements: Vec<Placement>) -> Result<Self> {
        Self::new(self.controller.config().clone(), self.policy, cluster, placements)
    }

    /// Ends a step that had these loads, `[layers][P]`, if it was recorded.
    pub(super) fn end_step(&mut self, slot_loads: &mut [Vec<i32>]) -> Result<Decision> {
        let outcome = self.controller.step(StepKind::Real, slot_loads)?;
        let questions = [(outcome.rebalance, &self.policy), (outcome.resplit, &self.resplit)];
        let mut asked = false;
        for (load, policy) in questions {
            let Some(load) = load else { continue };
            let (policy, current) = (Arc::clone(policy), self.controller.placements().to_vec());
            self.planner.ask(Question { policy, load, current })?;
            asked = true;
        }
        let moves_beside_steps = self.controller.config().use_async;
        let plans = match asked && !moves_beside_steps {
            true => Some(self.planner.wait()?),
            false => self.planner.poll()?,
        };
        Ok(Decision { balancedness: outcome.balancedness, plans, moves_beside_steps })
    }

    /// A layer has another placement now.
    pub(super) fn commit(&mut self, layer: usize, placement: Placement) -> Result<()> {
        self.controller.commit(layer, placement)?;
        Ok(())
    }

    /// Nothing moves any more.
    pub(super) fn finish_rebalance(&mut self) {
        self.controller.finish_rebalance();
    }

    /// Whether load is recorded.
    pub(super) fn record_flag(&self) -> &RecordFlag {
        self.controller.record_flag()
    }

    pub(super) fn steps_since_rebalance(&self) -> usize {
        self.controller.steps_since_rebalance()
    }
}
