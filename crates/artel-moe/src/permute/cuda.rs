//! Permutation on the GPU: a token is read once and stored at each of its positions.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::MoeError;
use crate::quant::Element;

/// Columns of a block.
const COLUMNS: usize = 1024;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn copy_rows<
        T: ElementType,
        const H: i32,
        const C: i32,
        const K: i32,
        const PDL: i32,
    >(
        input: *mut T,
        positions: *mut i32,
        out: *mut T,
    ) {
        let token: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let is_column: Tile<bool, { [C] }> = below(column, H);
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let offsets: Tile<i64, { [1, C] }> = block_offsets(row, H, column);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, is_column);
        // SAFETY: input is `[T, H]`.
        let values: Tile<T, { [1, C] }> = unsafe { gather_block(input, offsets, mask, ready) };
        for slot in 0i32..K {
            let pair: Tile<i32, { [1] }> = count_from::<1>(token * K + slot);
            // SAFETY: positions is `[T, K]`.
            let position: Tile<i32, { [1] }> =
                unsafe { gather(positions, pair, always, -1i32, ready) };
            let nowhere: Tile<i32, { [1] }> = constant(-1i32, const_shape![1]);
            let is_kept: Tile<bool, { [1] }> = gt_tile(position, nowhere);
            let offsets: Tile<i64, { [1, C] }> = block_offsets(position, H, column);
            let mask: Tile<bool, { [1, C] }> = block_mask(is_kept, is_column);
            // SAFETY: the caller vouches that positions lie inside out.
            unsafe { scatter_block(out, offsets, mask, values, ready) };
        }
    }
}

/// The permutation kernel of one shape.
#[derive(Debug, Clone)]
pub struct Permute<A> {
    kernel: Kernel,
    hidden_size: usize,
    top_k: usize,
    element: PhantomData<A>,
}

impl<A: Element> Permute<A> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, hidden_size: usize, top_k: usize) -> Result<Self, MoeError> {
        let constants = [hidden_size, columns(hidden_size), top_k].map(|size| size as i32);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("permute/copy_rows", module, "kernels", "copy_rows")
            .element(A::NAME)
            .generics(constants)
            .pointers(["input", "positions", "out"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, hidden_size, top_k, element: PhantomData })
    }

    /// Copies the rows of `tokens` tokens to `positions` `[T, K]`, which must lie inside `out`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        input: DeviceSlice<'_, A>,
        positions: DeviceSlice<'_, i32>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        input.expect_len("hidden states to permute", tokens * self.hidden_size)?;
        positions.expect_len("positions of pairs", tokens * self.top_k)?;
        let arguments = Arguments::new().slice(input).slice(positions).slice_mut(out);
        let grid = [tokens, self.hidden_size.div_ceil(columns(self.hidden_size)), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Columns of a block of a kernel that works on rows one by one.
pub(crate) fn columns(hidden_size: usize) -> usize {
    hidden_size.next_power_of_two().min(COLUMNS)
}
