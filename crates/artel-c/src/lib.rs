//! The experts of a layer on a GPU, for engines in other languages.
//!
//! `include/artel_moe.h` is the contract; the functions themselves stand in `cuda.rs`, where pointers
//! become Rust values. Weights, hidden states and results are device memory of the caller.
//! `python/artel_moe.py` is the same for tensors of any library that speaks DLPack.

mod cuda;
mod experts;
mod failure;
mod settings;

pub use cuda::{
    ArtelMoeExperts, artel_moe_create, artel_moe_destroy, artel_moe_forward, artel_moe_last_error,
    artel_moe_plan, artel_moe_version,
};
pub use failure::Status;
pub use settings::{ArtelMoeSettings, ArtelMoeStack};
