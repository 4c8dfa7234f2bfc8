//! Cosines and sines of the tokens of a step.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::LayersError;
use crate::rope::Rope;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `angles[t]` is `P` cosines and then `P` sines of `positions[t] * frequencies`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn make_angles<const R: i32, const P: i32, const C: i32, const PDL: i32>(
        positions: *mut i32,
        frequencies: *mut f32,
        angles: *mut f32,
        tokens: i32,
        scaling: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the positions.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let token: Tile<i32, { [R] }> = count_from::<R>(get_tile_block_id().0 * R);
        let is_token: Tile<bool, { [R] }> = below(token, tokens);
        let pair: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let is_pair: Tile<bool, { [C] }> = below(pair, P);
        // SAFETY: there is a position for each token.
        let position: Tile<i32, { [R] }> =
            unsafe { gather(positions, token, is_token, 0i32, ready) };
        let position: Tile<f32, { [R] }> = convert_tile(position);
        let position: Tile<f32, { [R, 1] }> = position.reshape(const_shape![R, 1]);
        // SAFETY: there is a frequency for each pair, which nobody writes.
        let frequency: Tile<f32, { [C] }> =
            unsafe { gather(frequencies, pair, is_pair, 0.0f32, new_token_unordered()) };
        let frequency: Tile<f32, { [1, C] }> = frequency.reshape(const_shape![1, C]);
        let angle: Tile<f32, { [R, C] }> =
            position.broadcast(const_shape![R, C]) * frequency.broadcast(const_shape![R, C]);
        let angle: Tile<f64, { [R, C] }> = convert_tile(angle);
        let cosine: Tile<f32, { [R, C] }> = convert_tile(cos(angle));
        let sine: Tile<f32, { [R, C] }> = convert_tile(sin(angle));
        let scaling: Tile<f32, { [R, C] }> = broadcast_scalar(scaling, const_shape![R, C]);
        let mask: Tile<bool, { [R, C] }> = block_mask(is_token, is_pair);
        let first: Tile<i64, { [R, C] }> = block_offsets(token, 2i32 * P, pair);
        let pairs: Tile<i32, { [C] }> = broadcast_scalar(P, const_shape![C]);
        let second: Tile<i64, { [R, C] }> = block_offsets(token, 2i32 * P, pair + pairs);
        // SAFETY: angles is `[tokens, 2 P]`.
        unsafe { scatter_block(angles, first, mask, cosine * scaling, ready) };
        // SAFETY: as above.
        unsafe { scatter_block(angles, second, mask, sine * scaling, ready) };
    }
}

/// Tokens of a block that makes angles.
const ANGLE_TOKENS: usize = 4;

/// Makes cosines and sines.
#[derive(Debug, Clone)]
pub struct RopeAngles {
    kernel: Kernel,
    pairs: usize,
    scaling: f32,
}

impl RopeAngles {
    /// Asks for the kernel of an embedding.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, rope: &Rope) -> Result<Self, LayersError> {
        let pairs = rope.inverse_frequencies().len();
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("rope/angles", module, "kernels", "make_angles")
            .generics([ANGLE_TOKENS, pairs, pairs.next_power_of_two()].map(|size| size as i32))
            .pointers(["positions", "frequencies", "angles"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, pairs, scaling: rope.attention_scaling() })
    }

    /// Numbers that the angles of `tokens` tokens are.
    pub fn angles_len(&self, tokens: usize) -> usize {
        tokens * 2 * self.pairs
    }

    /// Makes `angles` `[T, 2, pairs]` for `positions` `[T]`; `frequencies` are
    /// [`Rope::inverse_frequencies`].
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        positions: DeviceSlice<'_, i32>,
        frequencies: DeviceSlice<'_, f32>,
        angles: &mut DeviceSliceMut<'_, f32>,
    ) -> Result<(), LayersError> {
        positions.expect_len("positions of tokens", tokens)?;
        frequencies.expect_len("rotary frequencies", self.pairs)?;
        angles.expect_len("angles of tokens", self.angles_len(tokens))?;
        let arguments = Arguments::new().slice(positions).slice(frequencies).slice_mut(angles);
        let arguments = arguments.size(tokens).f32(self.scaling);
        let grid = [tokens.div_ceil(ANGLE_TOKENS), 1, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
