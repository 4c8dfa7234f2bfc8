//! Pairs counted on the GPU: all layers of a step in one launch.
//!
//! Counting is integer addition, so the order in which blocks add does not matter.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::CountShape;
use crate::MoeError;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// `counts[layer, ids[layer, pair]] += 1`; grid: blocks of pairs, layers.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn count_pairs<const B: i32, const PDL: i32>(
        counts: *mut i32,
        ids: *mut i32,
        pairs: i32,
        stride: i32,
        experts: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the ids.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let layer: i32 = get_tile_block_id().1;
        let pair: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let start: Tile<i32, { [B] }> = broadcast_scalar(layer * stride, const_shape![B]);
        // SAFETY: the mask keeps inside the pairs of the layer.
        let id: Tile<i32, { [B] }> =
            unsafe { gather(ids, start + pair, below(pair, pairs), -1i32, ready) };
        let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        let is_expert: Tile<bool, { [B] }> = gt_tile(id, none) & below(id, experts);
        let start: Tile<i32, { [B] }> = broadcast_scalar(layer * experts, const_shape![B]);
        let one: Tile<i32, { [B] }> = constant(1i32, const_shape![B]);
        let pointer: PointerTile<*mut i32, { [] }> = pointer_to_tile(counts);
        let pointer: PointerTile<*mut i32, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut i32, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut i32, { [B] }> = pointer.offset_tile(start + id);
        // SAFETY: there is a counter for each expert of each layer.
        let (_before, _added): (Tile<i32, { [B] }>, Token) = unsafe {
            atomic_rmw_tko(
                pointer,
                one,
                atomic::Add,
                ordering::Relaxed,
                scope::Device,
                Some(is_expert),
                Some(ready),
            )
        };
    }
}

/// Pairs of a block.
const BLOCK_PAIRS: usize = 128;

/// Counts the pairs of each expert.
#[derive(Debug, Clone)]
pub struct CountPairs {
    kernel: Kernel,
}

impl CountPairs {
    /// Asks for the kernel, which serves all sizes.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels) -> Result<Self, MoeError> {
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("eplb/count", module, "kernels", "count_pairs")
            .generics([BLOCK_PAIRS as i32])
            .pointers(["counts", "ids"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)? })
    }

    /// Adds the pairs of all layers to `counts` `[layers, E]`, which wrap around. `ids`:
    /// [`CountShape::stride`] for each layer.
    ///
    /// # Errors
    /// [`MoeError::Config`] for more pairs than a layer has room for, [`MoeError::Cuda`] when a slice is
    /// too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: CountShape,
        ids: DeviceSlice<'_, i32>,
        counts: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), MoeError> {
        let CountShape { layers, pairs, stride, experts } = shape;
        shape.check()?;
        ids.expect_len("ids of all layers", layers * stride)?;
        counts.expect_len("counters of experts", layers * experts)?;
        let arguments = Arguments::new().slice_mut(counts).slice(ids);
        let arguments = arguments.size(pairs).size(stride).size(experts);
        let grid = [pairs.div_ceil(BLOCK_PAIRS), layers, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
