use crate::MoeError;
use crate::eplb::map_and_record::{self, LoadRecorder, PlacementRule, ReplicaRule};
use crate::eplb::policy::Batch;
use crate::eplb::{BatchSplit, Cluster, LayerPlan};

/// How a copy is chosen for each pair. Never changes a bit of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyChoice {
    /// By token and expert alone.
    Rule(ReplicaRule),
    /// By counting the batch and dealing its pairs out so that ranks are as even as the placement
    /// allows: in experts that have pairs at all while those have fewer than this on average, else in
    /// pairs.
    Quotas {
        /// The knee of the roofline, in pairs an active expert.
        memory_bound_below: usize,
    },
}

impl From<ReplicaRule> for CopyChoice {
    fn from(rule: ReplicaRule) -> Self {
        Self::Rule(rule)
    }
}

/// Chooses slots under one plan.
#[derive(Debug, Clone)]
pub(super) struct Chooser {
    choice: CopyChoice,
    rule: PlacementRule,
    /// Asked in place of the rule, where batches are counted.
    split: Option<BatchSplit>,
}

impl Chooser {
    /// # Errors
    /// [`MoeError`] when shares are not of their placement, or that is of another cluster.
    pub fn new(plan: LayerPlan, choice: CopyChoice, cluster: &Cluster) -> Result<Self, MoeError> {
        cluster.check(&plan.placement)?;
        let (rule, split) = match choice {
            CopyChoice::Rule(rule) => (rule, None),
            CopyChoice::Quotas { memory_bound_below } => {
                // The leader sees all tokens.
                let (placement, batch) = (&plan.placement, Batch::Replicated);
                let split = BatchSplit::new(placement, cluster, batch, memory_bound_below)?;
                (ReplicaRule::TokenHash, Some(split))
            }
        };
        Ok(Self { choice, rule: PlacementRule::new(plan, rule)?, split })
    }

    /// Where copies are.
    pub fn plan(&self) -> &LayerPlan {
        self.rule.plan()
    }

    /// How they are chosen.
    pub fn choice(&self) -> CopyChoice {
        self.choice
    }

    /// Replaces experts `[T, K]` by slots and counts the load.
    pub fn choose(
        &mut self,
        ids: &mut [i32],
        top_k: usize,
        recorder: LoadRecorder<'_>,
    ) -> Result<(), MoeError> {
        let (table, rule) = (self.rule.table(), self.rule.rule());
        match &mut self.split {
            None => map_and_record::cpu::map_and_record(ids, top_k, table, rule, recorder),
            Some(split) => split.map_and_record(ids, top_k, table, recorder),
        }
    }
}
