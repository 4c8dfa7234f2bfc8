//! Movement: from an old and a new placement of one layer to what has to be copied.
//!
//! - A slot that keeps its expert is left alone.
//! - An expert that its rank has already is copied there, from its first slot.
//! - Any other expert is received once by each rank that wants it, and copied there if it wants more.
//!   The ranks that have an expert share its receivers evenly, both in ascending order.
//!
//! Example, two ranks of two slots: `[0, 1 | 2, 0]` becomes `[2, 2 | 0, 1]`. Rank 0 receives expert 2
//! once, from rank 1, for both of its slots; rank 1 copies expert 0 from its slot 3 to its slot 2 and
//! receives expert 1 from rank 0.
//!
//! ```
//! use artel_moe::eplb::{Cluster, Placement, movement::plan};
//! let cluster = Cluster::new(2, 2)?;
//! let placed = |slots: [i32; 4]| Placement::new(slots.into(), 3);
//! let moves = plan(&placed([0, 1, 2, 0])?, &placed([2, 2, 0, 1])?, &cluster)?;
//! assert_eq!((moves.transfers.len(), moves.copies.len()), (2, 1));
//! assert_eq!(moves.transfers[0].to_slots, [3]);
//! assert_eq!(moves.transfers[1].to_slots, [0, 1]);
//! # Ok::<(), artel_moe::MoeError>(())
//! ```

mod plan;
mod rounds;
mod stages;

pub use plan::{LocalCopy, MovePlan, Transfer, plan};
pub use rounds::rounds;
pub use stages::stages;

#[cfg(test)]
mod tests;
