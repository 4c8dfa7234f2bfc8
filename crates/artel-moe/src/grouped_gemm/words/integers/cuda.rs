//! Launches of both products of many rows an expert on integers, where activations are integers, too.

use artel_device::cuda::{DeviceSliceMut, Kernels, Stream};

use super::super::WordShape;
use super::super::split::cuda::{RowSource, RowsInUse, SplitRows, SplitShape};
use super::super::workspace::{RowForm, SplitBuffers, WordWorkspace};
use crate::MoeError;
use crate::activation::Gating;
use crate::grouped_gemm::decode::cuda::{AlignedStep, WeightSlices};
use crate::grouped_gemm::prefill::PrefillForm;
use crate::grouped_gemm::prefill::warpgroup::BLOCK_ROWS;
use crate::grouped_gemm::prefill::warpgroup::cuda::{IntegerOperand, WarpgroupIntegerGemm};
use crate::quant::Element;
use crate::weights::StackLayout;

/// Both products over sorted pairs, in tiles as high as an expert has rows.
#[derive(Debug, Clone)]
pub struct IntegerExperts<A> {
    shape: WordShape,
    split: SplitRows,
    // Rounded to 16 bits, activations would move codes of the second product.
    first: WarpgroupIntegerGemm<f32>,
    split_inner: SplitRows,
    second: WarpgroupIntegerGemm<A>,
}

impl<A: Element> IntegerExperts<A> {
    /// Asks for the kernels of experts whose stacks are of `layouts`, in tiles of at most so many rows.
    ///
    /// # Errors
    /// [`MoeError::Config`] for other weights and other activations than SiLU without biases,
    /// [`MoeError::Cuda`] when a kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: WordShape,
        layouts: [&StackLayout; 2],
        rows_max: [usize; 2],
    ) -> Result<Self, MoeError> {
        if shape.gating != Gating::SILU {
            let found = format!("{:?}", shape.gating);
            return Err(MoeError::config("gating of integers", found, "SiLU without biases"));
        }
        let split = |element, columns, product: usize| {
            let format = shape.formats[product];
            SplitShape { element, columns, format, form: RowForm::Parts }
        };
        let of_hidden = split(A::NAME, shape.hidden_size, 0);
        let of_inner = split(f32::NAME, shape.intermediate_size, 1);
        let source = RowSource::TokensOfPositions(shape.top_k);
        let [w13, w2] = layouts;
        Ok(Self {
            shape,
            split: SplitRows::load(kernels, of_hidden, source)?,
            first: WarpgroupIntegerGemm::load(
                kernels,
                w13,
                PrefillForm::SiluAndMultiply,
                rows_max[0],
            )?,
            split_inner: SplitRows::load(kernels, of_inner, RowSource::Positions)?,
            second: WarpgroupIntegerGemm::load(kernels, w2, PrefillForm::Sums, rows_max[1])?,
        })
    }

    /// Runs both products over sorted pairs; row `p` of `out` `[positions, H]` is position `p`.
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
        let WordShape { top_k, hidden_size, intermediate_size, .. } = self.shape;
        let positions = step.blocks.blocks * BLOCK_ROWS;
        step.blocks.check(BLOCK_ROWS)?;
        step.hidden_states.expect_len("hidden states", step.tokens * hidden_size)?;
        self.shape.check_weights(&step.experts)?;
        workspace.inner_parts.expect_rows(positions)?;
        if step.tokens == 0 || positions == 0 {
            return Ok(());
        }
        let rows = RowsInUse::of_step(step, top_k, positions);
        let blocks = step.blocks.of_pairs(step.tokens * top_k);
        self.split.launch(stream, step.hidden_states, rows, &mut workspace.x)?;
        let mut inner = workspace.inner.slice_mut();
        let mut inner = inner.range_mut(0, positions * intermediate_size)?;
        let (x, w13) = (of_rows(&workspace.x), of_weights(step.experts.w13));
        self.first.launch(stream, blocks, x, w13, &mut inner)?;
        self.split_inner.launch(stream, inner.as_slice(), rows, &mut workspace.inner_parts)?;
        let (x, w2) = (of_rows(&workspace.inner_parts), of_weights(step.experts.w2));
        let mut out = out.range_mut(0, positions * hidden_size)?;
        self.second.launch(stream, blocks, x, w2, &mut out)
    }
}

fn of_rows(rows: &SplitBuffers) -> IntegerOperand<'_> {
    IntegerOperand { numbers: rows.parts.slice(), scales: rows.scales.slice() }
}

fn of_weights(weights: WeightSlices<'_>) -> IntegerOperand<'_> {
    IntegerOperand { numbers: weights.numbers.cast(), scales: weights.scales }
}
