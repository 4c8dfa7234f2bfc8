//! Measurements of this machine.

pub mod layer;
#[cfg(feature = "cuda")]
pub mod steps;
