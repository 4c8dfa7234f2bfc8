//! Policies: from the load of the experts of a layer to the slots that hold them.

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
        MoeError::check_shape("load of experts", self.current.num_logical(), self.load.len())?;
        let slots = self.current.num_physical();
        MoeError::check_shape("slots of a placement", self.cluster.slots(), slots)?;
        match self.load.iter().position(|load| !(*load >= 0.0 && load.is_finite())) {
            None => Ok(()),
            Some(expert) => {
                Err(MoeError::element("load of experts", expert, self.load[expert], "0 or more"))
            }
        }
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
