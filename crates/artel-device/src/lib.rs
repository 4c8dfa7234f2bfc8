//! Memory, instruction sets and devices under Artel. Knows nothing of mixture of experts.
//!
//! All foreign calls and almost all `unsafe` of the workspace live here.

pub mod buffer;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
pub mod memory;
pub mod tiles;
mod error;

pub use buffer::HostBuffer;
pub use error::DeviceError;
