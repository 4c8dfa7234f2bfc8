//! Launches of the direct form.

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::super::arguments::{ExpertSlices, constant};
use super::super::fp8_direct::cuda::fp8_direct;
use super::super::gating::cuda::{gating_constants, with_biases};
use super::super::plain_direct::cuda::plain_direct;
use super::super::quantize::cuda::{QuantizeRows, Release};
use super::super::workspace::DecodeWorkspace;
use super::super::{DecodeShape, DecodeTile, WeightNumbers};
use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::packing::cuda::DeviceRouting;
use crate::quant::Element;
use crate::quant::activations::ScaleBounds;

/// What the kernels of the direct form are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectForm {
    /// Where ids, and with them weights, come from.
    pub ids: IdForm,
    /// Tokens with the same expert share one block. Without it every pair has its own.
    pub shared: bool,
    /// The second product sums the pairs of each token as well.
    pub sum: bool,
}

/// Both products of the direct form.
#[derive(Debug, Clone)]
pub struct DirectExperts<A> {
    shape: DecodeShape,
    form: DirectForm,
    tiles: [DecodeTile; 2],
    first: Kernel,
    second: Kernel,
    quantize: Option<[QuantizeRows; 2]>,
    element: PhantomData<A>,
}

/// What is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct DirectStep<'a, A: Element> {
    /// `[T, H]`.
    pub hidden_states: DeviceSlice<'a, A>,
    /// Written by what ran before on the stream. The second product reads ids before it waits:
    /// every launch ahead of it has waited for what wrote them.
    pub routing: DeviceRouting<'a>,
    /// `T`.
    pub tokens: usize,
    /// All experts.
    pub experts: ExpertSlices<'a>,
}

/// Where results go.
#[derive(Debug)]
pub enum DirectOut<'a, A: Element> {
    /// Rows `[T * K, H]`, one for each pair.
    Rows(DeviceSliceMut<'a, A>),
    /// The same, and their sums `[T, H]` with the router's weights.
    Sum {
        /// `[T * K, H]`.
        rows: DeviceSliceMut<'a, A>,
        /// `[T, H]`.
        out: DeviceSliceMut<'a, A>,
    },
}

impl<A: Element> DirectExperts<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Config`] for tiles that do not fit, [`MoeError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: DecodeShape,
        form: DirectForm,
        tiles: [DecodeTile; 2],
    ) -> Result<Self, MoeError> {
        let limits = shape.tile_limits();
        tiles[0].check(limits[0])?;
        tiles[1].check(limits[1])?;
        if tiles[0].rows != tiles[1].rows {
            let allowed = "as many as of the first product";
            return Err(MoeError::config("rows of the second tile", tiles[1].rows, allowed));
        }
        if shape.gating.biases && !form.sum {
            let allowed = "sums of them where experts have biases";
            return Err(MoeError::config("output of a direct product", "rows of pairs", allowed));
        }
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        let mut load = |element, columns, shared, release| {
            QuantizeRows::load(kernels, element, columns, shared, release)
        };
        let quantize = match shape.granularities() {
            [Some(of_rows), Some(of_inner)] => Some([
                load(A::NAME, hidden, of_rows, Release::AfterWait)?,
                load("f32", inner, of_inner, Release::BeforeWait)?,
            ]),
            _ => None,
        };
        let first = kernels.get(&first_spec::<A>(&shape, form, tiles[0]))?;
        let second = kernels.get(&second_spec::<A>(&shape, form, tiles[1]))?;
        Ok(Self { shape, form, tiles, first, second, quantize, element: PhantomData })
    }

    /// Rows of the workspace that a step of `tokens` tokens takes.
    pub fn workspace_rows(&self, tokens: usize) -> usize {
        tokens * self.shape.top_k * self.tiles[0].rows
    }

    /// Runs both products.
    ///
    /// # Errors
    /// [`MoeError`] for more tokens than the tile has rows, slices that are too short, an output
    /// that the kernels were not made for, or a launch that fails.
    pub fn launch(
        &self,
        stream: &Stream,
        step: &DirectStep<'_, A>,
        workspace: &mut DecodeWorkspace,
        out: &mut DirectOut<'_, A>,
    ) -> Result<(), MoeError> {
        self.check(step, workspace, out)?;
        if step.tokens == 0 {
            return Ok(());
        }
        let rows = self.tiles[0].rows;
        if let Some([quantize, _]) = &self.quantize {
            let (codes, scales) = (workspace.codes.slice_mut(), workspace.scales.slice_mut());
            let x = step.hidden_states;
            let bounds = ScaleBounds::HIDDEN.or_given(step.experts.w13.input_scale);
            quantize.launch(stream, x, step.tokens, (codes, scales, rows), bounds)?;
        }
        self.launch_first(stream, step, workspace)?;
        let all = self.workspace_rows(step.tokens);
        if let Some([_, quantize]) = &self.quantize {
            let codes = workspace.inner_codes.slice_mut();
            let scales = workspace.inner_scales.slice_mut();
            let inner = workspace.inner.slice();
            let bounds = ScaleBounds::ACTIVATED.or_given(step.experts.w2.input_scale);
            quantize.launch(stream, inner, all, (codes, scales, all), bounds)?;
        }
        self.launch_second(stream, step, workspace, out)
    }

    fn check(
        &self,
        step: &DirectStep<'_, A>,
        workspace: &DecodeWorkspace,
        out: &DirectOut<'_, A>,
    ) -> Result<(), MoeError> {
        let (hidden, tokens) = (self.shape.hidden_size, step.tokens);
        let pairs = tokens * self.shape.top_k;
        if tokens > self.tiles[0].rows {
            let allowed = format!("at most {} in this tile", self.tiles[0].rows);
            return Err(MoeError::config("tokens of a direct step", tokens, allowed));
        }
        step.hidden_states.expect_len("hidden states", tokens * hidden)?;
        step.routing.check(self.form.ids, pairs)?;
        step.experts.check::<A>(&self.shape)?;
        workspace.check(&self.shape, [tokens, self.tiles[0].rows], self.workspace_rows(tokens))?;
        match (out, self.form.sum) {
            (DirectOut::Rows(rows), false) => rows.expect_len("rows of pairs", pairs * hidden)?,
            (DirectOut::Sum { rows, out }, true) => {
                rows.expect_len("rows of pairs", pairs * hidden)?;
                out.expect_len("output hidden states", tokens * hidden)?;
            }
            (DirectOut::Rows(_), true) => {
                return Err(MoeError::config("output", "rows", "sums: the kernels make sums"));
            }
            (DirectOut::Sum { .. }, false) => {
                return Err(MoeError::config("output", "sums", "rows: the kernels make rows"));
            }
        }
        Ok(())
    }

    fn launch_first(
        &self,
        stream: &Stream,
        step: &DirectStep<'_, A>,
        workspace: &mut DecodeWorkspace,
    ) -> Result<(), MoeError> {
        let DecodeShape { experts, top_k, hidden_size, intermediate_size: inner, .. } = self.shape;
        let (tokens, rows) = (step.tokens, self.tiles[0].rows);
        let w13 = step.experts.w13;
        let mut arguments = Arguments::new().slice_mut(&workspace.inner.slice_mut());
        arguments = match self.shape.numbers {
            WeightNumbers::Plain => arguments.tensor(step.hidden_states, &[tokens, hidden_size]),
            WeightNumbers::Fp8Blocks { .. } => arguments
                .tensor(workspace.codes.slice(), &[tokens, hidden_size])
                .tensor(workspace.scales.slice(), &[hidden_size.div_ceil(128), rows]),
        };
        arguments = arguments.tensor(w13.numbers, &[experts, 2, inner, hidden_size]);
        if self.quantize.is_some() {
            arguments = arguments.slice(w13.scales);
        }
        let arguments = with_biases(step.routing.ids(arguments).size(tokens), w13.biases);
        let grid = [tokens * top_k, inner.div_ceil(self.tiles[0].columns), 1];
        // SAFETY: the arguments are the kernel's; `check` has compared all lengths.
        unsafe { self.first.launch(stream, grid, arguments) }?;
        Ok(())
    }

    fn launch_second(
        &self,
        stream: &Stream,
        step: &DirectStep<'_, A>,
        workspace: &mut DecodeWorkspace,
        out: &mut DirectOut<'_, A>,
    ) -> Result<(), MoeError> {
        let DecodeShape { experts, top_k, hidden_size, intermediate_size: inner, .. } = self.shape;
        let all = self.workspace_rows(step.tokens);
        let w2 = step.experts.w2;
        let mut arguments = match out {
            DirectOut::Rows(rows) => Arguments::new().no_slice().slice_mut(rows),
            DirectOut::Sum { rows, out } => Arguments::new().slice_mut(out).slice_mut(rows),
        };
        arguments = arguments.slice_mut(&workspace.counters.slice_mut());
        arguments = match self.shape.numbers {
            WeightNumbers::Plain => arguments.tensor(workspace.inner.slice(), &[all, inner]),
            WeightNumbers::Fp8Blocks { .. } => arguments
                .tensor(workspace.inner_codes.slice(), &[all, inner])
                .tensor(workspace.inner_scales.slice(), &[inner.div_ceil(128), all]),
        };
        arguments = arguments.tensor(w2.numbers, &[experts, 1, hidden_size, inner]);
        if self.quantize.is_some() {
            arguments = arguments.slice(w2.scales);
        }
        arguments = step.routing.ids(arguments);
        arguments = match out {
            DirectOut::Rows(_) => arguments.no_slice(),
            DirectOut::Sum { .. } => step.routing.weights(arguments),
        };
        let grid = [step.tokens * top_k, hidden_size.div_ceil(self.tiles[1].columns), 1];
        let arguments = with_biases(arguments.size(step.tokens), w2.biases);
        // SAFETY: the arguments are the kernel's; `check` has compared all lengths.
        unsafe { self.second.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Constants that both products take after their sizes.
fn form_constants(shape: &DecodeShape, form: DirectForm) -> [i32; 5] {
    let slots = constant(shape.top_k.next_power_of_two());
    let shared = i32::from(form.shared);
    [constant(shape.experts), constant(shape.top_k), slots, shared, form.ids.packed()]
}

fn first_spec<A: Element>(shape: &DecodeShape, form: DirectForm, tile: DecodeTile) -> KernelSpec {
    let [hidden, inner] = [shape.hidden_size, shape.intermediate_size].map(constant);
    let [rows, columns, depth] = [tile.rows, tile.columns, tile.depth].map(constant);
    let sizes = [rows, 2 * columns, columns, depth, inner, hidden];
    let weights = [2 * inner * hidden, inner * hidden, hidden, 1];
    let spec = match shape.numbers {
        WeightNumbers::Plain => KernelSpec::new(
            "grouped_gemm/direct_gate_up",
            plain_direct::__module_ast_self,
            "plain_direct",
            "direct_first",
        )
        .element(A::NAME)
        .generics(sizes)
        .pointers(["out", "ids"]),
        WeightNumbers::Fp8Blocks { w13, .. } => KernelSpec::new(
            "grouped_gemm/direct_gate_up",
            fp8_direct::__module_ast_self,
            "fp8_direct",
            "direct_first",
        )
        .generics(sizes)
        .generics(w13.map(constant))
        .pointers(["out", "w_scales", "ids"])
        .tensor("x_scales", &[1, 1], &[rows, 1]),
    };
    spec.generics(form_constants(shape, form))
        .generics(gating_constants(&shape.gating))
        .pointers(["biases"])
        .tensor("x", &[1, 1], &[hidden, 1])
        .tensor("w", &[1; 4], &weights)
        .warps(tile.warps)
        .occupancy(tile.occupancy)
        .programmatic()
}

fn second_spec<A: Element>(shape: &DecodeShape, form: DirectForm, tile: DecodeTile) -> KernelSpec {
    let [hidden, inner] = [shape.hidden_size, shape.intermediate_size].map(constant);
    let sizes = [tile.rows, tile.columns, tile.depth].map(constant);
    let weights = [hidden * inner, hidden * inner, inner, 1];
    let spec = match shape.numbers {
        WeightNumbers::Plain => KernelSpec::new(
            "grouped_gemm/direct_down",
            plain_direct::__module_ast_self,
            "plain_direct",
            "direct_second",
        )
        .element(A::NAME)
        .generics(sizes)
        .generics([hidden, inner])
        .pointers(["out", "rows_out", "counters", "ids", "weights"]),
        WeightNumbers::Fp8Blocks { w2, .. } => KernelSpec::new(
            "grouped_gemm/direct_down",
            fp8_direct::__module_ast_self,
            "fp8_direct",
            "direct_second",
        )
        .element(A::NAME)
        .generics(sizes)
        .generics([hidden, inner])
        .generics(w2.map(constant))
        .pointers(["out", "rows_out", "counters", "w_scales", "ids", "weights"])
        .tensor("x_scales", &[1, 1], &[-1, 1]),
    };
    spec.generics(form_constants(shape, form))
        .generics([i32::from(form.sum), i32::from(shape.gating.biases)])
        .pointers(["biases"])
        .tensor("x", &[1, 1], &[inner, 1])
        .tensor("w", &[1; 4], &weights)
        .warps(tile.warps)
        .occupancy(tile.occupancy)
        .programmatic()
}
