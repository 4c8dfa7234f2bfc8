//! Both products of the experts on weights that the matrix units of a GPU do not know: codes of four
//! bits, and integers.
//!
//! Weights lie in 32-bit words, so that one instruction widens four of them at a time to the eight
//! bits that are multiplied; see [`weights::words`](crate::weights::words) for how. INT4 codes need
//! no more than a mask: as e4m3, code `n` is the number `n / 512`.
//!
//! Activations keep their sixteen bits, in two parts of eight: `x = scale * (first + second)` with
//! both in e4m3, or `x = scale * (256 * first + second)` with both integers, one scale a row. The
//! parts are neighbouring columns of one product and are added after it. Where several groups of
//! weights share a product, a row has a copy for each, with zeros in the columns of the others, so
//! that their sums stay apart until each meets its scale.
//!
//! Few tokens on Hopper take both products in one launch, on float16; see
//! [`decode::streamed`](crate::grouped_gemm::decode::streamed).
//!
//! Where an expert has many rows, weights are widened to bfloat16 instead, two with one instruction and
//! once for all rows of a block, with the scales of FP4 as part of them. Codes of four bits on Hopper become so
//! in the registers of [a kernel of tiles](crate::grouped_gemm::prefill::warpgroup) as high as an expert has rows.
//! INT8 with a scale a row meets INT8 activations there. MXFP8 is e4m3 numbers with the scales of MXFP4, which few rows
//! meet as they are and many as bfloat16.
//!
//! Example: `H = 256` in NVFP4. A product covers 32 columns, which are two groups of 16. A row takes
//! 4 columns of it: first and second part of columns 0 to 15, then of columns 16 to 31.

#[cfg(feature = "cuda")]
mod aligned;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod direct;
#[cfg(feature = "cuda")]
mod entries;
#[cfg(feature = "cuda")]
mod floats;
mod format;
#[cfg(feature = "cuda")]
mod halves;
#[cfg(feature = "cuda")]
pub(crate) mod integers;
#[cfg(feature = "cuda")]
pub mod lanes;
mod tile;
#[cfg(feature = "cuda")]
mod parts;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod split;
#[cfg(feature = "cuda")]
pub mod warpgroup;
#[cfg(feature = "cuda")]
mod widened;
#[cfg(feature = "cuda")]
mod workspace;

pub use format::{WordCode, WordFormat};
pub use tile::{WordShape, WordTile};
