//! Expert placement and load balancing: which rank and slot holds which expert.

mod expert_map;

pub use expert_map::{EpRank, ExpertMap, ExpertPlacement, determine_expert_map};
