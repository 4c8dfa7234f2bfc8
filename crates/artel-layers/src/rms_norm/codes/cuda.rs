//! RMS norm to FP8 codes on the GPU, with the rows themselves where somebody else reads them.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{Architecture, DeviceSliceMut, KernelSpec, Kernels, Stream};
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::QuantizedRows;
use artel_moe::quant::{BLOCK, Element};

use super::super::cuda::{BLOCK_ELEMENTS, NormKernel, NormRows, Residual, expect_tiles, tile};
use super::super::row;
use crate::LayersError;

#[cutile::module]
mod kernels {
    use crate::rms_norm::code::cuda::norm_code::*;
    use artel_moe::cuda::device_code::*;
    use artel_moe::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// As `normalize` with FP8 codes of the rounded rows, a scale for 128 columns. `KEEP`: the rounded rows
    /// are stored, too. `GROUPS = C / 128`, `TOTAL` groups in a row of `H`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn normalize_to_codes<
        T: ElementType,
        A: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const GROUPS: i32,
        const TOTAL: i32,
        const ADD: i32,
        const PARTS: i32,
        const KEEP: i32,
        const PDL: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        sums: *mut f32,
        weight: *mut f32,
        out: *mut A,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        rows: i32,
        part_rows: i32,
        row_stride: i32,
        group_stride: i32,
        epsilon: f32,
        least: f32,
        most: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let is_row: Tile<bool, { [R] }> = below(row, rows);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_row, below(column, H));
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: there are `rows` rows, and as many in every part.
        let values: Tile<f32, { [R, C] }> = unsafe {
            load_hidden::<T, A, H, R, C, ADD, PARTS>(
                hidden, delta, sums, part_rows, row, column, mask, ready,
            )
        };
        // SAFETY: the weight has `H` elements.
        let values: Tile<f32, { [R, C] }> =
            unsafe { normalized::<R, C, H>(values, weight, column, epsilon) };
        let rounded: Tile<A, { [R, C] }> = convert_tile(values);
        if KEEP == 1i32 {
            // SAFETY: out has the rows of hidden.
            unsafe { scatter_block(out, offsets, mask, rounded, ready) };
        }
        let values: Tile<f32, { [R, C] }> = convert_tile(rounded);
        let found: Tile<f32, { [R, GROUPS] }> =
            group_scales::<R, C, GROUPS, 128>(values, least, most);
        let code: Tile<f8e4m3fn, { [R, C] }> = to_codes::<R, C, GROUPS, 128>(values, found);
        // SAFETY: codes and scales have the rows of hidden.
        unsafe { scatter_block(codes, offsets, mask, code, ready) };
        // SAFETY: as above.
        unsafe {
            store_scales::<R, GROUPS>(
                scales,
                found,
                row,
                is_row,
                0i32,
                TOTAL,
                row_stride,
                group_stride,
                ready,
            )
        };
    }
}

/// What becomes of the rows beside their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// They are stored, too: the router of an MoE layer reads them.
    Kept,
    /// Only codes are stored.
    Dropped,
}

/// RMS norm with the rows as FP8, a scale for 128 columns: what FP8 weights in blocks are multiplied
/// with. The codes are those of the rounded rows.
#[derive(Debug, Clone)]
pub struct NormalizeQuantize<T, A> {
    kernel: NormKernel,
    width: usize,
    epsilon: f32,
    residual: Residual,
    plain: Plain,
    elements: PhantomData<(T, A)>,
}

impl<T: Element, A: Element> NormalizeQuantize<T, A> {
    /// Asks for the kernel for rows of `width` elements.
    ///
    /// # Errors
    /// As [`Normalize::load`](super::super::cuda::Normalize::load).
    pub fn load(
        kernels: &mut Kernels,
        width: usize,
        epsilon: f32,
        residual: Residual,
        plain: Plain,
    ) -> Result<Self, LayersError> {
        let stored = [plain == Plain::Kept, true];
        let of_row = row::cuda::load(kernels, [T::NAME, A::NAME], width, residual, stored)?;
        let kernel = match of_row {
            Some(kernel) => NormKernel::Row(kernel),
            None => Self::load_tiles(kernels, width, residual, plain)?,
        };
        Ok(Self { kernel, width, epsilon, residual, plain, elements: PhantomData })
    }

    /// The kernel in tiles.
    fn load_tiles(
        kernels: &mut Kernels,
        width: usize,
        residual: Residual,
        plain: Plain,
    ) -> Result<NormKernel, LayersError> {
        expect_tiles(residual, width)?;
        let [_, columns] = tile(width)?;
        let columns = columns.max(BLOCK);
        let rows = (BLOCK_ELEMENTS / columns).max(1);
        let sizes = [width, rows, columns, columns / BLOCK, Granularity::Groups.groups(width)];
        let constants = sizes
            .into_iter()
            .chain(residual.constants())
            .chain([usize::from(plain == Plain::Kept)]);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("rms_norm/to_codes", module, "kernels", "normalize_to_codes")
            .element(T::NAME)
            .element(A::NAME)
            .generics(constants.map(|size| size as i32))
            .pointers(["hidden", "delta", "sums", "weight", "out", "codes", "scales"])
            .warps(if columns > 2048 { 8 } else { residual.warps(columns) })
            .programmatic()
            .needs(Architecture::Sm90);
        Ok(NormKernel::Tiles(kernels.get(&spec)?, rows))
    }

    /// Normalises into `codes`, and into `out` `[T, H]` where rows are kept.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When what is added is of another kind than was asked for, or there is `out` without
    /// [`Plain::Kept`], or none with it.
    pub fn launch(
        &self,
        stream: &Stream,
        rows: &NormRows<'_, T, A>,
        out: Option<DeviceSliceMut<'_, A>>,
        codes: &mut QuantizedRows<'_>,
    ) -> Result<(), LayersError> {
        let (tokens, width) = (rows.tokens, self.width);
        let groups = Granularity::Groups.groups(width);
        let (arguments, part_rows) = rows.arguments(width, self.residual)?;
        codes.expect_rows(tokens, width, groups)?;
        let arguments = match (self.plain, out) {
            (Plain::Dropped, None) => arguments.no_slice(),
            (Plain::Kept, Some(out)) => {
                out.expect_len("normalised rows", tokens * width)?;
                arguments.slice_mut(&out)
            }
            _ => panic!("this is a bug: kept rows and their place must come together"),
        };
        let [row_stride, group_stride] = codes.scale_strides(groups);
        let arguments = arguments
            .slice_mut(&codes.codes)
            .slice_mut(&codes.scales)
            .size(tokens)
            .size(part_rows)
            .size(row_stride)
            .size(group_stride)
            .f32(self.epsilon)
            .f32(codes.bounds.least)
            .f32(codes.bounds.most);
        let (kernel, block_rows) = match &self.kernel {
            NormKernel::Tiles(kernel, block_rows) => (kernel, *block_rows),
            NormKernel::Row(kernel) => (kernel, 1),
        };
        let arguments = rows.ends(arguments);
        let grid = [tokens.div_ceil(block_rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
