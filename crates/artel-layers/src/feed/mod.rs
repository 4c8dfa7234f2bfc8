//! Feed: what an earlier step chose becomes a token of this one, without a way over the host.
//!
//! ```text
//! ids[r] = chosen[sources[r]]      where sources[r] >= 0; other ids stay
//! ```
//! Example: ids = [5, 0, 0], sources = [-1, 2, 0], chosen = [7, 8, 9]: ids = [5, 9, 7].

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
