//! What several launches take.

use artel_device::cuda::DeviceSlice;
use bytemuck::Pod;

use super::DecodeShape;
use crate::MoeError;
use crate::activation::Gating;
use crate::grouped_gemm::prefill::cuda::{Blocks, RowPairs};

/// Weights of one product, all experts.
#[derive(Debug, Clone, Copy)]
pub struct WeightSlices<'a> {
    /// Stored numbers `[E, N, K]`.
    pub numbers: DeviceSlice<'a, u8>,
    /// Their scales, empty for plain numbers; see [`StackLayout`](crate::weights::StackLayout).
    pub scales: DeviceSlice<'a, f32>,
    /// The scale of all activations that they meet, where it was measured beforehand and these have
    /// a scale per row.
    pub input_scale: Option<f32>,
    /// Float32 `[E, N]`, present exactly where experts have biases.
    pub biases: Option<DeviceSlice<'a, f32>>,
}

/// Weights of both products.
#[derive(Debug, Clone, Copy)]
pub struct ExpertSlices<'a> {
    /// `[E, 2I, H]`.
    pub w13: WeightSlices<'a>,
    /// `[E, H, I]`.
    pub w2: WeightSlices<'a>,
}

/// An assignment in the aligned form.
#[derive(Debug, Clone, Copy)]
pub struct BlockSlices<'a> {
    /// Pairs by position; at least `blocks` times the rows of a block.
    pub sorted_token_ids: DeviceSlice<'a, i32>,
    /// Expert of each block; at least `blocks`.
    pub expert_ids: DeviceSlice<'a, i32>,
    /// One number.
    pub num_tokens_post_padded: DeviceSlice<'a, i32>,
    /// Blocks that there can be at most.
    pub blocks: usize,
}

impl<'a> BlockSlices<'a> {
    /// What products over rows in order read of them; `count` pairs were sorted.
    pub(crate) fn of_pairs(&self, count: usize) -> Blocks<'a> {
        let Self { sorted_token_ids, expert_ids, num_tokens_post_padded, .. } = *self;
        let pairs = Some(RowPairs { sorted_token_ids, count });
        Blocks { expert_ids, num_tokens_post_padded, pairs }
    }

    pub(crate) fn check(&self, rows: usize) -> Result<(), MoeError> {
        self.sorted_token_ids.expect_len("sorted token ids", self.blocks * rows)?;
        self.expert_ids.expect_len("experts of blocks", self.blocks)?;
        self.num_tokens_post_padded.expect_len("padded rows", 1)?;
        Ok(())
    }
}

impl WeightSlices<'_> {
    /// Checks lengths for a product with `features_out * features_in` numbers an expert.
    pub(super) fn check<A: Pod>(
        &self,
        experts: usize,
        [features_out, features_in]: [usize; 2],
        scale_block: Option<[usize; 2]>,
    ) -> Result<(), MoeError> {
        let numbers = experts * features_out * features_in;
        let (bytes, scales) = match scale_block {
            None => (size_of::<A>(), 0),
            Some([rows, columns]) => {
                (1, experts * features_out.div_ceil(rows) * features_in.div_ceil(columns))
            }
        };
        self.numbers.expect_len("weights of the experts (bytes)", numbers * bytes)?;
        self.scales.expect_len("scales of the experts", scales)?;
        Ok(())
    }
}

impl ExpertSlices<'_> {
    pub(super) fn check<A: Pod>(&self, shape: &DecodeShape) -> Result<(), MoeError> {
        let [w13, w2] = shape.scale_blocks();
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        self.w13.check::<A>(shape.experts, [2 * inner, hidden], w13)?;
        self.w2.check::<A>(shape.experts, [hidden, inner], w2)?;
        self.check_biases(&shape.gating, shape.experts, [2 * inner, hidden])
    }

    /// Checks that there are biases exactly where kernels add some, and how many.
    pub(crate) fn check_biases(
        &self,
        gating: &Gating,
        experts: usize,
        features_out: [usize; 2],
    ) -> Result<(), MoeError> {
        for (weights, features_out) in [self.w13, self.w2].iter().zip(features_out) {
            match weights.biases {
                Some(biases) if gating.biases => {
                    biases.expect_len("biases of the experts", experts * features_out)?;
                }
                None if !gating.biases => {}
                other => {
                    let found = if other.is_some() { "given" } else { "missing" };
                    let allowed = "given exactly where the layer has some";
                    return Err(MoeError::config("biases of the experts", found, allowed));
                }
            }
        }
        Ok(())
    }
}

/// A number as kernels take their constants.
pub(super) fn constant(value: usize) -> i32 {
    i32::try_from(value).expect("this is a bug: a size of a layer beyond 31 bits")
}
