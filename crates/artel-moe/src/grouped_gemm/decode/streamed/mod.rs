//! Both products of up to eight tokens on FP8 weights in one launch: for Hopper, in assembly.
//!
//! Few tokens are bound by reading weights, once each. A launch for each step leaves the memory idle
//! at both of its ends, and the FP8 matrix units drop what moves codes of the activation. So one
//! kernel does all: a block of threads stays on each multiprocessor, one warp of it copies weights
//! into a ring of stages in shared memory (copy engine), and eight warps widen them to float16 and
//! multiply on the float16 matrix units, where products of codes are exact.
//!
//! The work is cut into tasks: 8 gates and their ups, or 16 output features of the second product, for
//! each strip of warps. Tasks are drawn from a counter, those of the first product before those of
//! the second. A task of the second product waits until its expert's activations are there; the
//! blocks of threads that make them have drawn their tasks earlier and wait for nobody, so any number
//! of blocks may run. While they wait, the ring fills with weights of the second product: the memory
//! is never idle.
//!
//! Pairs with the same expert share its weights: the experts of a batch have places, in the order of the
//! first pair that names them, and each computes all tokens. Codes of activations are made by every block of
//! threads for itself. The last expert to come to sixteen columns sums the pairs of all tokens there.
//!
//! Example: `T = 2`, `K = 2`, ids `[[1, 0], [1, -1]]`. Expert 1 has place 0, expert 0 place 1; both
//! compute two rows. Token 0 is the sum of a row of each, token 1 is its row of place 0.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod finish;
// Without kernels nobody asks where anything lies.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
mod layout;
#[cfg(feature = "cuda")]
mod multiply;
#[cfg(feature = "cuda")]
mod producer;
#[cfg(feature = "cuda")]
mod quantize;
#[cfg(feature = "cuda")]
mod text;

use super::{DecodeShape, WeightNumbers};
use crate::activation::Gating;
use crate::quant::BLOCK;
use layout::{ScaleForm, Sizes};

/// The only architecture that has the instructions.
pub(crate) const ARCHITECTURE: &str = "sm_90";
/// Most tokens of a batch: columns of the matrix instruction.
pub const TOKENS_MAX: usize = 8;

/// Whether there is a kernel for these experts.
pub(crate) fn serves(shape: &DecodeShape) -> bool {
    sizes(shape, "bf16", false).is_some_and(|sizes| sizes.fits())
}

/// Weight rows and input features of a task of each product.
pub(crate) fn tasks(shape: &DecodeShape) -> Option<[[usize; 2]; 2]> {
    let Sizes { first, second, .. } = sizes(shape, "bf16", false).filter(Sizes::fits)?;
    Some([first, second].map(|product| [product.task_rows(), product.columns]))
}

/// What the kernel would be made for; nothing for weights that it does not know.
fn sizes(shape: &DecodeShape, element: &'static str, is_packed: bool) -> Option<Sizes> {
    let DecodeShape { experts, top_k, hidden_size, intermediate_size, numbers, gating } = *shape;
    let WeightNumbers::Fp8Blocks { w13, w2 } = numbers else { return None };
    let forms = [
        (ScaleForm::Blocks, [[BLOCK; 2]; 2]),
        (ScaleForm::Channels, [[1, hidden_size], [1, intermediate_size]]),
        (ScaleForm::Matrices, [[intermediate_size, hidden_size], [hidden_size, intermediate_size]]),
    ];
    let (scales, _) = forms.into_iter().find(|(_, blocks)| *blocks == [w13, w2])?;
    let of = [experts, top_k, hidden_size, intermediate_size];
    (gating == Gating::SILU).then(|| Sizes::new(of, scales, element, is_packed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;

    const MINIMAX: DecodeShape = DecodeShape {
        experts: 256,
        top_k: 8,
        hidden_size: 3072,
        intermediate_size: 768,
        numbers: WeightNumbers::Fp8Blocks { w13: [BLOCK; 2], w2: [BLOCK; 2] },
        gating: Gating::SILU,
    };

    #[test]
    fn a_layer_is_cut_into_tasks_that_fill_the_ring() {
        assert_eq!(tasks(&MINIMAX), Some([[16, 3072], [64, 768]]));
        let small =
            DecodeShape { experts: 16, hidden_size: 256, intermediate_size: 128, ..MINIMAX };
        assert_eq!(tasks(&small), Some([[64, 256], [128, 128]]));
        for numbers in [
            WeightNumbers::Fp8Blocks { w13: [1, 3072], w2: [1, 768] },
            WeightNumbers::Fp8Blocks { w13: [768, 3072], w2: [3072, 768] },
        ] {
            assert!(serves(&DecodeShape { numbers, ..MINIMAX }), "{numbers:?}");
        }
    }

    #[test]
    fn what_the_ring_cannot_hold_and_other_layers_are_not_served() {
        let gelu = Gating { activation: Activation::Gelu, biases: false };
        let biased = Gating { biases: true, ..Gating::SILU };
        let inside = WeightNumbers::Fp8Blocks { w13: [64, BLOCK], w2: [BLOCK, 64] };
        for other in [
            DecodeShape { hidden_size: 7168, ..MINIMAX },
            DecodeShape { hidden_size: 3000, ..MINIMAX },
            DecodeShape { intermediate_size: 704, ..MINIMAX },
            DecodeShape { top_k: 22, ..MINIMAX },
            DecodeShape { gating: gelu, ..MINIMAX },
            DecodeShape { gating: biased, ..MINIMAX },
            DecodeShape { numbers: inside, ..MINIMAX },
            DecodeShape { numbers: WeightNumbers::Plain, ..MINIMAX },
        ] {
            assert!(!serves(&other), "{other:?}");
        }
    }
}
