//! Input weights on the GPU: a block scales one stretch of columns of one token.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::MoeError;
use crate::permute::cuda::columns;
use crate::quant::Element;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn weigh_rows<T: ElementType, const H: i32, const C: i32, const PDL: i32>(
        input: *mut T,
        weights: *mut f32,
        out: *mut T,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [1] }> = count_from::<1>(get_tile_block_id().0);
        let column: Tile<i32, { [C] }> = count_from::<C>(get_tile_block_id().1 * C);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, below(column, H));
        let offsets: Tile<i64, { [1, C] }> = block_offsets(row, H, column);
        // SAFETY: there is a weight for each token.
        let weight: Tile<f32, { [1] }> = unsafe { gather(weights, row, always, 0.0f32, ready) };
        let weight: Tile<f32, { [1, 1] }> = weight.reshape(const_shape![1, 1]);
        // SAFETY: input is `[T, H]`.
        let values: Tile<T, { [1, C] }> = unsafe { gather_block(input, offsets, mask, ready) };
        let values: Tile<f32, { [1, C] }> = convert_tile(values);
        let values: Tile<f32, { [1, C] }> = values * weight.broadcast(const_shape![1, C]);
        let values: Tile<T, { [1, C] }> = convert_tile(values);
        // SAFETY: out is `[T, H]`.
        unsafe { scatter_block(out, offsets, mask, values, ready) };
    }
}

/// The kernel for hidden states of one size.
#[derive(Debug, Clone)]
pub struct WeighRows<A> {
    kernel: Kernel,
    hidden_size: usize,
    element: PhantomData<A>,
}

impl<A: Element> WeighRows<A> {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, hidden_size: usize) -> Result<Self, MoeError> {
        let constants = [hidden_size, columns(hidden_size)].map(|size| size as i32);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("input_weight/weigh_rows", module, "kernels", "weigh_rows")
            .element(A::NAME)
            .generics(constants)
            .pointers(["input", "weights", "out"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, hidden_size, element: PhantomData })
    }

    /// `out[t] = weights[t] * input[t]` for the rows `[T, H]` of `tokens` tokens, rounded once.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        (input, weights): (DeviceSlice<'_, A>, DeviceSlice<'_, f32>),
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        input.expect_len("hidden states to weigh", tokens * self.hidden_size)?;
        weights.expect_len("weights of tokens", tokens)?;
        out.expect_len("weighed hidden states", tokens * self.hidden_size)?;
        if tokens == 0 {
            return Ok(());
        }
        let arguments = Arguments::new().slice(input).slice(weights).slice_mut(out);
        let grid = [tokens, self.hidden_size.div_ceil(columns(self.hidden_size)), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
