//! Expert placement and load balancing: which rank and slot holds which expert.

mod expert_map;
mod load;
pub mod map_and_record;
mod placement;

pub use expert_map::{EpRank, ExpertMap, ExpertPlacement, determine_expert_map};
pub use load::ExpertLoad;
pub use placement::Placement;
