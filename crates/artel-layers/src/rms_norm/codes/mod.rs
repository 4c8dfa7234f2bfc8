//! RMS norm that leaves FP8 codes.

pub mod cuda;
