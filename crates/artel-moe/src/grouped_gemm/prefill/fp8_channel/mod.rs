//! FP8 weights with a scale per output feature.

pub mod cuda;
