//! Weights of four bits in words, which become bfloat16 in the registers of the warps that multiply.
//!
//! Each warp widens the weights that it multiplies, once for all rows of a tile, while the matrix units
//! are at the weights before. Rows lie as its lanes read words, `[halves of planes of 128 columns, rows, 64]`
//! (see `words/lanes`), and the first product leaves its results so.
//!
//! FP4 meets the scales of its groups before it is multiplied, which is exact. INT4 does not: sums of 128 columns meet
//! their scale in float32, so a tile has fewer rows.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::EXPERTS_MAX;
use crate::activation::Gating;
use crate::grouped_gemm::words::{WordCode, WordFormat, WordShape};
use crate::quant::BLOCK;

/// Input features of a stage of weights.
pub const DEPTH: usize = 256;

/// Sizes of tiles of one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordsTile {
    /// Most rows.
    pub rows: usize,
    /// Weights, gates and ups together: 64 for each warpgroup that multiplies, two or four of them.
    pub weights: usize,
}

/// Tiles that there are kernels for, for few rows an expert first: what rows leave of shared memory is for weights that
/// are under way, and what they leave of registers for more warpgroups.
pub fn tiles(code: WordCode) -> [WordsTile; 3] {
    let sizes = match code {
        // There are sums of a plane and of all.
        WordCode::Int4 => [[16, 256], [64, 128], [144, 128]],
        _ => [[16, 256], [64, 256], [256, 128]],
    };
    sizes.map(|[rows, weights]| WordsTile { rows, weights })
}

/// Whether there are kernels for these experts.
pub fn is_served(shape: &WordShape) -> bool {
    let WordShape { experts, hidden_size, intermediate_size, formats, gating, .. } = *shape;
    let has_kernels = |format: &WordFormat| match format.code {
        WordCode::Mxfp4 | WordCode::Nvfp4 => true,
        WordCode::Int4 => format.group == BLOCK,
        WordCode::Int8 | WordCode::Int8Rows | WordCode::Mxfp8 => false,
    };
    formats.iter().all(has_kernels)
        && gating == Gating::SILU
        && hidden_size.is_multiple_of(8)
        && intermediate_size.is_multiple_of(8)
        && experts <= EXPERTS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_with_silu_are_served() {
        let formats = |code, group| [WordFormat { code, group }; 2];
        let shape = WordShape {
            experts: 256,
            top_k: 8,
            hidden_size: 3072,
            intermediate_size: 768,
            formats: formats(WordCode::Mxfp4, 32),
            gating: Gating::SILU,
        };
        let served = [(WordCode::Mxfp4, 32), (WordCode::Nvfp4, 16), (WordCode::Int4, BLOCK)];
        for (code, group) in served {
            assert!(is_served(&WordShape { formats: formats(code, group), ..shape }));
        }
        for other in [
            WordShape { formats: formats(WordCode::Int4, 64), ..shape },
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
