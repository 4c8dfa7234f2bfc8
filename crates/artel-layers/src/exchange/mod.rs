//! Exchange: the words of a step on their way between page-locked memory of the host and the device.
//!
//! A copy engine takes microseconds for each copy, however short it is. A kernel reads and writes such
//! memory itself, all pieces of a step at once.
//!
//! ```text
//! to[buffer][start..start + len] = from[buffer][start..start + len]      for every piece
//! ```
//! Example: pieces (0, 1, 2) and (1, 0, 1) of from = [[1, 2, 3], [4, 5]]: to = [[_, 2, 3], [4, _]].

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

/// Neighbouring words that go from one side to the same place of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which of the two buffers of a side, 0 or 1.
    pub buffer: usize,
    /// Its first word.
    pub start: usize,
    /// Its words.
    pub len: usize,
}
