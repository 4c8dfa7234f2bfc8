use crate::MoeError;
use crate::eplb::map_and_record::{self, LoadRecorder, PlacementRule, QuotaCursor, ReplicaRule};
use crate::eplb::policy::{Batch, Copies, Objective, quotas};
use crate::eplb::{Cluster, LayerPlan};

/// How a copy is chosen for each pair. Never changes a bit of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyChoice {
    /// By token and expert alone.
    Rule(ReplicaRule),
    /// By counting the batch and dealing its pairs out so that ranks are as even as the placement
    /// allows.
    Quotas(Objective),
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
    copies: Copies,
    cursor: QuotaCursor,
    /// Pairs of each expert in a batch, `[L]`.
    counts: Vec<u32>,
}

impl Chooser {
    /// # Errors
    /// [`MoeError`] when shares are not of their placement, or that is of another cluster.
    pub fn new(plan: LayerPlan, choice: CopyChoice, cluster: &Cluster) -> Result<Self, MoeError> {
        let rule = match choice {
            CopyChoice::Rule(rule) => rule,
            // Not asked for a choice.
            CopyChoice::Quotas(_) => ReplicaRule::TokenHash,
        };
        let copies = Copies::new(&plan.placement, cluster)?;
        let rule = PlacementRule::new(plan, rule)?;
        Ok(Self { choice, rule, copies, cursor: QuotaCursor::default(), counts: Vec::new() })
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
        let table = self.rule.table();
        match self.choice {
            CopyChoice::Rule(rule) => {
                map_and_record::cpu::map_and_record(ids, top_k, table, rule, recorder)
            }
            CopyChoice::Quotas(objective) => {
                self.counts.clear();
                self.counts.resize(table.num_logical(), 0);
                map_and_record::count_pairs(ids, &mut self.counts);
                let quotas = quotas(objective, &self.counts, &self.copies, Batch::Replicated)?;
                let quotas = (quotas.as_slice(), &mut self.cursor);
                map_and_record::cpu::map_by_quotas(ids, top_k, table, quotas, recorder)
            }
        }
    }
}
