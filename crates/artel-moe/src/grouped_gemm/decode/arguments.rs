//! What several launches take.

use artel_device::cuda::DeviceSlice;
use bytemuck::Pod;

use super::DecodeShape;
use crate::MoeError;

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

impl BlockSlices<'_> {
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
        self.w2.check::<A>(shape.experts, [hidden, inner], w2)
    }
}

/// A number as kernels take their constants.
pub(super) fn constant(value: usize) -> i32 {
    i32::try_from(value).expect("this is a bug: a size of a layer beyond 31 bits")
}
