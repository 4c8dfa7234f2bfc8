//! Expert placement and load balancing: which rank and slot holds which expert.

mod expert_map;
pub mod map_and_record;
mod placement;

pub use expert_map::{EpRank, ExpertMap, ExpertPlacement, determine_expert_map};
pub use placement::Placement;
