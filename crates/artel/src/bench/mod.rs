//! Measurements of this machine.

pub mod layer;
