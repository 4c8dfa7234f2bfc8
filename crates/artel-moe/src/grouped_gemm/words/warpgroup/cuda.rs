//! Both products over many sorted pairs an expert on Hopper, in tiles as high as an expert has rows.

use std::marker::PhantomData;

use artel_device::cuda::{DeviceSliceMut, Kernels, Stream};

use super::super::WordShape;
use super::super::lanes::cuda::LaneRows;
use super::super::split::cuda::RowsInUse;
use super::super::workspace::{SplitBuffers, WordWorkspace};
use crate::MoeError;
use crate::grouped_gemm::decode::cuda::{AlignedStep, WeightSlices};
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::grouped_gemm::prefill::warpgroup::BLOCK_ROWS;
use crate::grouped_gemm::prefill::warpgroup::words::cuda::{HalfRows, WarpgroupWords, WordSlices};
use crate::grouped_gemm::prefill::warpgroup::words::{WordsTile, is_served};
use crate::weights::words::WordLayout;

/// The kernels of both products and of what brings rows into order.
#[derive(Debug, Clone)]
pub struct WarpgroupExperts<A> {
    shape: WordShape,
    layouts: [WordLayout; 2],
    order: LaneRows,
    products: [WarpgroupWords; 2],
    element: PhantomData<A>,
}

impl<A: HalfElement> WarpgroupExperts<A> {
    /// Asks for the kernels with these tiles of both products.
    ///
    /// # Errors
    /// [`MoeError::Config`] for experts without such kernels, [`MoeError::Cuda`] when one is missing and
    /// cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: WordShape,
        tiles: [WordsTile; 2],
    ) -> Result<Self, MoeError> {
        if !is_served(&shape) {
            let allowed =
                "four bits with SiLU, without biases, INT4 in groups of 128, features by 8";
            return Err(MoeError::config("experts", format!("{shape:?}"), allowed));
        }
        let WordShape { experts, top_k, hidden_size, intermediate_size, formats, .. } = shape;
        let [first, second] = formats;
        let layouts = [
            WordLayout { format: first, parts: 2, rows: intermediate_size, columns: hidden_size },
            WordLayout { format: second, parts: 1, rows: hidden_size, columns: intermediate_size },
        ];
        let order = LaneRows::load(kernels, A::NAME, (hidden_size, top_k), first)?;
        let mut product =
            |of: usize, out| WarpgroupWords::load(kernels, &layouts[of], experts, tiles[of], out);
        let products = [product(0, "bf16")?, product(1, A::NAME)?];
        Ok(Self { shape, layouts, order, products, element: PhantomData })
    }

    /// Runs both products over sorted pairs in blocks of [`BLOCK_ROWS`]; row `p` of `out` `[positions, H]` is
    /// position `p`.
    ///
    /// # Errors
    /// [`MoeError`] for slices that are too short or a launch that fails.
    pub fn launch(
        &self,
        stream: &Stream,
        step: &AlignedStep<'_, A>,
        workspace: &mut WordWorkspace,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let WordShape { top_k, hidden_size: hidden, .. } = self.shape;
        let positions = step.blocks.blocks * BLOCK_ROWS;
        step.blocks.check(BLOCK_ROWS)?;
        step.hidden_states.expect_len("hidden states", step.tokens * hidden)?;
        out.expect_len("rows of positions", positions * hidden)?;
        let WordWorkspace { x, inner_parts, inner_lanes, .. } = workspace;
        let inner = inner_lanes.as_mut().unwrap_or(inner_parts);
        inner.expect_rows(positions)?;
        self.shape.check_weights(&step.experts)?;
        if step.tokens == 0 || positions == 0 {
            return Ok(());
        }
        let rows = RowsInUse::of_step(step, top_k, positions);
        self.order.launch(stream, step.hidden_states, rows, x)?;
        let blocks = step.blocks.of_pairs(step.tokens * top_k);
        let work = (blocks, positions);
        let weights = self.weights(0, step.experts.w13)?;
        let (capacity, mut inner_rows) = (inner.rows, inner.parts.slice_mut());
        let into = (&mut inner_rows, capacity);
        self.products[0].launch(stream, work, half_rows(x), weights, into)?;
        let weights = self.weights(1, step.experts.w2)?;
        self.products[1].launch(stream, work, half_rows(inner), weights, (out, positions))
    }

    /// Words, scales, and behind these the scales of parts.
    fn weights<'a>(
        &self,
        product: usize,
        weights: WeightSlices<'a>,
    ) -> Result<WordSlices<'a>, MoeError> {
        let (layout, experts) = (&self.layouts[product], self.shape.experts);
        let scales = experts * layout.scales_per_expert();
        Ok(WordSlices {
            words: weights.numbers,
            scales: weights.scales,
            globals: weights.scales.range(scales, experts * layout.parts)?,
        })
    }
}

fn half_rows(rows: &SplitBuffers) -> HalfRows<'_> {
    HalfRows { numbers: rows.parts.slice().cast(), capacity: rows.rows }
}
