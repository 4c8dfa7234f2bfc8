//! What a shared expert made is added to what the routed ones made, behind a gate of its own or not.
//!
//! ```text
//! out[t, :] += sigmoid(hidden[t, :] . gate) * shared[t, :]        without a gate: += shared[t, :]
//! ```
//! Example, `H = 2`: out = [1, 1], shared = [2, 4], hidden = [3, 0], gate = [0, 5]: the sigmoid of 0 is
//! 1/2, so out = [2, 3].

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
