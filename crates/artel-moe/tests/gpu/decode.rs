//! Products of small batches against float64 on the numbers that the format keeps.

use artel_gpu_test::Case;

mod experts;
pub mod layer;
mod products;
mod streamed;

pub fn cases() -> Vec<Case> {
    let cases = experts::cases().into_iter().chain(products::cases());
    cases.chain(streamed::cases()).collect()
}
