//! How even placements are, and how fast they are found, at the sizes of large deployments. Every
//! test prints its table: `cargo test --release -p artel-moe --test eplb_policy -- --nocapture`.

mod loads;
mod placement;
mod quotas;
mod timing;

/// Experts of a layer.
const EXPERTS: usize = 256;
