//! Which path and which kernel serve which batch sizes, and why. Chosen once, when the layer is
//! made; `forward` only looks it up.

mod host;
pub mod gpu;

pub use host::{MoePlan, PlanEntry, PlannedAssignment, TOKENS_PER_STEP};
