//! The tokens that masks forbid.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::LayersError;
use crate::sample::cuda::CHUNK;

#[cutile::module]
mod mask_kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Makes the logits of forbidden tokens negative infinity. Row `r` has mask `masks[r]`, below 0
    /// none; a mask has a bit a token in `W` words. Grid: rows, chunks of `C`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn forbid<const V: i32, const C: i32, const W: i32, const PDL: i32>(
        logits: *mut f32,
        masks: *mut i32,
        words: *mut i32,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after the logits were written.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a number for each row.
        let mask: i32 = unsafe { load_i32(masks, row, ready) };
        if mask >= 0i32 {
            let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
            let is_id: Tile<bool, { [C] }> = below(id, V);
            let five: Tile<i32, { [C] }> = constant(5i32, const_shape![C]);
            let first: Tile<i32, { [C] }> = broadcast_scalar(mask * W, const_shape![C]);
            // SAFETY: there are `W` words for every mask that a row has.
            let word: Tile<i32, { [C] }> =
                unsafe { gather(words, first + (id >> five), is_id, 0i32, ready) };
            let last_bits: Tile<i32, { [C] }> = constant(31i32, const_shape![C]);
            let one: Tile<i32, { [C] }> = constant(1i32, const_shape![C]);
            let bit: Tile<i32, { [C] }> = (word >> (id & last_bits)) & one;
            let zero: Tile<i32, { [C] }> = constant(0i32, const_shape![C]);
            let is_forbidden: Tile<bool, { [C] }> = is_id & eq_tile(bit, zero);
            let offsets: Tile<i64, { [1, C] }> = block_offsets(count_from::<1>(row), V, id);
            let bits: Tile<i32, { [1, C] }> = constant(-8388608i32, const_shape![1, C]);
            let infinity: Tile<f32, { [1, C] }> = bitcast(bits);
            let is_forbidden: Tile<bool, { [1, C] }> = is_forbidden.reshape(const_shape![1, C]);
            // SAFETY: logits is `[rows, V]`.
            unsafe { scatter_block(logits, offsets, is_forbidden, infinity, ready) };
        }
    }
}

/// The only tokens that may come, for some rows of a step.
#[derive(Debug, Clone, Copy)]
pub struct RowMasks<'a> {
    /// `[rows]`: number of each row's mask, below 0: all tokens may come.
    pub of_rows: DeviceSlice<'a, i32>,
    /// `[masks, ceil(V / 32)]`: token `id` is bit `id % 32` of word `id / 32`.
    pub words: DeviceSlice<'a, i32>,
}

/// Applies masks.
#[derive(Debug, Clone)]
pub(crate) struct Forbid {
    kernel: Kernel,
    vocabulary: usize,
}

impl Forbid {
    pub(crate) fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        let module = mask_kernels::__module_ast_self;
        let words = vocabulary.div_ceil(32);
        let spec = KernelSpec::new("sample/forbid", module, "mask_kernels", "forbid")
            .generics([vocabulary, CHUNK, words].map(|size| size as i32))
            .pointers(["masks", "words"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, vocabulary })
    }

    /// Changes the logits of rows that have a mask.
    pub(crate) fn launch(
        &self,
        stream: &Stream,
        rows: usize,
        masks: &RowMasks<'_>,
        logits: &mut DeviceSliceMut<'_, f32>,
    ) -> Result<(), LayersError> {
        masks.of_rows.expect_len("masks of rows", rows)?;
        logits.expect_len("logits under masks", rows * self.vocabulary)?;
        let words = self.vocabulary.div_ceil(32);
        LayersError::check_rows("words of masks", words, masks.words.len())?;
        let arguments = Arguments::new().slice_mut(logits).slice(masks.of_rows).slice(masks.words);
        let grid = [rows, self.vocabulary.div_ceil(CHUNK), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches
        // for the numbers of masks.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
