//! FP8 weights with a scale per block.

pub mod cuda;
