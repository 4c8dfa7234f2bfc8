//! Measurements of this machine, and of servers.

pub mod layer;
pub mod serve;
#[cfg(feature = "cuda")]
pub mod steps;
