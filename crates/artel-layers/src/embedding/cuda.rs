//! Embedding on the GPU: a copy of one row a token. Bytes: `T * H` numbers read and written.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::Element;

use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `out[t] = weight[ids[t]]`, zeros for an id without a row. Grid: tokens, stretches of columns.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn embed<
        W: ElementType,
        T: ElementType,
        const H: i32,
        const C: i32,
        const PDL: i32,
    >(
        weight: *mut W,
        ids: *mut i32,
        out: *mut T,
        vocabulary: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the ids.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [1] }> = count_from::<1>(get_tile_block_id().0);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        // SAFETY: there is an id for each token.
        let id: i32 = unsafe { load_i32(ids, get_tile_block_id().0, ready) };
        let chosen: Tile<i32, { [1] }> = count_from::<1>(id);
        let none: Tile<i32, { [1] }> = constant(-1i32, const_shape![1]);
        let exists: Tile<bool, { [1] }> = gt_tile(chosen, none) & below(chosen, vocabulary);
        let is_column: Tile<bool, { [C] }> = below(column, H);
        let read: Tile<bool, { [1, C] }> = block_mask(exists, is_column);
        // SAFETY: rows that exist.
        let values: Tile<W, { [1, C] }> =
            unsafe { gather_block(weight, block_offsets(chosen, H, column), read, ready) };
        let values: Tile<f32, { [1, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [1, C] }> = constant(0.0f32, const_shape![1, C]);
        let values: Tile<T, { [1, C] }> = convert_tile(select(read, values, nothing));
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let write: Tile<bool, { [1, C] }> = block_mask(always, is_column);
        // SAFETY: out has a row for each token.
        unsafe { scatter_block(out, block_offsets(row, H, column), write, values, ready) };
    }
}

/// Columns of a block.
const COLUMNS: usize = 1024;

/// The rows of tokens of a table of `W`, as `T`.
#[derive(Debug, Clone)]
pub struct Embed<W, T> {
    kernel: Kernel,
    width: usize,
    elements: PhantomData<(W, T)>,
}

impl<W: Element, T: Element> Embed<W, T> {
    /// Asks for the kernel for rows of `width` elements.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, width: usize) -> Result<Self, LayersError> {
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("embedding/embed", module, "kernels", "embed")
            .element(W::NAME)
            .element(T::NAME)
            .generics([width as i32, COLUMNS as i32])
            .pointers(["weight", "ids", "out"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, width, elements: PhantomData })
    }

    /// Writes the rows of `ids` `[T]` of `weight` `[V, H]` to `out` `[T, H]`. An id outside of the
    /// vocabulary, which only the host could refuse, gives zeros.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when `out` is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        weight: DeviceSlice<'_, W>,
        ids: DeviceSlice<'_, i32>,
        out: &mut DeviceSliceMut<'_, T>,
    ) -> Result<(), LayersError> {
        let tokens = ids.len();
        out.expect_len("the output of the embedding", tokens * self.width)?;
        let vocabulary = weight.len() / self.width.max(1);
        let arguments = Arguments::new().slice(weight).slice(ids).slice_mut(out).size(vocabulary);
        let grid = [tokens, self.width.div_ceil(COLUMNS), 1];
        // SAFETY: the arguments are the kernel's; rows outside of the table are not read.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
