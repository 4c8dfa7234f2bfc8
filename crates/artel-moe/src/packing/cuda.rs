//! Packing on the GPU: one element-wise launch that overlaps the end of the kernel before it.
//!
//! The CPU refuses an id that does not fit 16 bits. A kernel cannot without a round trip to the
//! host, so here such an id becomes -1, "no expert".

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::MoeError;

/// Pairs that one block packs.
const BLOCK: usize = 1024;

#[cutile::module]
mod kernels {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn pack_pairs<const B: i32, const PDL: i32>(
        ids: *mut i32,
        weights: *mut f32,
        packed: *mut i32,
        pairs: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote ids and weights.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let offsets: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let end: Tile<i32, { [B] }> = broadcast_scalar(pairs, const_shape![B]);
        let mask: Tile<bool, { [B] }> = lt_tile(offsets, end);
        // SAFETY: all three hold `pairs` elements; the mask keeps inside.
        let id: Tile<i32, { [B] }> = unsafe { gather(ids, offsets, mask, 0i32, ready) };
        // SAFETY: as above.
        let weight: Tile<f32, { [B] }> = unsafe { gather(weights, offsets, mask, 0.0f32, ready) };

        // An id that 16 bits cannot hold is no expert.
        let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        let id_max: Tile<i32, { [B] }> = constant(32767i32, const_shape![B]);
        let id: Tile<i32, { [B] }> = select(gt_tile(id, id_max), none, id);
        let id: Tile<i32, { [B] }> = select(lt_tile(id, none), none, id);

        let weight: Tile<bf16, { [B] }> = convert_tile(weight);
        let weight: Tile<i16, { [B] }> = bitcast(weight);
        let weight: Tile<i32, { [B] }> = exti(weight);
        let low_half: Tile<i32, { [B] }> = constant(65535i32, const_shape![B]);
        let sixteen: Tile<i32, { [B] }> = constant(16i32, const_shape![B]);
        let pair: Tile<i32, { [B] }> = (id << sixteen) | (weight & low_half);
        // SAFETY: as above.
        unsafe { scatter(packed, offsets, mask, pair, ready) };
    }
}

/// The packing kernel.
#[derive(Debug, Clone)]
pub struct Pack {
    kernel: Kernel,
}

impl Pack {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels) -> Result<Self, MoeError> {
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("packing/pack", module, "kernels", "pack_pairs")
            .generics([BLOCK as i32])
            .pointers(["ids", "weights", "packed"])
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)? })
    }

    /// Packs `ids.len()` pairs.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: DeviceSlice<'_, i32>,
        weights: DeviceSlice<'_, f32>,
        packed: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), MoeError> {
        let pairs = ids.len();
        weights.expect_len("weights to pack", pairs)?;
        packed.expect_len("packed pairs", pairs)?;
        let arguments = Arguments::new().slice(ids).slice(weights).slice_mut(packed).size(pairs);
        // SAFETY: the arguments are the kernel's, all slices hold `pairs` elements.
        unsafe { self.kernel.launch(stream, [pairs.div_ceil(BLOCK), 1, 1], arguments) }?;
        Ok(())
    }
}
