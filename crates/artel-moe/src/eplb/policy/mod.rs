//! Policies: from the load of the experts of a layer to the slots that hold them, to the shares of
//! their copies, and to the pairs of a batch that each copy computes.
//!
//! | how often | what | moves weights |
//! |---|---|---|
//! | rarely | [`Balanced`] or [`Greedy`]: a new placement | yes |
//! | now and then | [`resplit`]: new shares for a placement | no |
//! | every step | [`quotas`]: whole pairs of the batch at hand | no |

mod balanced;
pub mod bounds;
mod copies;
mod counts;
mod few_experts;
mod greedy;
mod keep_slots;
mod level;
mod mask;
mod nearest;
mod moves;
mod nodes;
mod objective;
mod pack;
pub mod reference;
mod replicate;
mod resplit;
mod swap;
mod water_fill;

#[cfg(test)]
mod tests;

pub use balanced::Balanced;
pub use copies::Copies;
pub use few_experts::few_experts;
pub use greedy::Greedy;
pub use keep_slots::keep_slots;
pub use mask::{Unchanged, mask_ranks, rehome};
pub use nearest::nearest_copies;
pub use objective::{Objective, quotas};
pub use resplit::{Resplit, resplit};
pub use water_fill::{Batch, water_fill};

use std::fmt::Debug;

use super::{Cluster, Placement, Shares};
use crate::MoeError;

/// What a policy knows of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerQuery<'a> {
    /// Tokens of each expert of the model, `[L]`.
    pub load: &'a [f64],
    /// The ranks.
    pub cluster: &'a Cluster,
    /// Where the experts are now.
    pub current: &'a Placement,
}

impl LayerQuery<'_> {
    /// Checks that load, ranks and placement belong together.
    ///
    /// # Errors
    /// [`MoeError`] for a load that is negative or not finite, or of another number of experts; for
    /// other ranks than the placement's.
    pub fn check(&self) -> Result<(), MoeError> {
        let slots = self.current.num_physical();
        MoeError::check_shape("slots of a placement", self.cluster.slots(), slots)?;
        mask::check_load(self.load, self.current.num_logical())
    }
}

/// Where the experts of one layer should be, and how their copies share the load.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    /// Slots.
    pub placement: Placement,
    /// Parts of the tokens of each expert.
    pub shares: Shares,
}

impl LayerPlan {
    /// A placement whose copies share evenly.
    pub fn equal(placement: Placement) -> Self {
        let shares = Shares::equal(&placement);
        Self { placement, shares }
    }
}

/// Decides where the experts of a layer should be. The same query gives the same plan, on every rank.
pub trait Policy: Debug + Send + Sync {
    /// Name as users write it.
    fn name(&self) -> &'static str;

    /// The plan for one layer.
    ///
    /// # Errors
    /// [`MoeError`] when the query is inconsistent or the experts do not fit.
    fn plan(&self, query: &LayerQuery<'_>) -> Result<LayerPlan, MoeError>;
}

/// Names of all policies, as [`by_name`] knows them.
pub const NAMES: [&str; 4] = ["balanced", "greedy", "resplit", "none"];

/// A policy with its default options: [`Balanced`], [`Greedy`] without groups, [`Resplit`],
/// [`Unchanged`].
///
/// ```
/// use artel_moe::eplb::policy::{NAMES, by_name};
/// assert!(NAMES.iter().all(|name| by_name(name).is_some_and(|policy| policy.name() == *name)));
/// assert!(by_name("best").is_none());
/// ```
pub fn by_name(name: &str) -> Option<Box<dyn Policy>> {
    match name {
        "balanced" => Some(Box::new(Balanced::default())),
        "greedy" => Some(Box::new(Greedy { groups: 1 })),
        "resplit" => Some(Box::new(Resplit)),
        "none" => Some(Box::new(Unchanged)),
        _ => None,
    }
}
