//! Loading and launching.

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream, TensorAxis, TensorMap,
};
use bytemuck::Pod;

use super::text::{Numbers, Sizes, source};
use super::{
    Assigned, BLOCK_ROWS, GROUP, ROW_BYTES, Scales, Side, THREADS, check, check_integers,
    check_long,
};
use crate::MoeError;
use crate::grouped_gemm::EXACT_DEPTH;
use crate::grouped_gemm::prefill::cuda::{Blocks, Fp8Operand, HalfElement};
use crate::grouped_gemm::prefill::{PrefillForm, RowScales};
use crate::quant::Element;
use crate::weights::StackLayout;

/// One product in one 16-bit format, for blocks of [`BLOCK_ROWS`] rows.
#[derive(Debug, Clone)]
pub struct WarpgroupGemm<A> {
    product: Product,
    element: PhantomData<A>,
}

/// One product of FP8 rows and weights with a plain result, for blocks of [`BLOCK_ROWS`] rows.
#[derive(Debug, Clone)]
pub struct WarpgroupFp8Gemm<A> {
    product: Product,
    layout: StackLayout,
    element: PhantomData<A>,
}

/// One product of integers with a plain result, for blocks of [`BLOCK_ROWS`] rows.
#[derive(Debug, Clone)]
pub struct WarpgroupIntegerGemm<A> {
    product: Product,
    element: PhantomData<A>,
}

/// Integers of eight bits with their scales.
#[derive(Debug, Clone, Copy)]
pub struct IntegerOperand<'a> {
    /// Rows `[ceil(K / 128), M, 128]` or weights `[E, N, ceil(K / 128) * 128]`, with zeros behind `K`.
    pub numbers: DeviceSlice<'a, i8>,
    /// Of rows `[M]`, of weights `[E, N]` and whatever stands behind them.
    pub scales: DeviceSlice<'a, f32>,
}

impl<A: HalfElement> WarpgroupGemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout`.
    ///
    /// # Errors
    /// [`MoeError`] when there is none for the weights, or it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        assigned: Assigned,
    ) -> Result<Self, MoeError> {
        if layout.scale_block.is_some() {
            return Err(MoeError::config("weights", format!("{layout:?}"), "without scales"));
        }
        check(layout, form)?;
        let numbers = (Numbers::Halves(A::NAME), Side::Short);
        let product = Product::load::<A>(kernels, layout, form, numbers, assigned)?;
        Ok(Self { product, element: PhantomData })
    }

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[M, N / 2]` where the halves are
    /// gate and up; `M` is a multiple of [`BLOCK_ROWS`]. The blocks of an expert are neighbours, as
    /// an assignment leaves them. Rows of a block of no expert become zeros, those that pad a block stay as
    /// they are.
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
        if self.product.positions(blocks, out.len())? == 0 {
            return Ok(());
        }
        let rows = self.product.row_map(rows, blocks, out.len())?;
        let arguments = self.product.arguments(blocks, &rows, weights, out)?;
        self.product.launch(stream, blocks, out.len(), arguments)
    }
}

impl<A: Element> WarpgroupFp8Gemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout`. What is stored in float32, or
    /// activated, becomes codes: few input features of it are summed at once in the matrix units.
    ///
    /// # Errors
    /// [`MoeError`] when there is none for the weights, or it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
    ) -> Result<Self, MoeError> {
        Self::load_with(kernels, layout, form, Side::Short)
    }

    /// The same with rows on the long side of the matrix instructions.
    ///
    /// # Errors
    /// As there; [`check_long`] says for which weights. What is activated is stored in float32.
    pub fn load_long(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
    ) -> Result<Self, MoeError> {
        check_long(layout, form)?;
        if form == PrefillForm::SiluAndMultiply && A::NAME != f32::NAME {
            return Err(MoeError::config("an activated product", A::NAME, f32::NAME));
        }
        Self::load_with(kernels, layout, form, Side::Long)
    }

    fn load_with(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        side: Side,
    ) -> Result<Self, MoeError> {
        let Some([features, _]) = layout.scale_block else {
            return Err(MoeError::config("weights", format!("{layout:?}"), "with scales"));
        };
        let scales = Scales { features, grouped: RowScales::of(layout) == RowScales::Groups };
        let is_coded = form == PrefillForm::SiluAndMultiply || size_of::<A>() == size_of::<f32>();
        let summed = match (is_coded, scales.grouped) {
            (false, _) => GROUP,
            (true, true) => EXACT_DEPTH,
            // Scales that come last leave time for shorter sums.
            (true, false) => EXACT_DEPTH / 2,
        };
        let numbers = Numbers::Codes { scales, summed };
        check(layout, form)?;
        let product = Product::load::<A>(kernels, layout, form, (numbers, side), Assigned::Lately)?;
        Ok(Self { product, layout: *layout, element: PhantomData })
    }

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[M, N / 2]` where the halves are
    /// gate and up; `M` is a multiple of [`BLOCK_ROWS`]. The blocks of an expert are neighbours, as
    /// an assignment leaves them. Rows of a block of no expert become zeros, those that pad a block stay as
    /// they are.
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
        let layout = &self.layout;
        let positions = self.product.positions(blocks, out.len())?;
        if positions == 0 {
            return Ok(());
        }
        let groups = RowScales::of(layout).per_row(layout);
        rows.scales.expect_len("scales of rows", groups * positions)?;
        let count = layout.experts * layout.scales_per_expert();
        weights.scales.expect_len("scales of weights", count)?;
        let row_map = self.product.row_map(rows.numbers, blocks, out.len())?;
        let arguments = self
            .product
            .arguments(blocks, &row_map, weights.numbers, out)?
            .slice(weights.scales)
            .slice(rows.scales)
            .size(positions);
        self.product.launch(stream, blocks, out.len(), arguments)
    }
}

impl<A: Element> WarpgroupIntegerGemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout` in tiles of at most `rows_max` rows:
    /// [`rows_max`](super::rows_max) of one sum a number, or of two, which leaves room for more stages.
    ///
    /// # Errors
    /// [`MoeError`] when there is none for the weights or such tiles, or it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        rows_max: usize,
    ) -> Result<Self, MoeError> {
        check_integers(layout, form)?;
        let heights = [1, 2].map(super::rows_max);
        if !heights.contains(&rows_max) {
            return Err(MoeError::config("rows of a tile", rows_max, format!("{heights:?}")));
        }
        let columns = layout.columns.next_multiple_of(ROW_BYTES);
        let layout = StackLayout { columns, ..*layout };
        let numbers = (Numbers::Integers { rows_max }, Side::Short);
        let product = Product::load::<A>(kernels, &layout, form, numbers, Assigned::Lately)?;
        Ok(Self { product, element: PhantomData })
    }

    /// `out` `[positions, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[positions, N / 2]` where the halves
    /// are gate and up; `positions` is a multiple of [`BLOCK_ROWS`] and at most `M`. The blocks of an expert
    /// are neighbours, as an assignment leaves them. Rows of a block of no expert become zeros, those that pad a
    /// block stay as they are.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice has another size or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: IntegerOperand<'_>,
        weights: IntegerOperand<'_>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let positions = self.product.positions(blocks, out.len())?;
        if positions == 0 {
            return Ok(());
        }
        let Sizes { experts, features, columns, parts, .. } = self.product.sizes;
        let capacity = rows.numbers.len() / columns;
        MoeError::check_shape("rows of a product", positions.max(capacity), capacity)?;
        rows.scales.expect_len("scales of rows", positions)?;
        weights.scales.expect_len("scales of weights", experts * parts * features)?;
        let axes = [
            TensorAxis { len: ROW_BYTES, stride: 1, of_box: ROW_BYTES },
            TensorAxis { len: capacity, stride: ROW_BYTES, of_box: BLOCK_ROWS },
            TensorAxis { len: columns / ROW_BYTES, stride: capacity * ROW_BYTES, of_box: 1 },
        ];
        let row_map = TensorMap::new(rows.numbers, &axes)?;
        let arguments = self
            .product
            .arguments(blocks, &row_map, weights.numbers, out)?
            .slice(weights.scales)
            .slice(rows.scales)
            .size(positions);
        self.product.launch(stream, blocks, out.len(), arguments)
    }
}

/// What all formats have in common.
#[derive(Debug, Clone)]
struct Product {
    kernel: Kernel,
    sizes: Sizes,
}

impl Product {
    fn load<A: Element>(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
        (numbers, side): (Numbers, Side),
        assigned: Assigned,
    ) -> Result<Self, MoeError> {
        let StackLayout { experts, rows, columns, .. } = *layout;
        let parts = form.parts();
        let features = rows / parts;
        let is_ahead = assigned == Assigned::Before;
        let out = A::NAME;
        let sizes = Sizes { experts, features, columns, parts, numbers, side, out, is_ahead };
        let assembly = Assembly {
            text: source(&sizes).into(),
            threads: THREADS,
            shared_bytes: sizes.shared_bytes(),
        };
        let (name, scales) = match numbers {
            Numbers::Halves(_) => ("grouped_gemm/warpgroup", None),
            Numbers::Integers { rows_max } => {
                ("grouped_gemm/warpgroup_integers", Some(vec![rows_max]))
            }
            Numbers::Codes { scales, summed } => {
                let Scales { features, grouped } = scales;
                let name = match side {
                    Side::Short => "grouped_gemm/warpgroup_fp8",
                    Side::Long => "grouped_gemm/warpgroup_fp8_long",
                };
                (name, Some(vec![features, usize::from(grouped), summed]))
            }
            Numbers::Words { .. } => panic!("this is a bug: words have a product of their own"),
        };
        let generics = [experts, features, columns, parts].into_iter().chain(is_ahead.then_some(1));
        let generics = generics.chain(scales.into_iter().flatten()).map(|size| size as i32);
        let spec = KernelSpec::assembly(name, assembly, "multiply", Architecture::Sm90)
            .element(A::NAME)
            .generics(generics)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, sizes })
    }

    /// Rows of an output of `len` numbers.
    fn positions(&self, blocks: Blocks<'_>, len: usize) -> Result<usize, MoeError> {
        blocks.positions(len, self.sizes.features, BLOCK_ROWS)
    }

    /// Rows `[M, K]` as the kernel copies them.
    fn row_map<T: Pod>(
        &self,
        rows: DeviceSlice<'_, T>,
        blocks: Blocks<'_>,
        out_len: usize,
    ) -> Result<TensorMap, MoeError> {
        let (columns, positions) = (self.sizes.columns, self.positions(blocks, out_len)?);
        rows.expect_len("rows", positions * columns)?;
        let axes = [
            TensorAxis { len: columns, stride: 1, of_box: self.sizes.depth() },
            TensorAxis { len: positions, stride: columns, of_box: BLOCK_ROWS },
        ];
        Ok(TensorMap::new(rows, &axes)?)
    }

    /// What kernels of all formats take.
    fn arguments<T: Pod, A: Pod>(
        &self,
        blocks: Blocks<'_>,
        row_map: &TensorMap,
        weights: DeviceSlice<'_, T>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<Arguments, MoeError> {
        let Sizes { experts, features, columns, parts, .. } = self.sizes;
        weights.expect_len("weights", experts * parts * features * columns)?;
        Ok(Arguments::new()
            .tensor_map(&self.weight_map(weights)?)
            .tensor_map(row_map)
            .slice_mut(out)
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded))
    }

    /// Groups of 8 features, gates and ups in turn.
    fn weight_map<T: Pod>(&self, weights: DeviceSlice<'_, T>) -> Result<TensorMap, MoeError> {
        let Sizes { experts, features, columns, parts, .. } = self.sizes;
        let groups = self.sizes.tile_features() / 8;
        let axes = [
            TensorAxis { len: columns, stride: 1, of_box: self.sizes.depth() },
            TensorAxis { len: 8, stride: columns, of_box: 8 },
            TensorAxis { len: parts, stride: features * columns, of_box: parts },
            TensorAxis { len: features / 8, stride: 8 * columns, of_box: groups },
            TensorAxis { len: experts, stride: parts * features * columns, of_box: 1 },
        ];
        Ok(TensorMap::new(weights, &axes)?)
    }

    /// Starts the kernel for an output of `len` numbers.
    fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        len: usize,
        arguments: Arguments,
    ) -> Result<(), MoeError> {
        let tiles = len / self.sizes.features / BLOCK_ROWS * self.sizes.column_tiles();
        let grid = [tiles.min(stream.context().multiprocessors()?), 1, 1];
        // SAFETY: the arguments are the kernel's; the sizes of all were checked, rows are stored
        // within blocks in use, and what a box has over the edges of its tensor is not read.
        unsafe { self.kernel.launch(stream, grid, blocks.row_pairs(arguments)) }?;
        Ok(())
    }
}
