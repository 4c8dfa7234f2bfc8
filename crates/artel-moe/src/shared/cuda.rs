//! The shared expert's rows added on the GPU: a block of threads holds its rows in registers.
//!
//! Bytes of `T` rows of `H`: 3 `T * H` numbers, 4 with a gate. A row's bits do not depend on the others.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::MoeError;
use crate::quant::Element;

#[cutile::module]
mod kernels {
    use crate::activation::gate::cuda::gate_code::*;
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// A block of a matrix as float32, zero outside of the mask.
    unsafe fn load_values<A: ElementType, const R: i32, const C: i32>(
        base: *mut A,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the offsets.
        let values: Tile<A, { [R, C] }> = unsafe { gather_block(base, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    /// `R` rows of `H` elements in a tile of `C` columns.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn add_shared<
        A: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const GATED: i32,
        const PDL: i32,
    >(
        out: *mut A,
        shared: *mut A,
        hidden: *mut A,
        gate: *mut f32,
        rows: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let is_column: Tile<bool, { [C] }> = below(column, H);
        let mask: Tile<bool, { [R, C] }> = block_mask(below(row, rows), is_column);
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: there are `rows` rows.
        let mut added: Tile<f32, { [R, C] }> = unsafe { load_values(shared, offsets, mask, ready) };
        if GATED == 1i32 {
            // SAFETY: as above.
            let x: Tile<f32, { [R, C] }> = unsafe { load_values(hidden, offsets, mask, ready) };
            // SAFETY: the gate has `H` elements, which nobody writes.
            let weight: Tile<f32, { [C] }> =
                unsafe { gather(gate, column, is_column, 0.0f32, new_token_unordered()) };
            let weight: Tile<f32, { [1, C] }> = weight.reshape(const_shape![1, C]);
            let logit: Tile<f32, { [R] }> =
                reduce_sum(x * weight.broadcast(const_shape![R, C]), 1i32);
            let open: Tile<f32, { [R, 1] }> = sigmoid::<R, 1>(logit.reshape(const_shape![R, 1]));
            added = added * open.broadcast(const_shape![R, C]);
        }
        // SAFETY: out has the rows of shared.
        let values: Tile<f32, { [R, C] }> = unsafe { load_values(out, offsets, mask, ready) };
        let sum: Tile<A, { [R, C] }> = convert_tile(values + added);
        // SAFETY: as above.
        unsafe { scatter_block(out, offsets, mask, sum, ready) };
    }
}

/// Most elements of a row: all of it is held in registers.
const WIDTH_MAX: usize = 16384;

/// Elements that a block holds where rows are short.
const BLOCK_ELEMENTS: usize = 1024;

/// Adds the rows of a shared expert.
#[derive(Debug, Clone)]
pub struct AddShared<A> {
    kernel: Kernel,
    width: usize,
    rows: usize,
    is_gated: bool,
    element: PhantomData<A>,
}

impl<A: Element> AddShared<A> {
    /// Asks for the kernel for rows of `width` elements.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a width that does not fit registers, [`MoeError::Cuda`] when the kernel is
    /// missing and cannot be made.
    pub fn load(kernels: &mut Kernels, width: usize, is_gated: bool) -> Result<Self, MoeError> {
        if width == 0 || width > WIDTH_MAX {
            let allowed = format!("in 1..={WIDTH_MAX} on a GPU");
            return Err(MoeError::config("width of a shared expert's rows", width, allowed));
        }
        let columns = width.next_power_of_two();
        let rows = (BLOCK_ELEMENTS / columns).max(1);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("shared/add", module, "kernels", "add_shared")
            .element(A::NAME)
            .generics([width, rows, columns].map(|size| size as i32))
            .generics([i32::from(is_gated)])
            .pointers(["out", "shared", "hidden", "gate"])
            .warps(if columns > 4096 { 8 } else { 4 })
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, width, rows, is_gated, element: PhantomData })
    }

    /// Adds `shared` `[T, H]` to `out` `[T, H]`; `gate`: what the expert read, `[T, H]`, and the weights of
    /// its gate, `[H]`.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there is a gate that was not asked for, or none that was.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        shared: DeviceSlice<'_, A>,
        gate: Option<(DeviceSlice<'_, A>, DeviceSlice<'_, f32>)>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        shared.expect_len("rows of a shared expert", tokens * self.width)?;
        out.expect_len("rows of the experts", tokens * self.width)?;
        let arguments = Arguments::new().slice_mut(out).slice(shared);
        let arguments = match (self.is_gated, gate) {
            (false, None) => arguments.no_slice().no_slice(),
            (true, Some((hidden, weights))) => {
                hidden.expect_len("rows that a gate reads", tokens * self.width)?;
                weights.expect_len("weights of a shared expert's gate", self.width)?;
                arguments.slice(hidden).slice(weights)
            }
            _ => panic!("this is a bug: a gate and its use must come together"),
        };
        let grid = [tokens.div_ceil(self.rows), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments.size(tokens)) }?;
        Ok(())
    }
}
