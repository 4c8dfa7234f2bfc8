//! The first product of FP8 experts with the activation.

pub mod cuda;
