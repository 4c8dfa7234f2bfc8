//! The rest of a decoder block: attention, norms, rotary embedding, linear, embedding, sampling.
//!
//! Each operation is a folder with its definition (`reference.rs`, naive, in float64), its fast
//! CPU code (`cpu.rs`), its GPU kernels (`cuda.rs`, feature `cuda`) and the cases on which all must
//! agree (`tests.rs`, `tests/gpu/`). Dimensions: `T` tokens, `H` hidden, `D` head dimension. Rows of
//! tokens are row-major, one row a token: float32 on the CPU, of the model's element on a GPU.

mod error;
mod workspace;
pub mod vector;
pub mod embedding;
pub mod exchange;
pub mod feed;
pub mod linear;
pub mod rms_norm;
pub mod rope;
pub mod attention;
pub mod sample;

pub use error::LayersError;
pub use workspace::Workspace;
