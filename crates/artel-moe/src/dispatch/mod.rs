//! Dispatch: who computes the experts of a layer.
//!
//! - *local*: the caller's own threads, all experts (`MoeLayer` without more).
//! - *tensor parallel*: ranks hold a part of every expert (`ExpertWeights::shard`).
//! - *expert parallel*: ranks hold whole experts. [`RankGroup`] runs ranks as threads of this process
//!   and moves experts between them while they compute.
//!
//! The leader is the thread that calls a layer. It routes all tokens, chooses the slot of each pair,
//! and sends every rank the rows of its slots; a rank answers with one row for each of them, not with
//! sums, and the leader adds them up in the order of the pairs. So the bits of the result do not
//! depend on which rank has which expert.
//!
//! ```text
//! leader  ── Compute, Switch ──>  rank r            slots in force: immutable, replaced as a whole
//!         <── Computed, Switched ──  |  ^ staged slots
//!         ── Stage, Send, Abort ──>  mover r  ── Expert ──>  mover s
//!         <── Received, Staged, Failed ──
//! ```
//!
//! A move of experts never touches slots in force. The mover of each rank assembles a second set in
//! spare memory, of what arrives, what it copies, and what stays. When every rank has reported that its
//! set is staged, the leader switches between two steps: the order goes through the same queue as the
//! rows to compute, and from then on rows carry the version of the new placement. A rank that is asked
//! to compute by another version than its own refuses. Whatever fails before the switch ends the move
//! and leaves everything as it was.

mod checksum;
mod choice;
mod group;
mod leader;
mod message;
mod mover;
mod moves;
mod options;
mod rank;
mod slots;
mod threads;
mod transport;
#[cfg(test)]
mod tests;

pub use choice::CopyChoice;
pub use group::{ExpertParallel, RankGroup, RankedLayer};
pub use message::{Message, Outgoing, Parcel, PlacementVersion, Report, StageOrder, Work};
pub use moves::MoveEvent;
pub use options::RankOptions;
pub use transport::{Gone, Port, ThreadTransport, Transport};

pub(crate) use leader::Batch;
