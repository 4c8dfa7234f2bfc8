//! Both products of the experts for large batches on a GPU, which are bound by arithmetic.
//!
//! The rows are the assignment's positions: row `m` of the input and of the output is position `m`,
//! and a block of positions belongs to one expert. So every tile of rows, weights and results is one
//! that the copy engine moves by itself. A grid of as many blocks of threads as run at the same time
//! walks over all tiles, the columns of one row tile next to each other, so that rows and weights are
//! read from memory once; how many tiles there are is read on the GPU.
//!
//! Of 16-bit numbers, and of FP8 numbers with scales of blocks, the first product stores
//! `silu(gate) * up`: a tile has as many gates as ups beside each other, so that their sums meet in the
//! registers of one thread.
//!
//! Rows of a block of expert -1 become zeros. Rows that pad a block have no meaning.
//!
//! Example: 300 pairs of expert 0 and 10 of expert 2 in blocks of 128 are four row tiles, three of
//! expert 0 and one of expert 2; with `N = 1536` and 128 columns a tile, 132 blocks of threads share
//! 48 tiles.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod fp8_block;
#[cfg(feature = "cuda")]
mod fp8_channel;
#[cfg(feature = "cuda")]
mod fp8_gated;
#[cfg(feature = "cuda")]
mod parts;
#[cfg(feature = "cuda")]
mod plain;
mod tile;
pub mod warpgroup;

pub use tile::{PrefillForm, PrefillTile, RowScales, Unroll};
