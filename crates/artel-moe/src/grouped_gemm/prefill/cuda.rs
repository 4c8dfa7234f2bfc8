//! Loading and launching the prefill kernels.

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use half::{bf16, f16};

use super::PrefillTile;
use super::fp8_block::cuda::prefill_fp8_block;
use super::fp8_channel::cuda::prefill_fp8_channel;
use super::fp8_gated::cuda::prefill_fp8_gated;
use super::plain::cuda::prefill_plain;
use super::tile::{PrefillForm, RowScales};
use crate::MoeError;
use crate::quant::Element;
use crate::weights::StackLayout;

/// Activations of 16 bits.
pub trait HalfElement: Element {}

impl HalfElement for bf16 {}
impl HalfElement for f16 {}

/// The blocks of an aligned assignment.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// Expert of each block, or -1: `[M / block_size]` or more.
    pub expert_ids: DeviceSlice<'a, i32>,
    /// Rows in use, a multiple of the block size and at most `M`: `[1]`.
    pub num_tokens_post_padded: DeviceSlice<'a, i32>,
    /// Whose rows they are; with `None` every row counts.
    pub pairs: Option<RowPairs<'a>>,
}

/// The pairs that rows belong to. What pads a block stands behind its pairs, and nobody reads what becomes of it: kernels
/// may leave such rows of a result as they are.
#[derive(Debug, Clone, Copy)]
pub struct RowPairs<'a> {
    /// The pair of each row, `count` or more where it pads a block: `[M]` or more.
    pub sorted_token_ids: DeviceSlice<'a, i32>,
    /// Pairs of the batch.
    pub count: usize,
}

impl Blocks<'_> {
    /// Appends what tells rows of pairs from those that pad a block.
    pub(super) fn row_pairs(&self, arguments: Arguments) -> Arguments {
        match self.pairs {
            Some(pairs) => arguments.slice(pairs.sorted_token_ids).size(pairs.count),
            None => arguments.no_slice().size(1),
        }
    }

    /// Rows of an output of `len` numbers, `features` a row, in blocks of `block_size`.
    pub(super) fn positions(
        &self,
        len: usize,
        features: usize,
        block_size: usize,
    ) -> Result<usize, MoeError> {
        let positions = len / features.max(1);
        MoeError::check_shape("output of a product", positions * features, len)?;
        if !positions.is_multiple_of(block_size) {
            let allowed = format!("a multiple of {block_size}");
            return Err(MoeError::config("positions", positions, allowed));
        }
        let block_count = positions / block_size;
        if self.expert_ids.len() < block_count || self.num_tokens_post_padded.is_empty() {
            let found = self.expert_ids.len();
            return Err(MoeError::config("blocks of an assignment", found, block_count));
        }
        if let Some(pairs) = self.pairs {
            pairs.sorted_token_ids.expect_len("sorted token ids", positions)?;
        }
        Ok(positions)
    }
}

/// FP8 numbers with their scales.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Operand<'a> {
    /// e4m3 codes: rows `[M, K]` or weights `[E, N, K]`.
    pub numbers: DeviceSlice<'a, u8>,
    /// Of rows `[ceil(K / 128), M]`, of weights in blocks the stack's
    /// [`scale_shape`](StackLayout::scale_shape). Where a scale of the weights covers all of `K`, rows
    /// have one too: `[1, M]`.
    pub scales: DeviceSlice<'a, f32>,
}

/// One product in one 16-bit format.
#[derive(Debug, Clone)]
pub struct PrefillGemm<A> {
    product: Product,
    element: PhantomData<A>,
}

/// One product with FP8 rows and weights and a plain result, its sums or what the activation makes of them.
#[derive(Debug, Clone)]
pub struct PrefillFp8Gemm<A> {
    product: Product,
    element: PhantomData<A>,
}

impl<A: HalfElement> PrefillGemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout` in blocks of `block_size` rows.
    ///
    /// # Errors
    /// [`MoeError`] when the tile does not fit the weights, or the kernel is missing and cannot be
    /// made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        tile: PrefillTile,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        if RowScales::of(layout) != RowScales::None {
            return Err(MoeError::config("weights", format!("{layout:?}"), "without scales"));
        }
        let module = prefill_plain::__module_ast_self;
        let name = "grouped_gemm/prefill_plain";
        let spec = KernelSpec::new(name, module, "prefill_plain", "multiply").element(A::NAME);
        let product = Product::load(kernels, spec, layout, form, tile, block_size)?;
        Ok(Self { product, element: PhantomData })
    }

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[M, N / 2]` where the halves are
    /// gate and up; `M` is a multiple of the block size.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice has another size or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: DeviceSlice<'_, A>,
        weights: DeviceSlice<'_, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let StackLayout { experts, rows: features, columns, .. } = self.product.layout;
        let positions = self.product.positions(blocks, out.len())?;
        rows.expect_len("rows", positions * columns)?;
        weights.expect_len("weights", experts * features * columns)?;
        let parts = self.product.form.parts();
        let arguments = Arguments::new()
            .tensor_mut(out, &[positions, features / parts])
            .tensor(rows, &[positions, columns])
            .tensor(weights, &[experts, parts, features / parts, columns]);
        self.product.launch(stream, blocks, positions, arguments)
    }
}

impl<A: Element> PrefillFp8Gemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout` in blocks of `block_size` rows.
    ///
    /// # Errors
    /// [`MoeError`] when the tile does not fit the weights, or the kernel is missing and cannot be
    /// made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        tile: PrefillTile,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        let spec = match (RowScales::of(layout), form) {
            (RowScales::None, _) => {
                return Err(MoeError::config("weights", format!("{layout:?}"), "with scales"));
            }
            (RowScales::Rows, _) => {
                let module = prefill_fp8_channel::__module_ast_self;
                let name = "grouped_gemm/prefill_fp8_channel";
                KernelSpec::new(name, module, "prefill_fp8_channel", "multiply")
            }
            (RowScales::Groups, PrefillForm::SiluAndMultiply) => {
                let module = prefill_fp8_gated::__module_ast_self;
                let name = "grouped_gemm/prefill_fp8_gated";
                KernelSpec::new(name, module, "prefill_fp8_gated", "multiply_gated")
            }
            (RowScales::Groups, PrefillForm::Sums) => {
                let module = prefill_fp8_block::__module_ast_self;
                let name = "grouped_gemm/prefill_fp8_block";
                KernelSpec::new(name, module, "prefill_fp8_block", "multiply")
            }
        };
        let spec = spec.element(A::NAME).needs(Architecture::Sm90);
        let product = Product::load(kernels, spec, layout, form, tile, block_size)?;
        Ok(Self { product, element: PhantomData })
    }

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[M, N / 2]` where the halves are
    /// gate and up; `M` is a multiple of the block size.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice has another size or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: Fp8Operand<'_>,
        weights: Fp8Operand<'_>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let layout = &self.product.layout;
        let StackLayout { experts, rows: features, columns, .. } = *layout;
        let positions = self.product.positions(blocks, out.len())?;
        let groups = RowScales::of(layout).per_row(layout);
        rows.numbers.expect_len("rows", positions * columns)?;
        rows.scales.expect_len("scales of rows", groups * positions)?;
        weights.numbers.expect_len("weights", experts * features * columns)?;
        weights.scales.expect_len("scales of weights", experts * layout.scales_per_expert())?;
        let arguments = |stored: usize| {
            Arguments::new()
                .tensor_mut(out, &[positions, stored])
                .tensor(rows.numbers, &[positions, columns])
                .tensor(rows.scales, &[groups, positions])
        };
        let arguments = match self.product.form.parts() {
            1 => arguments(features).tensor(weights.numbers, &[experts, features, columns]),
            parts => {
                let stored = features / parts;
                arguments(stored).tensor(weights.numbers, &[experts, parts, stored, columns])
            }
        };
        let arguments = arguments.slice(weights.scales);
        self.product.launch(stream, blocks, positions, arguments)
    }
}

/// What all formats have in common.
#[derive(Debug, Clone)]
struct Product {
    kernel: Kernel,
    layout: StackLayout,
    form: PrefillForm,
    tile: PrefillTile,
    block_size: usize,
    loops: usize,
}

impl Product {
    fn load(
        kernels: &mut Kernels,
        spec: KernelSpec,
        layout: &StackLayout,
        form: PrefillForm,
        tile: PrefillTile,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        tile.check(layout, form, block_size)?;
        let steps = layout.columns.div_ceil(tile.depth);
        let unroll = tile.unroll(layout, steps);
        let features = layout.rows / form.parts();
        let (n, k) = (features as i32, layout.columns as i32);
        let column_tiles = features.div_ceil(tile.columns);
        let sizes = [tile.rows, tile.columns, tile.depth, unroll.steps, unroll.latency];
        let walk = [layout.experts, block_size / tile.rows, column_tiles];
        let spec = spec
            .generics(sizes.into_iter().chain(walk).map(|size| size as i32))
            .tensor("out", &[1, 8], &[n, 1])
            .tensor("rows", &[1, 8], &[k, 1])
            .pointers(["expert_ids", "rows_padded"])
            .warps(tile.warps)
            .occupancy(tile.occupancy)
            .programmatic();
        let numbers = |sizes: &[usize]| sizes.iter().map(|&size| size as i32).collect::<Vec<_>>();
        let scaled =
            |spec: KernelSpec| {
                spec.tensor("weights", &[1, 8, 8], &[n * k, k, 1])
                    .pointers(["weight_scales"])
                    .tensor("row_scales", &[1, 64], &[-1, 1])
            };
        let [_, scale_rows, _] = layout.scale_shape();
        let spec = match (RowScales::of(layout), layout.scale_block) {
            (RowScales::Groups, Some([rows, columns])) if form == PrefillForm::SiluAndMultiply => {
                let sizes = [steps, rows, columns, 2 * tile.columns];
                spec.generics(numbers(&sizes))
                    .tensor("weights", &[1, 1, 8, 8], &[2 * n * k, n * k, k, 1])
                    .pointers(["w_scales"])
                    .tensor("row_scales", &[1, 64], &[-1, 1])
            }
            (RowScales::Groups, Some([rows, columns])) => {
                scaled(spec.generics(numbers(&[steps, rows, columns, scale_rows])))
            }
            (_, Some([rows, _])) => {
                scaled(spec.generics(numbers(&[layout.rows, rows, scale_rows])))
            }
            (_, None) => {
                let parts = form.parts();
                let strides = [n * k * parts as i32, n * k, k, 1];
                spec.generics(numbers(&[parts, parts * tile.columns])).tensor(
                    "weights",
                    &[1, 1, 8, 8],
                    &strides,
                )
            }
        };
        let loops = steps.div_ceil(unroll.steps);
        let (layout, kernel) = (*layout, kernels.get(&spec)?);
        Ok(Self { kernel, layout, form, tile, block_size, loops })
    }

    /// Rows of an output of `len` numbers.
    fn positions(&self, blocks: Blocks<'_>, len: usize) -> Result<usize, MoeError> {
        blocks.positions(len, self.layout.rows / self.form.parts(), self.block_size)
    }

    fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        positions: usize,
        arguments: Arguments,
    ) -> Result<(), MoeError> {
        let arguments = arguments
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded)
            .size(self.loops);
        let columns = (self.layout.rows / self.form.parts()).div_ceil(self.tile.columns);
        let tiles = positions / self.tile.rows * columns;
        let resident = stream.context().multiprocessors()? * self.tile.occupancy;
        // SAFETY: the arguments are the kernel's; the sizes of all were checked, and what a tile has
        // over the edges of its tensor is neither read nor written.
        unsafe { self.kernel.launch(stream, [tiles.min(resident), 1, 1], arguments) }?;
        Ok(())
    }
}
