//! The parts of a joint projection to rows of queries, keys and values, of which queries and keys are
//! normalised over all heads: one launch instead of three. Grid: tokens, and the three of them.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::Element;

use super::super::cuda::tile;
use crate::LayersError;
use crate::linear::parts::cuda::PartSums;

#[cutile::module]
mod kernels {
    use crate::linear::parts::cuda::part_code::*;
    use crate::rms_norm::code::cuda::norm_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `W` columns of a row from `first` on, in a tile of `C`, rounded to `A`: normalised or not.
    unsafe fn row_of_parts<
        A: ElementType,
        const W: i32,
        const C: i32,
        const N: i32,
        const PARTS: i32,
        const NORM: i32,
    >(
        sums: *mut f32,
        weight: *mut f32,
        out: *mut A,
        row: i32,
        first: i32,
        part_rows: i32,
        epsilon: f32,
        ready: Token,
    ) {
        let within: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let is_column: Tile<bool, { [C] }> = below(within, W);
        let column: Tile<i32, { [C] }> = count_from::<C>(first);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, is_column);
        let row: Tile<i32, { [1] }> = count_from::<1>(row);
        let width: Tile<i32, { [1] }> = broadcast_scalar(N, const_shape![1]);
        let width: Tile<i64, { [1] }> = exti(width);
        let start: Tile<i64, { [1] }> = exti(row);
        // SAFETY: every part has the row.
        let sum: Tile<f32, { [1, C] }> = unsafe {
            sum_parts::<1, C, PARTS, N>(sums, start * width, part_rows, column, mask, ready)
        };
        let rounded: Tile<A, { [1, C] }> = convert_tile(sum);
        let mut values: Tile<f32, { [1, C] }> = convert_tile(rounded);
        if NORM == 1i32 {
            // SAFETY: the weight has `W` elements.
            values = unsafe { normalized::<1, C, W>(values, weight, within, epsilon) };
        }
        let values: Tile<A, { [1, C] }> = convert_tile(values);
        // SAFETY: `out` has the row.
        unsafe { scatter_block(out, block_offsets(row, N, column), mask, values, ready) };
    }

    /// Rows of `N = Q + 2 K` elements; `QC` and `KC` are `Q` and `K` rounded up to powers of two.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn normalize_projection<
        A: ElementType,
        const Q: i32,
        const QC: i32,
        const K: i32,
        const KC: i32,
        const N: i32,
        const PARTS: i32,
        const PDL: i32,
    >(
        sums: *mut f32,
        q_weight: *mut f32,
        k_weight: *mut f32,
        out: *mut A,
        part_rows: i32,
        q_epsilon: f32,
        k_epsilon: f32,
    ) {
        // SAFETY: launched as its specification says, after the product.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let (row, section, _): (i32, i32, i32) = get_tile_block_id();
        if section == 0i32 {
            // SAFETY: parts and output have the row, the weight its width.
            unsafe {
                row_of_parts::<A, Q, QC, N, PARTS, 1>(
                    sums, q_weight, out, row, 0i32, part_rows, q_epsilon, ready,
                )
            };
        }
        if section == 1i32 {
            // SAFETY: as above.
            unsafe {
                row_of_parts::<A, K, KC, N, PARTS, 1>(
                    sums, k_weight, out, row, Q, part_rows, k_epsilon, ready,
                )
            };
        }
        if section == 2i32 {
            // SAFETY: as above; values have no weight.
            unsafe {
                row_of_parts::<A, K, KC, N, PARTS, 0>(
                    sums,
                    k_weight,
                    out,
                    row,
                    Q + K,
                    part_rows,
                    k_epsilon,
                    ready,
                )
            };
        }
    }
}

/// Sum and norms of the rows of a joint projection.
#[derive(Debug, Clone)]
pub struct NormalizeProjection<A> {
    kernel: Kernel,
    widths: [usize; 2],
    parts: usize,
    epsilons: [f32; 2],
    element: PhantomData<A>,
}

impl<A: Element> NormalizeProjection<A> {
    /// Asks for the kernel: `widths` of queries and of keys, and as many values, in 2, 4 or 8
    /// parts. `epsilons` are added to the mean squares of queries and of keys.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a width that does not fit registers, [`LayersError::Cuda`] when the
    /// kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        widths: [usize; 2],
        parts: usize,
        epsilons: [f32; 2],
    ) -> Result<Self, LayersError> {
        let [queries, keys] = widths;
        let ([_, query_columns], [_, key_columns]) = (tile(queries)?, tile(keys)?);
        let sizes = [queries, query_columns, keys, key_columns, queries + 2 * keys, parts];
        let module = kernels::__module_ast_self;
        let spec =
            KernelSpec::new("rms_norm/projection", module, "kernels", "normalize_projection")
                .element(A::NAME)
                .generics(sizes.map(|size| size as i32))
                .pointers(["sums", "q_weight", "k_weight", "out"])
                .warps(8)
                .programmatic();
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, widths, parts, epsilons, element: PhantomData })
    }

    /// Writes `tokens` rows to `out` `[T, queries + 2 keys]`; `weights` of queries and of keys.
    ///
    /// # Errors
    /// [`LayersError::Shape`] for parts of fewer rows, [`LayersError::Cuda`] when a slice is too short or
    /// the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        (tokens, sums): (usize, PartSums<'_>),
        weights: [DeviceSlice<'_, f32>; 2],
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let [queries, keys] = self.widths;
        let width = queries + 2 * keys;
        out.expect_len("rows of a projection", tokens * width)?;
        weights[0].expect_len("norm weights of queries", queries)?;
        weights[1].expect_len("norm weights of keys", keys)?;
        let arguments = sums.argument(Arguments::new(), self.parts, [tokens, width])?;
        let arguments = arguments
            .slice(weights[0])
            .slice(weights[1])
            .slice_mut(out)
            .size(sums.rows)
            .f32(self.epsilons[0])
            .f32(self.epsilons[1]);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, [tokens, 3, 1], arguments) }?;
        Ok(())
    }
}
