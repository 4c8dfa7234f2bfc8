//! Map and record: logical expert ids become physical ones, and the load of each slot is counted
//! in the same pass.
//!
//! For every (token, slot) in order:
//! 1. An id below 0 or from `L` on has no slot: it becomes -1 and is never counted.
//! 2. The rule picks one of the copies of the expert.
//! 3. The id is replaced by the slot of that copy.
//! 4. If recording is on and the token is not padding, the load of the slot grows by one.
//!
//! Two experts of which the first has two copies; three tokens, the last of them padding:
//!
//! ```
//! use artel_moe::eplb::map_and_record::{LoadRecorder, ReplicaRule, cpu};
//! use artel_moe::eplb::{LayerPlan, Placement, ReplicaTable};
//! let plan = LayerPlan::equal(Placement::new(vec![0, 1, 0], 2)?);
//! let table = ReplicaTable::new(&plan)?;
//! let (mut ids, mut load) = ([0, 0, 1], [0; 3]);
//! let recorder = LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 2 };
//! cpu::map_and_record(&mut ids, 1, &table, ReplicaRule::TokenHash, recorder)?;
//! assert_eq!(ids, [0, 2, 1]);
//! assert_eq!(load, [1, 0, 1]);
//! # Ok::<(), artel_moe::MoeError>(())
//! ```
//!
//! A rule knows a token and its expert only, so copies get their shares of many tokens, and more or
//! less of few. Who has counted a batch ([`count_pairs`]) can say how many pairs each slot gets: then
//! `map_by_quotas` deals the pairs of an expert to its copies in order, and there is no chance in it.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod quotas;
pub mod reference;
mod rule;

#[cfg(test)]
mod balance;
#[cfg(test)]
mod tests;

pub use quotas::QuotaCursor;
pub use rule::{ReplicaRule, ReplicaSalt};

use super::{LayerPlan, ReplicaTable};
use crate::MoeError;

/// Which physical expert serves a logical one.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacementRule {
    plan: LayerPlan,
    table: ReplicaTable,
    rule: ReplicaRule,
}

impl PlacementRule {
    /// Copies where `plan` has them, of which `rule` chooses.
    ///
    /// # Errors
    /// [`MoeError`] when the shares of the plan are not of its placement.
    pub fn new(plan: LayerPlan, rule: ReplicaRule) -> Result<Self, MoeError> {
        Ok(Self { table: ReplicaTable::new(&plan)?, plan, rule })
    }

    /// Where the copies of each expert are, and their shares.
    pub fn plan(&self) -> &LayerPlan {
        &self.plan
    }

    /// The same as it is read for every token.
    pub fn table(&self) -> &ReplicaTable {
        &self.table
    }

    /// Which copy serves a token.
    pub fn rule(&self) -> ReplicaRule {
        self.rule
    }
}

/// Where load is counted, and whether this step counts.
#[derive(Debug)]
pub struct LoadRecorder<'a> {
    /// Tokens that each slot has computed, `[P]`; grows, and stays at `i32::MAX` once there.
    pub expert_load: &'a mut [i32],
    /// Whether this step is recorded.
    pub enabled: bool,
    /// Tokens from this one on are padding: they are mapped but not counted.
    pub unpadded_tokens: usize,
}

impl LoadRecorder<'_> {
    /// Pairs from the first one that count.
    fn recorded_pairs(&self, top_k: usize) -> usize {
        if self.enabled { self.unpadded_tokens.saturating_mul(top_k) } else { 0 }
    }

    fn check(&self, ids: &[i32], top_k: usize, num_physical: usize) -> Result<(), MoeError> {
        let tokens = ids.len().checked_div(top_k).unwrap_or(0);
        MoeError::check_shape("topk_ids", tokens * top_k, ids.len())?;
        MoeError::check_shape("expert_load", num_physical, self.expert_load.len())
    }
}

/// Adds the pairs of each expert `[L]`; an id that is no expert belongs to none.
pub fn count_pairs(ids: &[i32], counts: &mut [u32]) {
    for &id in ids {
        let count = usize::try_from(id).ok().and_then(|id| counts.get_mut(id));
        count.into_iter().for_each(|count| *count = count.saturating_add(1));
    }
}
