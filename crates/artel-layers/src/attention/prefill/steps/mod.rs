//! What a tile does with its keys.

pub mod cuda;
