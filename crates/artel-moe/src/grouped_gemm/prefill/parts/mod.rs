//! What the kernels of all formats share.

pub mod cuda;
