//! Attention of many new tokens of some sequences.

pub mod cuda;
