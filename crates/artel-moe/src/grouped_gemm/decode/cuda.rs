//! Launches of the products of small batches: [`DirectExperts`] and [`AlignedExperts`] run both
//! products with `silu(gate) * up` in between, [`PlainProduct`] and
//! [`Fp8Product`] one product for layers with another activation.

pub use super::aligned::cuda::{AlignedExperts, AlignedStep, CodedRows};
pub use super::arguments::{BlockSlices, ExpertSlices, WeightSlices};
pub use super::direct::cuda::{DirectExperts, DirectForm, DirectOut, DirectStep};
pub use super::product::cuda::{Fp8Product, PlainProduct, ProductStep, RowsFrom};
pub use super::quantize::cuda::{QuantizeRows, Release};
pub use super::workspace::DecodeWorkspace;
