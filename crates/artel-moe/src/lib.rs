//! The mixture-of-experts layer as a library: route, place, assign, experts, combine.
//!
//! Knows no model name, no file format and no HTTP. The modules are declared in reading order,
//! which is also the order in which data flows. Dimensions: `T` tokens, `H` hidden, `I`
//! intermediate, `E` experts, `K` top-k, `M` rows after assignment.

pub mod config;
mod error;
pub mod layer;
pub mod plan;
pub mod router;
pub mod eplb;
pub mod packing;
pub mod assignment;
pub mod permute;
pub mod input_weight;
pub mod quant;
pub mod grouped_gemm;
pub mod activation;
pub mod combine;
pub mod shared;
pub mod weights;
pub mod inputs;
pub mod dispatch;
pub mod backend;
#[cfg(feature = "cuda")]
pub mod cuda;

pub use error::MoeError;
