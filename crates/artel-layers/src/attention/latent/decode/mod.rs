//! Attention of one new token a sequence.

pub mod cuda;
