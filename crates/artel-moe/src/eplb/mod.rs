//! Expert placement and load balancing: which rank and slot holds which expert.

pub mod balance;
mod batch;
mod cluster;
mod config;
mod controller;
pub mod count;
mod expert_map;
mod load;
pub mod map_and_record;
pub mod movement;
mod placement;
mod placement_file;
pub mod policy;
mod shares;
pub mod simulate;
mod tables;
pub mod trace;
mod window;

pub use batch::BatchSplit;
pub use cluster::Cluster;
pub use config::{EplbConfig, PolicyName, REDUNDANT_EXPERTS_MAX, ReplicaRuleName};
pub use controller::{Balancedness, EplbController, StepKind, StepOutcome};
pub use expert_map::{EpRank, ExpertMap, ExpertPlacement, determine_expert_map};
pub use load::{ExpertLoad, RecordFlag};
pub use placement::Placement;
pub use placement_file::PlacementFile;
pub use policy::{LayerPlan, LayerQuery, Policy};
pub use shares::Shares;
pub use tables::ReplicaTable;
pub use window::LoadWindow;
