//! Device code that all norms share.

pub mod cuda;
