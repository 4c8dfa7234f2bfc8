//! Timing on the GPU.

pub mod cuda;
