//! Products by head on the GPU: the weights of a head on the long side of the matrix units.
//!
//! Bytes: `heads * N * K` of the weights once, 2 bytes each, `T * heads * (K + N)` of rows. Up to some
//! hundred tokens that over the bandwidth is the floor. A row's bits do not depend on the others.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;

use super::HeadProductShape;
use crate::LayersError;
use crate::rope::RopeStyle;

#[cutile::module]
mod kernels {
    use crate::rope::heads::cuda::rope_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `BM` tokens and `BK` columns of a head's input, from `column` on; nothing that matters behind the
    /// last token.
    unsafe fn rows_of<A: ElementType, const BM: i32, const BK: i32, const ROW: i32>(
        x: *mut A,
        token: Tile<i32, { [BM] }>,
        column: i32,
        tokens: i32,
        ready: Token,
    ) -> Tile<A, { [BM, BK] }> {
        let always: Tile<bool, { [BK] }> = constant(true, const_shape![BK]);
        let mask: Tile<bool, { [BM, BK] }> = block_mask(below(token, tokens), always);
        let offsets: Tile<i64, { [BM, BK] }> = block_offsets(token, ROW, count_from::<BK>(column));
        // SAFETY: the caller vouches for the columns.
        unsafe { gather_block(x, offsets, mask, ready) }
    }

    /// `out[t, h, n]` = the sum over `k` of `w[h, n, k] * x[t, h, k]`. Grid: tiles of `BN` outputs, heads,
    /// tiles of tokens; with `D = 2 P` elements that turn one tile more, which turns those of each row
    /// behind its `K` inputs, to behind its `N` outputs.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply_heads<
        A: ElementType,
        const HEADS: i32,
        const TILES: i32,
        const STEPS: i32,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const ROW: i32,
        const STRIDE: i32,
        const OUT_ROW: i32,
        const OUT_STRIDE: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const STYLE: i32,
        const PDL: i32,
    >(
        w: &Tensor<A, { [-1, -1] }>,
        x: *mut A,
        angles: *mut f32,
        out: *mut A,
        tokens: i32,
    ) {
        let (tile, head, row): (i32, i32, i32) = get_tile_block_id();
        let token: Tile<i32, { [BM] }> = count_from::<BM>(row * BM);
        if tile < TILES {
            let weights: Partition<A, { [BN, BK] }> = w.partition(const_shape![BN, BK]);
            let of_head: i32 = head * TILES + tile;
            // The first weights are under way while the kernel before ends.
            let first: Tile<A, { [BN, BK] }> = weights.load([of_head, 0i32]);
            // SAFETY: launched as its specification says, after whatever wrote the rows.
            let ready: Token = unsafe { hand_over::<PDL>() };
            // SAFETY: there is a row for each token.
            let right: Tile<A, { [BM, BK] }> =
                unsafe { rows_of::<A, BM, BK, ROW>(x, token, head * STRIDE, tokens, ready) };
            let zero: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
            let mut sum: Tile<f32, { [BN, BM] }> = mmaf(first, right.transpose(), zero);
            if STEPS > 1i32 {
                for step in 1i32..STEPS {
                    let left: Tile<A, { [BN, BK] }> = weights.load([of_head, step]);
                    let column: i32 = head * STRIDE + step * BK;
                    // SAFETY: as above.
                    let right: Tile<A, { [BM, BK] }> =
                        unsafe { rows_of::<A, BM, BK, ROW>(x, token, column, tokens, ready) };
                    sum = mmaf(left, right.transpose(), sum);
                }
            }
            let sum: Tile<A, { [BM, BN] }> = convert_tile(sum.transpose());
            let output: Tile<i32, { [BN] }> = count_from::<BN>(head * OUT_STRIDE + tile * BN);
            let always: Tile<bool, { [BN] }> = constant(true, const_shape![BN]);
            let offsets: Tile<i64, { [BM, BN] }> = block_offsets(token, OUT_ROW, output);
            let mask: Tile<bool, { [BM, BN] }> = block_mask(below(token, tokens), always);
            // SAFETY: `out` has a row for each token.
            unsafe { scatter_block(out, offsets, mask, sum, ready) };
        }
        if D > 0i32 {
            if tile == TILES {
                let place: [i32; 2] = [head * STRIDE + STEPS * BK, head * OUT_STRIDE + TILES * BN];
                // SAFETY: both have a row for each token.
                unsafe {
                    turn_rows::<A, BM, ROW, OUT_ROW, D, P, C, STYLE, PDL>(
                        x, angles, out, token, place, tokens,
                    )
                };
            }
        }
    }

    /// Turns `D` elements of each row. `place`: their first columns in the input and in the output.
    unsafe fn turn_rows<
        A: ElementType,
        const BM: i32,
        const ROW: i32,
        const OUT_ROW: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const STYLE: i32,
        const PDL: i32,
    >(
        x: *mut A,
        angles: *mut f32,
        out: *mut A,
        token: Tile<i32, { [BM] }>,
        place: [i32; 2],
        tokens: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the rows.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let from: Tile<i32, { [BM] }> = broadcast_scalar(place[0], const_shape![BM]);
        let to: Tile<i32, { [BM] }> = broadcast_scalar(place[1], const_shape![BM]);
        let from: Tile<i64, { [BM] }> =
            token_starts::<BM>(token, ROW) + token_starts::<BM>(from, 1i32);
        let to: Tile<i64, { [BM] }> =
            token_starts::<BM>(token, OUT_ROW) + token_starts::<BM>(to, 1i32);
        let is_token: Tile<bool, { [BM] }> = below(token, tokens);
        // SAFETY: the caller vouches for the rows; there are neither parts nor a norm.
        unsafe {
            turn_heads::<A, BM, D, P, C, 0, 1, STYLE, 0, 1, ROW>(
                x,
                angles,
                0i32,
                out,
                angles,
                angles,
                [from, to],
                token,
                [is_token, is_token],
                0.0f32,
                ready,
            )
        };
    }
}

/// Tokens of a tile: few, some and many.
const TILE_TOKENS: [usize; 3] = [8, 32, 64];

/// Elements of each head that turn on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRotation {
    /// Elements that turn, behind the inputs of a head and then behind its outputs.
    pub rope_dim: usize,
    /// Which of them turn together.
    pub style: RopeStyle,
}

/// A product by head.
#[derive(Debug, Clone)]
pub struct HeadProduct<A> {
    kernels: [Kernel; 3],
    shape: HeadProductShape,
    rotation: Option<HeadRotation>,
    element: PhantomData<A>,
}

impl<A: HalfElement> HeadProduct<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for sizes without kernels, [`LayersError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: HeadProductShape,
        rotation: Option<HeadRotation>,
    ) -> Result<Self, LayersError> {
        let HeadProductShape { heads, inputs, outputs, .. } = shape;
        for (field, size) in [("inputs of a head", inputs), ("outputs of a head", outputs)] {
            if size == 0 || !size.is_multiple_of(32) {
                return Err(LayersError::config(field, size, "a multiple of 32 on a GPU"));
            }
        }
        if heads == 0 || shape.weights() > i32::MAX as usize {
            let allowed = "from 1 to 2^31 - 1 weights on a GPU";
            return Err(LayersError::config("heads", heads, allowed));
        }
        let mut of_tile = |tokens| kernels.get(&spec(A::NAME, &shape, rotation, tokens));
        let [few, some, many] = TILE_TOKENS;
        let kernels = [of_tile(few)?, of_tile(some)?, of_tile(many)?];
        Ok(Self { kernels, shape, rotation, element: PhantomData })
    }

    /// Multiplies the heads of `tokens` rows by `weights` `[heads, N, K]`; `angles`
    /// `[T, 2, rope_dim / 2]` of [`RopeAngles`](crate::rope::cuda::RopeAngles) where some elements turn.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are angles that were not asked for, or none that were.
    pub fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        (rows, weights): (DeviceSlice<'_, A>, DeviceSlice<'_, A>),
        angles: Option<DeviceSlice<'_, f32>>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let HeadProductShape { heads, inputs, input_row, outputs, output_stride, .. } = self.shape;
        rows.expect_len("rows of heads", tokens * input_row)?;
        weights.expect_len("weights of heads", self.shape.weights())?;
        out.expect_len("products by head", tokens * heads * output_stride)?;
        let arguments = Arguments::new().tensor(weights, &[heads * outputs, inputs]).slice(rows);
        let arguments = match (angles, self.rotation) {
            (Some(angles), Some(rotation)) => {
                angles.expect_len("angles of tokens", tokens * rotation.rope_dim)?;
                arguments.slice(angles)
            }
            (None, None) => arguments.no_slice(),
            _ => panic!("this is a bug: angles and their use must come together"),
        };
        let arguments = arguments.slice_mut(out).size(tokens);
        let size = TILE_TOKENS.iter().take(2).filter(|&&most| tokens > most).count();
        let tiles = outputs / tile_outputs(outputs) + usize::from(self.rotation.is_some());
        let grid = [tiles, heads, tokens.div_ceil(TILE_TOKENS[size])];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernels[size].launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// Outputs of a tile: the largest power of two that divides them, within what a block sums up.
fn tile_outputs(outputs: usize) -> usize {
    let most = if outputs > 128 { 128 } else { 64 };
    (1 << outputs.trailing_zeros()).min(most)
}

fn spec(
    element: &str,
    shape: &HeadProductShape,
    rotation: Option<HeadRotation>,
    tokens: usize,
) -> KernelSpec {
    let HeadProductShape { heads, inputs, outputs, .. } = *shape;
    let HeadProductShape { input_stride, input_row, output_stride, .. } = *shape;
    let (tile, step) = (tile_outputs(outputs), (1 << inputs.trailing_zeros()).min(128));
    let tiles = [heads, outputs / tile, inputs / step, tokens, tile, step];
    let strides = [input_row, input_stride, heads * output_stride, output_stride];
    let dim = rotation.map_or(0, |rotation| rotation.rope_dim);
    let is_interleaved = rotation.is_some_and(|it| it.style == RopeStyle::Interleaved);
    let turned = [dim, dim / 2, (dim / 2).next_power_of_two(), usize::from(is_interleaved)];
    let module = kernels::__module_ast_self;
    KernelSpec::new("attention/heads", module, "kernels", "multiply_heads")
        .element(element)
        .generics(tiles.into_iter().chain(strides).chain(turned).map(|size| size as i32))
        .tensor("w", &[tile as i32, step as i32], &[inputs as i32, 1])
        .pointers(["x", "angles", "out"])
        .warps(4)
        .programmatic()
}
