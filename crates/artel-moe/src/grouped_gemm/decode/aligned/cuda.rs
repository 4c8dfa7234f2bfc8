//! Launches of the aligned form.

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::super::arguments::{BlockSlices, ExpertSlices, constant};
use super::super::fp8_aligned::cuda::fp8_aligned;
use super::super::fp8_rows::cuda::fp8_rows;
use super::super::gating::cuda::{gating_constants, with_biases};
use super::super::plain_aligned::cuda::plain_aligned;
use super::super::quantize::cuda::{QuantizeRows, Release};
use super::super::split_aligned::cuda::split_aligned;
use super::super::workspace::DecodeWorkspace;
use super::super::{DecodeShape, DecodeTile, WeightNumbers};
use crate::MoeError;
use crate::quant::activations::cuda::ROW_COLUMNS_MAX;
use crate::quant::activations::{Granularity, ScaleBounds};
use crate::quant::{BLOCK, Element};

/// Both products of the aligned form.
#[derive(Debug, Clone)]
pub struct AlignedExperts<A> {
    shape: DecodeShape,
    tiles: [DecodeTile; 2],
    first: Kernel,
    second: Kernel,
    codes: Codes,
    quantize: Option<QuantizeRows>,
    /// Where the first product's tiles are not those of the quantisation.
    quantize_inner: Option<QuantizeRows>,
    element: PhantomData<A>,
}

/// What is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct AlignedStep<'a, A: Element> {
    /// `[T, H]`.
    pub hidden_states: DeviceSlice<'a, A>,
    /// Their codes, where somebody has made them; only for layers that
    /// [read such](AlignedExperts::reads_codes).
    pub codes: Option<CodedRows<'a>>,
    /// `T`.
    pub tokens: usize,
    /// Blocks of as many rows as the tiles have.
    pub blocks: BlockSlices<'a>,
    /// All experts.
    pub experts: ExpertSlices<'a>,
}

/// Rows of e4m3 codes with a scale for 128 columns.
#[derive(Debug, Clone, Copy)]
pub struct CodedRows<'a> {
    /// `[T, H]`.
    pub codes: DeviceSlice<'a, u8>,
    /// `[ceil(H / 128), stride]`, as [`ScaleBounds::HIDDEN`] has them.
    pub scales: DeviceSlice<'a, f32>,
    /// Scales between two groups, at least `T`.
    pub stride: usize,
}

impl<A: Element> AlignedExperts<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Config`] for tiles that do not fit, [`MoeError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: DecodeShape,
        tiles: [DecodeTile; 2],
    ) -> Result<Self, MoeError> {
        let limits = shape.tile_limits();
        tiles[0].check(limits[0])?;
        tiles[1].check(limits[1])?;
        if tiles[0].rows != tiles[1].rows {
            let allowed = "as many as of the first product";
            return Err(MoeError::config("rows of the second tile", tiles[1].rows, allowed));
        }
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        let codes = Codes::of(&shape, tiles[0]);
        if codes == Codes::OfRows && inner > ROW_COLUMNS_MAX {
            let allowed = format!("at most {ROW_COLUMNS_MAX} with one scale a row");
            return Err(MoeError::config("columns of quantised rows", inner, allowed));
        }
        let mut quantize = |shared: Option<Granularity>, element, columns, release| {
            let load = |shared| QuantizeRows::load(kernels, element, columns, shared, release);
            shared.map(load).transpose()
        };
        let [of_rows, of_inner] = shape.granularities();
        let rows = quantize(of_rows, A::NAME, hidden, Release::AfterWait)?;
        let apart = of_inner.filter(|_| codes == Codes::Apart);
        let quantize_inner = quantize(apart, "f32", inner, Release::BeforeWait)?;
        let first = kernels.get(&first_spec::<A>(&shape, tiles[0]))?;
        let second = kernels.get(&second_spec::<A>(&shape, tiles[1]))?;
        let element = PhantomData;
        Ok(Self { shape, tiles, first, second, codes, quantize: rows, quantize_inner, element })
    }

    /// Rows of a block.
    pub fn block_size(&self) -> usize {
        self.tiles[0].rows
    }

    /// Whether hidden states are read as [`CodedRows`], unless their scale is given.
    pub fn reads_codes(&self) -> bool {
        self.shape.granularities()[0] == Some(Granularity::Groups)
    }

    /// Runs both products; row `p` of `out` `[positions, H]` is position `p`.
    ///
    /// # Errors
    /// [`MoeError`] for slices that are too short or a launch that fails.
    pub fn launch(
        &self,
        stream: &Stream,
        step: &AlignedStep<'_, A>,
        workspace: &mut DecodeWorkspace,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let positions = step.blocks.blocks * self.tiles[0].rows;
        let (hidden, tokens) = (self.shape.hidden_size, step.tokens);
        step.blocks.check(self.tiles[0].rows)?;
        step.hidden_states.expect_len("hidden states", tokens * hidden)?;
        step.experts.check::<A>(&self.shape)?;
        workspace.check(&self.shape, [tokens, 1], positions)?;
        workspace.counters.slice().expect_len("counters of blocks", step.blocks.blocks)?;
        out.expect_len("rows of positions", positions * hidden)?;
        constant(tokens * hidden);
        if tokens == 0 || positions == 0 {
            return Ok(());
        }
        let codes = step.codes.filter(|_| step.experts.w13.input_scale.is_none());
        if let Some(CodedRows { codes, scales, stride }) = codes {
            let groups = hidden.div_ceil(BLOCK);
            codes.expect_len("codes of hidden states", tokens * hidden)?;
            scales.expect_len("scales of hidden states", (groups - 1) * stride + tokens)?;
            assert!(self.reads_codes(), "this is a bug: codes for a layer that makes its own");
        }
        if let (Some(quantize), None) = (&self.quantize, codes) {
            let (codes, scales) = (workspace.codes.slice_mut(), workspace.scales.slice_mut());
            let x = step.hidden_states;
            let bounds = ScaleBounds::HIDDEN.or_given(step.experts.w13.input_scale);
            quantize.launch(stream, x, tokens, (codes, scales, tokens), bounds)?;
        }
        self.launch_first(stream, step, codes, workspace)?;
        if let Some(quantize) = &self.quantize_inner {
            let codes = workspace.inner_codes.slice_mut();
            let scales = workspace.inner_scales.slice_mut();
            let inner = workspace.inner.slice();
            let bounds = ScaleBounds::ACTIVATED.or_given(step.experts.w2.input_scale);
            quantize.launch(stream, inner, positions, (codes, scales, positions), bounds)?;
        }
        self.launch_second(stream, step, workspace, out)
    }

    fn launch_first(
        &self,
        stream: &Stream,
        step: &AlignedStep<'_, A>,
        codes: Option<CodedRows<'_>>,
        workspace: &mut DecodeWorkspace,
    ) -> Result<(), MoeError> {
        let own = CodedRows {
            codes: workspace.codes.slice(),
            scales: workspace.scales.slice(),
            stride: step.tokens,
        };
        let x = codes.unwrap_or(own);
        let DecodeShape { experts, top_k, hidden_size, intermediate_size: inner, .. } = self.shape;
        let (blocks, w13) = (&step.blocks, step.experts.w13);
        let positions = blocks.blocks * self.tiles[0].rows;
        let weights = [experts, 2, inner, hidden_size];
        let arguments = match self.shape.numbers {
            WeightNumbers::Plain => Arguments::new()
                .slice_mut(&workspace.inner.slice_mut())
                .slice(step.hidden_states)
                .tensor(w13.numbers, &weights),
            WeightNumbers::Fp8Blocks { .. } => {
                let out = match self.codes {
                    Codes::Apart => workspace.inner.slice_mut(),
                    Codes::OfTile | Codes::OfRows => workspace.inner_codes.slice_mut(),
                };
                let arguments =
                    Arguments::new().slice_mut(&out).slice_mut(&workspace.inner_scales.slice_mut());
                let arguments = match self.codes {
                    Codes::OfRows => arguments
                        .slice_mut(&workspace.inner.slice_mut())
                        .slice_mut(&workspace.counters.slice_mut()),
                    Codes::Apart | Codes::OfTile => arguments,
                };
                arguments
                    .slice(x.codes)
                    .slice(x.scales)
                    .tensor(w13.numbers, &weights)
                    .slice(w13.scales)
            }
        };
        let arguments = arguments
            .slice(blocks.sorted_token_ids)
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded)
            .size(step.tokens * top_k);
        let arguments = match (self.shape.numbers, self.codes) {
            (WeightNumbers::Plain, _) => arguments,
            (_, Codes::OfRows) => {
                let bounds = ScaleBounds::ACTIVATED.or_given(step.experts.w2.input_scale);
                arguments.size(x.stride).f32(bounds.least).f32(bounds.most)
            }
            (_, Codes::Apart | Codes::OfTile) => arguments.size(x.stride).size(positions),
        };
        let arguments = with_biases(arguments, w13.biases);
        let grid = [inner.div_ceil(self.tiles[0].columns), blocks.blocks, 1];
        // SAFETY: the arguments are the kernel's; `launch` has compared all lengths.
        unsafe { self.first.launch(stream, grid, arguments) }?;
        Ok(())
    }

    fn launch_second(
        &self,
        stream: &Stream,
        step: &AlignedStep<'_, A>,
        workspace: &DecodeWorkspace,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let DecodeShape { experts, hidden_size, intermediate_size: inner, .. } = self.shape;
        let (blocks, w2) = (&step.blocks, step.experts.w2);
        let positions = blocks.blocks * self.tiles[1].rows;
        let arguments = Arguments::new().slice_mut(out);
        let weights = [experts, 1, hidden_size, inner];
        let arguments = match self.shape.numbers {
            WeightNumbers::Plain if self.tiles[1].split_rows().is_some() => {
                arguments.slice(workspace.inner.slice()).tensor(w2.numbers, &weights)
            }
            WeightNumbers::Plain => arguments
                .tensor(workspace.inner.slice(), &[positions, inner])
                .tensor(w2.numbers, &weights),
            WeightNumbers::Fp8Blocks { .. } => arguments
                .tensor(workspace.inner_codes.slice(), &[positions, inner])
                .tensor(workspace.inner_scales.slice(), &[inner.div_ceil(BLOCK), positions])
                .tensor(w2.numbers, &weights)
                .slice(w2.scales),
        };
        let arguments = arguments
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded)
            .slice(blocks.sorted_token_ids)
            .size(step.tokens * self.shape.top_k);
        let grid = [hidden_size.div_ceil(self.tiles[1].columns), blocks.blocks, 1];
        // SAFETY: the arguments are the kernel's; `launch` has compared all lengths.
        unsafe { self.second.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Who makes codes of activated rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codes {
    /// A launch of its own, or nobody where rows are not quantised.
    Apart,
    /// The first product: a tile is one group of the quantisation.
    OfTile,
    /// The first product when all tiles of a block are there: rows have one scale each.
    OfRows,
}

impl Codes {
    fn of(shape: &DecodeShape, tile: DecodeTile) -> Self {
        match shape.granularities()[1] {
            Some(Granularity::Groups) if tile.columns == BLOCK => Self::OfTile,
            Some(Granularity::Rows) => Self::OfRows,
            _ => Self::Apart,
        }
    }
}

/// Numbers that the last tile of a block has in registers when it makes codes.
const NUMBERS_AT_ONCE: usize = 8192;

/// Rows whose codes are made at once, and columns that hold a row.
fn rows_at_once(shape: &DecodeShape, tile: DecodeTile) -> [usize; 2] {
    let width = shape.intermediate_size.next_power_of_two();
    [(NUMBERS_AT_ONCE / width).clamp(1, tile.rows), width]
}

fn first_spec<A: Element>(shape: &DecodeShape, tile: DecodeTile) -> KernelSpec {
    let [hidden, inner] = [shape.hidden_size, shape.intermediate_size].map(constant);
    let [rows, columns, depth] = [tile.rows, tile.columns, tile.depth].map(constant);
    let [experts, top_k] = [shape.experts, shape.top_k].map(constant);
    let operation = "grouped_gemm/aligned_gate_up";
    let spec = match (shape.numbers, tile.split_rows()) {
        (WeightNumbers::Plain, Some(rows)) => {
            let module = split_aligned::__module_ast_self;
            KernelSpec::new(operation, module, "split_aligned", "split_first")
                .element(A::NAME)
                .generics(rows.map(constant))
                .generics([columns, depth, inner, hidden, experts, top_k])
        }
        (WeightNumbers::Plain, None) => {
            let module = plain_aligned::__module_ast_self;
            KernelSpec::new(operation, module, "plain_aligned", "aligned_first")
                .element(A::NAME)
                .generics([rows, columns, depth, inner, hidden, experts, top_k])
        }
        (WeightNumbers::Fp8Blocks { w13: [scale_rows, scale_columns], .. }, _) => {
            let sizes = [rows, columns, depth, inner, hidden];
            let scales = [scale_rows, scale_columns].map(constant);
            let spec = match Codes::of(shape, tile) {
                Codes::OfRows => {
                    let module = fp8_rows::__module_ast_self;
                    KernelSpec::new(operation, module, "fp8_rows", "aligned_first_to_rows")
                        .generics(sizes.into_iter().chain(scales).chain([experts, top_k]))
                        .generics(rows_at_once(shape, tile).map(constant))
                        .pointers(["rows_out", "counters"])
                }
                codes => {
                    let (module, quantizes) =
                        (fp8_aligned::__module_ast_self, codes == Codes::OfTile);
                    KernelSpec::new(operation, module, "fp8_aligned", "aligned_first")
                        .element(if quantizes { "f8e4m3fn" } else { "f32" })
                        .generics(sizes.into_iter().chain(scales))
                        .generics([experts, top_k, i32::from(quantizes)])
                }
            };
            spec.pointers(["out_scales", "x_scales", "w_scales"])
        }
    };
    spec.generics(gating_constants(&shape.gating))
        .pointers([
            "out",
            "x",
            "sorted_token_ids",
            "expert_ids",
            "num_tokens_post_padded",
            "biases",
        ])
        .tensor("w", &[1; 4], &[2 * inner * hidden, inner * hidden, hidden, 1])
        .warps(tile.warps)
        .occupancy(tile.occupancy)
        .programmatic()
}

fn second_spec<A: Element>(shape: &DecodeShape, tile: DecodeTile) -> KernelSpec {
    let [hidden, inner] = [shape.hidden_size, shape.intermediate_size].map(constant);
    let sizes = [tile.rows, tile.columns, tile.depth].map(constant);
    let experts = constant(shape.experts);
    let operation = "grouped_gemm/aligned_down";
    let spec = match (shape.numbers, tile.split_rows()) {
        (WeightNumbers::Plain, Some(rows)) => {
            let module = split_aligned::__module_ast_self;
            KernelSpec::new(operation, module, "split_aligned", "split_second")
                .element(A::NAME)
                .generics(rows.map(constant))
                .generics([sizes[1], sizes[2], hidden, inner, experts])
        }
        (WeightNumbers::Plain, None) => {
            let module = plain_aligned::__module_ast_self;
            KernelSpec::new(operation, module, "plain_aligned", "aligned_second")
                .element(A::NAME)
                .generics(sizes)
                .generics([hidden, inner, experts])
        }
        (WeightNumbers::Fp8Blocks { w2, .. }, _) => {
            let module = fp8_aligned::__module_ast_self;
            KernelSpec::new(operation, module, "fp8_aligned", "aligned_second")
                .element(A::NAME)
                .generics(sizes)
                .generics([hidden, inner])
                .generics(w2.map(constant))
                .generics([experts])
                .pointers(["w_scales"])
                .tensor("x_scales", &[1, 1], &[-1, 1])
        }
    };
    let spec = spec.pointers(["out", "expert_ids", "num_tokens_post_padded", "sorted_token_ids"]);
    let spec = match tile.split_rows() {
        Some(_) => spec.pointers(["x"]),
        None => spec.tensor("x", &[1, 1], &[inner, 1]),
    };
    spec.tensor("w", &[1; 4], &[hidden * inner, hidden * inner, inner, 1])
        .warps(tile.warps)
        .occupancy(tile.occupancy)
        .programmatic()
}
