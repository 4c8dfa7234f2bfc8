//! Both products of the experts for small batches on a GPU, which are bound by reading weights.
//!
//! The weights stand on the long side of the matrix units: a block of threads multiplies `columns`
//! weight rows by `rows` rows of activations, so few rows waste little. Gate and up of the same
//! features meet in one block, so that biases, the activation and the quantisation of its result happen
//! before anything is written. Biases of the second product are added where the pairs of a token are.
//!
//! Rows come to their weights in one of two forms:
//! - *direct*: the ids are read as the router wrote them, or packed; nothing is sorted. The block
//!   of a pair multiplies all tokens by the expert of that pair, and the blocks of other pairs with
//!   the same expert leave at once. Rows of the second product are pairs. [`streamed`] does both products of up to
//!   eight tokens in one launch, where the GPU and the weights have its kernel.
//! - *aligned*: [`Assignment`](crate::assignment::Assignment) with blocks of `rows` pairs. Rows of
//!   both products are its positions.
//!
//! Ids that do not exist have no rows: nobody writes them and [`combine`](crate::combine) skips them.
//!
//! FP8 activations have a float32 scale for 128 columns, stored `[columns / 128, rows]`, or one a row,
//! `[1, rows]`, where the scales of the weights cover all columns: products are then summed without
//! scales, which come last. In the aligned form the block of threads that is the last to end a tile of
//! some rows makes their codes. The quantised activation is `silu(g) * u` of gate and up in the format's 16 bits, not rounded again,
//! with a scale of at least `1 / (448 * 512)`.
//!
//! Example: `T = 2`, `K = 2`, ids `[[1, 0], [1, 1]]`. Direct: the block of pair 0 computes both
//! tokens with expert 1 and writes rows 0 and 2, that of pair 1 writes row 1, pair 2 leaves, pair 3
//! is the second time that token 1 lists expert 1 and writes row 3.

#[cfg(feature = "cuda")]
mod aligned;
#[cfg(feature = "cuda")]
mod arguments;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod direct;
#[cfg(feature = "cuda")]
mod fp8_aligned;
#[cfg(feature = "cuda")]
mod fp8_direct;
#[cfg(feature = "cuda")]
mod fp8_rows;
#[cfg(feature = "cuda")]
pub(crate) mod gating;
#[cfg(feature = "cuda")]
pub(crate) mod parts;
#[cfg(feature = "cuda")]
mod plain_aligned;
#[cfg(feature = "cuda")]
mod plain_direct;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod quantize;
#[cfg(feature = "cuda")]
pub(crate) mod routes;
mod shape;
#[cfg(feature = "cuda")]
mod split_aligned;
pub mod streamed;
#[cfg(feature = "cuda")]
pub(crate) mod sum;
#[cfg(feature = "cuda")]
mod workspace;

pub use shape::{DecodeShape, DecodeTile, WeightNumbers};
