//! Weights and rows of the same 16-bit numbers.

pub mod cuda;
