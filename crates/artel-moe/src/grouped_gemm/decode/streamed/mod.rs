//! Both products of up to eight tokens on weights of eight or four bits in one launch: for Hopper, in assembly.
//!
//! Few tokens are bound by reading weights, once each. A launch for each step leaves the memory idle
//! at both of its ends, and the FP8 matrix units drop what moves codes of the activation. So one
//! kernel does all: a block of threads stays on each multiprocessor, one warp of it copies weights
//! into a ring of stages in shared memory (copy engine), and eight warps widen them to float16 and
//! multiply on the float16 matrix units, where products of codes are exact. Activations of FP8 weights
//! are codes, too; those of integers and of four-bit weights keep sixteen bits, as float16 and a power of
//! two. Integers with a scale a row meet integers, whose matrix units are exact and widen nothing.
//!
//! The work is cut into tasks: 8 gates and their ups, or 16 output features of the second product, for
//! each strip of warps, of which each warp has one or two. Tasks are drawn from a counter, those of the
//! first product before those of the second. A task of the second product waits until its expert's activations are there; the
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
mod bytes;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod finish;
#[cfg(feature = "cuda")]
mod halves;
#[cfg(feature = "cuda")]
mod integers;
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
mod rows;
#[cfg(feature = "cuda")]
mod scales;
#[cfg(feature = "cuda")]
mod text;
#[cfg(feature = "cuda")]
mod words;

use super::{DecodeShape, WeightNumbers};
use crate::activation::Gating;
use crate::grouped_gemm::words::{WordCode, WordShape};
use crate::quant::BLOCK;
use layout::{ScaleForm, Sizes, WORD_STRIPS};

/// The only architecture that has the instructions.
pub(crate) const ARCHITECTURE: &str = "sm_90";
/// Most tokens of a batch: columns of the matrix instruction.
pub const TOKENS_MAX: usize = 8;

/// Experts of one layer that a kernel is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamedShape {
    /// Of weights as they are stored.
    Numbers(DecodeShape),
    /// Of weights in words.
    Words(WordShape),
}

impl From<DecodeShape> for StreamedShape {
    fn from(shape: DecodeShape) -> Self {
        Self::Numbers(shape)
    }
}

impl From<WordShape> for StreamedShape {
    fn from(shape: WordShape) -> Self {
        Self::Words(shape)
    }
}

impl StreamedShape {
    /// Whether there is a kernel for these experts.
    pub fn is_served(&self) -> bool {
        !self.cuts().is_empty()
    }

    /// The ways to cut the work into tasks, smaller tasks first: weight rows and input features of a task of
    /// each product.
    pub fn cuts(&self) -> Vec<[[usize; 2]; 2]> {
        let cut = |Sizes { first, second, .. }: Sizes| {
            [first, second].map(|product| [product.task_rows(), product.columns])
        };
        self.all_sizes("bf16", false).into_iter().map(cut).collect()
    }

    /// What kernels would be made for, one a cut; nothing for weights that they do not know.
    fn all_sizes(&self, element: &'static str, is_packed: bool) -> Vec<Sizes> {
        let ((scales, formats), gating, strips) = match self {
            Self::Numbers(shape) => match scale_form(shape) {
                Some(scales) => ((scales, None), shape.gating, &[1][..]),
                None => return Vec::new(),
            },
            Self::Words(shape) if shape.formats[0].code == WordCode::Int8Rows => {
                ((ScaleForm::Integers, None), shape.gating, &[1][..])
            }
            // Tasks of eight bits are twice as large.
            Self::Words(shape) if shape.formats[0].columns_per_word() == 4 => {
                ((ScaleForm::Words, Some(shape.formats)), shape.gating, &[1][..])
            }
            Self::Words(shape) => {
                ((ScaleForm::Words, Some(shape.formats)), shape.gating, &WORD_STRIPS[..])
            }
        };
        if gating != Gating::SILU {
            return Vec::new();
        }
        let of = |&strips| Sizes::new(self.lens(), (scales, formats), strips, (element, is_packed));
        strips.iter().map(of).filter(Sizes::fits).collect()
    }

    /// `E`, `K`, `H` and `I`.
    fn lens(&self) -> [usize; 4] {
        match *self {
            Self::Numbers(DecodeShape {
                experts, top_k, hidden_size, intermediate_size, ..
            })
            | Self::Words(WordShape { experts, top_k, hidden_size, intermediate_size, .. }) => {
                [experts, top_k, hidden_size, intermediate_size]
            }
        }
    }
}

/// What scales of FP8 cover, if the kernel knows it.
fn scale_form(shape: &DecodeShape) -> Option<ScaleForm> {
    let DecodeShape { hidden_size, intermediate_size, numbers, .. } = *shape;
    let WeightNumbers::Fp8Blocks { w13, w2 } = numbers else { return None };
    let forms = [
        (ScaleForm::Blocks, [[BLOCK; 2]; 2]),
        (ScaleForm::Channels, [[1, hidden_size], [1, intermediate_size]]),
        (ScaleForm::Matrices, [[intermediate_size, hidden_size], [hidden_size, intermediate_size]]),
    ];
    forms.into_iter().find(|(_, blocks)| *blocks == [w13, w2]).map(|(form, _)| form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::grouped_gemm::words::WordFormat;

    fn cuts(shape: DecodeShape) -> Vec<[[usize; 2]; 2]> {
        StreamedShape::from(shape).cuts()
    }

    fn serves(shape: DecodeShape) -> bool {
        StreamedShape::from(shape).is_served()
    }

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
        assert_eq!(cuts(MINIMAX), [[[16, 3072], [64, 768]]]);
        let small =
            DecodeShape { experts: 16, hidden_size: 256, intermediate_size: 128, ..MINIMAX };
        assert_eq!(cuts(small), [[[64, 256], [128, 128]]]);
        for numbers in [
            WeightNumbers::Fp8Blocks { w13: [1, 3072], w2: [1, 768] },
            WeightNumbers::Fp8Blocks { w13: [768, 3072], w2: [3072, 768] },
        ] {
            assert!(serves(DecodeShape { numbers, ..MINIMAX }), "{numbers:?}");
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
            assert!(!serves(other), "{other:?}");
        }
    }

    #[test]
    fn words_of_four_bits_are_served_where_a_lane_holds_its_activations() {
        let words = |code, group, [hidden_size, intermediate_size]: [usize; 2]| WordShape {
            experts: 256,
            top_k: 8,
            hidden_size,
            intermediate_size,
            formats: [WordFormat { code, group }; 2],
            gating: Gating::SILU,
        };
        let served = |shape: WordShape| StreamedShape::from(shape).is_served();
        let minimax = [3072, 768];
        let cuts = StreamedShape::from(words(WordCode::Nvfp4, 16, minimax)).cuts();
        assert_eq!(cuts, [[[16, 3072], [64, 768]], [[32, 3072], [128, 768]]]);
        for (code, group) in [(WordCode::Mxfp4, 32), (WordCode::Nvfp4, 16), (WordCode::Int4, 128)] {
            for sizes in [minimax, [2048, 768], [2048, 384], [384, 192], [256, 128]] {
                assert!(served(words(code, group, sizes)), "{code:?} {sizes:?}");
            }
            // Too many columns a warp, and rows that are no whole tasks.
            for sizes in [[7168, 768], [3072, 760], [3000, 768]] {
                assert!(!served(words(code, group, sizes)), "{code:?} {sizes:?}");
            }
        }
        // One cut of eight bits.
        for (code, sizes) in [
            (WordCode::Int8, [384, 192]),
            (WordCode::Int8Rows, [384, 128]),
            (WordCode::Mxfp8, [384, 192]),
        ] {
            let cuts = StreamedShape::from(words(code, 128, minimax)).cuts();
            assert_eq!(cuts, [[[16, 3072], [64, 768]]]);
            assert!(served(words(code, 128, sizes)));
            assert!(!served(words(code, 128, [7168, 768])));
        }
        // Rows of integers are not filled up.
        assert!(!served(words(WordCode::Int8Rows, 128, [384, 192])));
        let biased = Gating { biases: true, ..Gating::SILU };
        assert!(!served(WordShape { gating: biased, ..words(WordCode::Mxfp4, 32, minimax) }));
    }
}
