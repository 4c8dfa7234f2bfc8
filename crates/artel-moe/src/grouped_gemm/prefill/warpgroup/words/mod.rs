//! FP4 weights in words, which become bfloat16 in the registers of the warps that multiply.
//!
//! Each warp widens the weights that it multiplies, once for all rows of a tile, while the matrix units
//! are at the weights before. Rows lie as widened weights ask for, `[halves of planes of 128 columns, rows, 64]`
//! (see [`words`](crate::grouped_gemm::words)), and the first product leaves its results so.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::EXPERTS_MAX;
use crate::activation::Gating;
use crate::grouped_gemm::words::{WordCode, WordFormat, WordShape};

/// Most rows of a tile, of kernels for few and for many rows an expert: what rows leave of shared memory is
/// for weights that are under way.
pub const ROWS_MAX: [usize; 2] = [64, 256];
/// Input features of a stage of weights.
pub const DEPTH: usize = 256;

/// Whether there are kernels for these experts.
pub fn is_served(shape: &WordShape) -> bool {
    let WordShape { experts, hidden_size, intermediate_size, formats, gating, .. } = *shape;
    let is_fp4 = |format: &WordFormat| matches!(format.code, WordCode::Mxfp4 | WordCode::Nvfp4);
    formats.iter().all(is_fp4)
        && gating == Gating::SILU
        && hidden_size.is_multiple_of(8)
        && intermediate_size.is_multiple_of(8)
        && experts <= EXPERTS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp4_with_silu_is_served() {
        let formats = |code, group| [WordFormat { code, group }; 2];
        let shape = WordShape {
            experts: 256,
            top_k: 8,
            hidden_size: 3072,
            intermediate_size: 768,
            formats: formats(WordCode::Mxfp4, 32),
            gating: Gating::SILU,
        };
        for (code, group) in [(WordCode::Mxfp4, 32), (WordCode::Nvfp4, 16)] {
            assert!(is_served(&WordShape { formats: formats(code, group), ..shape }));
        }
        for other in [
            WordShape { formats: formats(WordCode::Int4, 128), ..shape },
            WordShape { formats: formats(WordCode::Int8, 128), ..shape },
            WordShape { formats: formats(WordCode::Int8Rows, 128), ..shape },
            WordShape { gating: Gating { biases: true, ..Gating::SILU }, ..shape },
            WordShape { intermediate_size: 772, ..shape },
            WordShape { experts: EXPERTS_MAX + 1, ..shape },
        ] {
            assert!(!is_served(&other), "{other:?}");
        }
    }
}
