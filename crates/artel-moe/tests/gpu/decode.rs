//! Products of small batches against float64 on the numbers that the format keeps.

mod experts;
pub mod layer;
mod products;

use crate::gpu::Case;

pub fn cases() -> Vec<Case> {
    experts::cases().into_iter().chain(products::cases()).collect()
}
