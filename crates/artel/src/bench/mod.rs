//! Measurements of this machine, and of servers.

pub mod dataset;
pub mod layer;
pub mod offline;
pub mod serve;
mod statistics;
#[cfg(feature = "cuda")]
pub mod steps;
pub mod texts;
