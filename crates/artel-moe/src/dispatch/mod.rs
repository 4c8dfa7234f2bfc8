//! Dispatch: who computes the experts of a layer.
//!
//! - *local*: the caller's own threads, all experts (`MoeLayer` without more).
//! - *tensor parallel*: ranks hold a part of every expert (`ExpertWeights::shard`).
//! - *expert parallel*: ranks hold whole experts. [`RankGroup`] runs ranks as threads of this process
//!   and moves experts between them while they compute.

mod group;

pub use group::{ExpertParallel, MoveEvent, PlacementVersion, RankGroup, RankOptions, RankedLayer};
