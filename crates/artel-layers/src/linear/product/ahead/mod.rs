//! Products of few rows that begin to read their weights while the kernels before end.

pub mod cuda;
