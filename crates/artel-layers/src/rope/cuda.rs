//! Rotary embedding on the GPU, together with what stands around it: the norm of queries and keys by
//! head before, the write of keys and values to the paged cache after.
//!
//! [`RopeAngles`] makes cosines and sines of the tokens of a step once, for all layers: angles are
//! float32, as everywhere, their cosines those of float64. [`RotateAndCache`] then reads the rows
//! `[T, (query_heads + 2 kv_heads) * D]` of the joint projection once and writes queries, keys and
//! values where attention reads them.
//!
//! Bytes of `T` tokens: `2 T (query_heads + 2 kv_heads) D` numbers and `T * rotary_dim` float32. At few
//! tokens the time is that of a launch. A token's bits do not depend on the other tokens.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::Element;

use super::{Rope, RopeStyle};
use crate::LayersError;
use crate::attention::BLOCK_TOKENS;
use crate::attention::cuda::CacheSlices;

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

    /// Columns of the first and of the second element of each pair.
    fn pair_columns<const C: i32, const P: i32, const STYLE: i32>(
        second: i32,
    ) -> Tile<i32, { [C] }> {
        let mut columns: Tile<i32, { [C] }> = count_from::<C>(second * P);
        if STYLE == 1i32 {
            let pair: Tile<i32, { [C] }> = count_from::<C>(0i32);
            let offset: Tile<i32, { [C] }> = broadcast_scalar(second, const_shape![C]);
            columns = pair + pair + offset;
        }
        columns
    }

    /// Some columns of some rows as float32, zero outside of the mask.
    unsafe fn load_columns<A: ElementType, const R: i32, const C: i32>(
        base: *mut A,
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let offsets: Tile<i64, { [R, C] }> = offsets_at(starts, columns);
        // SAFETY: the caller vouches for starts and columns.
        let values: Tile<A, { [R, C] }> = unsafe { gather_block(base, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    fn offsets_at<const R: i32, const C: i32>(
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
    ) -> Tile<i64, { [R, C] }> {
        let starts: Tile<i64, { [R, 1] }> = starts.reshape(const_shape![R, 1]);
        let columns: Tile<i64, { [C] }> = exti(columns);
        let columns: Tile<i64, { [1, C] }> = columns.reshape(const_shape![1, C]);
        starts.broadcast(const_shape![R, C]) + columns.broadcast(const_shape![R, C])
    }

    unsafe fn store_columns<A: ElementType, const R: i32, const C: i32>(
        base: *mut A,
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        values: Tile<f32, { [R, C] }>,
        after: Token,
    ) {
        let values: Tile<A, { [R, C] }> = convert_tile(values);
        // SAFETY: the caller vouches for starts and columns.
        unsafe { scatter_block(base, offsets_at(starts, columns), mask, values, after) };
    }

    /// The weights of some columns, the same for every row.
    unsafe fn weights_of<const R: i32, const C: i32>(
        weight: *mut f32,
        columns: Tile<i32, { [C] }>,
        is_column: Tile<bool, { [C] }>,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the columns; nobody writes weights.
        let weight: Tile<f32, { [C] }> =
            unsafe { gather(weight, columns, is_column, 0.0f32, new_token_unordered()) };
        let weight: Tile<f32, { [1, C] }> = weight.reshape(const_shape![1, C]);
        weight.broadcast(const_shape![R, C])
    }

    fn down<const R: i32, const C: i32>(column: Tile<f32, { [R] }>) -> Tile<f32, { [R, C] }> {
        let column: Tile<f32, { [R, 1] }> = column.reshape(const_shape![R, 1]);
        column.broadcast(const_shape![R, C])
    }

    /// `1 / sqrt(squares / D + epsilon)`.
    fn norm_scale<const R: i32, const D: i32>(
        squares: Tile<f32, { [R] }>,
        epsilon: f32,
    ) -> Tile<f32, { [R] }> {
        let width: i32 = D;
        let width: f32 = convert_scalar(width);
        let width: Tile<f32, { [R] }> = broadcast_scalar(width, const_shape![R]);
        let epsilon: Tile<f32, { [R] }> = broadcast_scalar(epsilon, const_shape![R]);
        let root: Tile<f32, { [R] }> =
            sqrt(squares / width + epsilon, rounding::NearestEven, ftz::Disabled);
        let one: Tile<f32, { [R] }> = constant(1.0f32, const_shape![R]);
        one / root
    }

    /// Turns one head in each of `R` rows: from `source` to `target`, which say where heads start.
    unsafe fn turn_heads<
        A: ElementType,
        const R: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
    >(
        input: *mut A,
        out: *mut A,
        angles: *mut f32,
        weight: *mut f32,
        starts: [Tile<i64, { [R] }>; 2],
        token: Tile<i32, { [R] }>,
        is_row: [Tile<bool, { [R] }>; 2],
        epsilon: f32,
        after: Token,
    ) {
        let is_pair: Tile<bool, { [C] }> = below(count_from::<C>(0i32), P);
        let first: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(0i32);
        let second: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(1i32);
        let rest: Tile<i32, { [RC] }> = count_from::<RC>(2i32 * P);
        let is_rest: Tile<bool, { [RC] }> = below(rest, D);
        let read: Tile<bool, { [R, C] }> = block_mask(is_row[0], is_pair);
        let write: Tile<bool, { [R, C] }> = block_mask(is_row[1], is_pair);
        // SAFETY: the caller vouches for the heads.
        let mut a: Tile<f32, { [R, C] }> =
            unsafe { load_columns(input, starts[0], first, read, after) };
        // SAFETY: as above.
        let mut b: Tile<f32, { [R, C] }> =
            unsafe { load_columns(input, starts[0], second, read, after) };
        let mut tail: Tile<f32, { [R, RC] }> = constant(0.0f32, const_shape![R, RC]);
        if REST > 0i32 {
            // SAFETY: as above.
            tail = unsafe {
                load_columns(input, starts[0], rest, block_mask(is_row[0], is_rest), after)
            };
        }
        if NORM == 1i32 {
            let pairs: Tile<f32, { [R] }> = reduce_sum(a * a + b * b, 1i32);
            let others: Tile<f32, { [R] }> = reduce_sum(tail * tail, 1i32);
            let scale: Tile<f32, { [R] }> = norm_scale::<R, D>(pairs + others, epsilon);
            // SAFETY: the weight has `D` elements.
            a = unsafe { weights_of::<R, C>(weight, first, is_pair) } * (a * down::<R, C>(scale));
            // SAFETY: as above.
            b = unsafe { weights_of::<R, C>(weight, second, is_pair) } * (b * down::<R, C>(scale));
            if REST > 0i32 {
                // SAFETY: as above.
                tail = unsafe { weights_of::<R, RC>(weight, rest, is_rest) }
                    * (tail * down::<R, RC>(scale));
            }
        }
        let from: Tile<i64, { [R] }> = token_starts::<R>(token, 2i32 * P);
        let cosines: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let sines: Tile<i32, { [C] }> = count_from::<C>(P);
        // SAFETY: angles has a row for every token.
        let cosine: Tile<f32, { [R, C] }> =
            unsafe { load_columns(angles, from, cosines, read, after) };
        // SAFETY: as above.
        let sine: Tile<f32, { [R, C] }> = unsafe { load_columns(angles, from, sines, read, after) };
        // SAFETY: the caller vouches for the heads.
        unsafe { store_columns(out, starts[1], first, write, a * cosine - b * sine, after) };
        // SAFETY: as above.
        unsafe { store_columns(out, starts[1], second, write, b * cosine + a * sine, after) };
        if REST > 0i32 {
            // SAFETY: as above.
            unsafe {
                store_columns(out, starts[1], rest, block_mask(is_row[1], is_rest), tail, after)
            };
        }
    }

    fn token_starts<const R: i32>(row: Tile<i32, { [R] }>, stride: i32) -> Tile<i64, { [R] }> {
        let row: Tile<i64, { [R] }> = exti(row);
        let stride: Tile<i32, { [R] }> = broadcast_scalar(stride, const_shape![R]);
        let stride: Tile<i64, { [R] }> = exti(stride);
        row * stride
    }

    /// Where a head of a token begins in the cache: row `slot % BT` of block `slot / BT`.
    fn cache_starts<const R: i32, const D: i32, const KH: i32, const BT: i32>(
        slot: Tile<i32, { [R] }>,
        head: Tile<i32, { [R] }>,
    ) -> Tile<i64, { [R] }> {
        let size: Tile<i32, { [R] }> = broadcast_scalar(BT, const_shape![R]);
        let heads: Tile<i32, { [R] }> = broadcast_scalar(KH, const_shape![R]);
        let block: Tile<i32, { [R] }> = slot / size;
        token_starts::<R>((block * heads + head) * size + (slot - block * size), D)
    }

    /// Values as they are, `R` rows of one head each.
    unsafe fn copy_heads<A: ElementType, const R: i32, const D: i32, const DC: i32>(
        input: *mut A,
        out: *mut A,
        from: Tile<i64, { [R] }>,
        to: Tile<i64, { [R] }>,
        is_row: Tile<bool, { [R] }>,
        after: Token,
    ) {
        let column: Tile<i32, { [DC] }> = count_from::<DC>(0i32);
        let mask: Tile<bool, { [R, DC] }> = block_mask(is_row, below(column, D));
        // SAFETY: the caller vouches for the heads.
        let values: Tile<A, { [R, DC] }> =
            unsafe { gather_block(input, offsets_at(from, column), mask, after) };
        // SAFETY: as above.
        unsafe { scatter_block(out, offsets_at(to, column), mask, values, after) };
    }

    /// `HB` heads of each of `TB` tokens, `R = TB * HB` rows. Grid: blocks of tokens, and blocks of
    /// heads: first those of queries, then of keys, then of values.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn rotate_and_cache<
        A: ElementType,
        const QH: i32,
        const KH: i32,
        const D: i32,
        const DC: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
        const TB: i32,
        const HB: i32,
        const R: i32,
        const BT: i32,
        const PDL: i32,
    >(
        input: *mut A,
        angles: *mut f32,
        query_weight: *mut f32,
        key_weight: *mut f32,
        slots: *mut i32,
        queries: *mut A,
        keys: *mut A,
        values: *mut A,
        tokens: i32,
        slots_total: i32,
        epsilon: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [R] }> = count_from::<R>(0i32);
        let side: Tile<i32, { [R] }> = broadcast_scalar(HB, const_shape![R]);
        let first: Tile<i32, { [R] }> =
            broadcast_scalar(get_tile_block_id().0 * TB, const_shape![R]);
        let token: Tile<i32, { [R] }> = row / side + first;
        let within: Tile<i32, { [R] }> = row - row / side * side;
        let is_token: Tile<bool, { [R] }> = below(token, tokens);
        // SAFETY: there is a slot for each token.
        let slot: Tile<i32, { [R] }> = unsafe { gather(slots, token, is_token, -1i32, ready) };
        let none: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
        let is_kept: Tile<bool, { [R] }> = gt_tile(slot, none) & below(slot, slots_total);
        let zero: Tile<i32, { [R] }> = constant(0i32, const_shape![R]);
        let slot: Tile<i32, { [R] }> = max_tile(slot, zero);
        let row_start: Tile<i64, { [R] }> = token_starts::<R>(token, (QH + 2i32 * KH) * D);
        let block: i32 = get_tile_block_id().1;
        if block < QH / HB {
            let start: Tile<i32, { [R] }> = broadcast_scalar(block * HB, const_shape![R]);
            let at: Tile<i64, { [R] }> = token_starts::<R>(within + start, D);
            let to: Tile<i64, { [R] }> = token_starts::<R>(token, QH * D) + at;
            // SAFETY: queries and input have a row for every token.
            unsafe {
                turn_heads::<A, R, D, P, C, REST, RC, STYLE, NORM>(
                    input,
                    queries,
                    angles,
                    query_weight,
                    [row_start + at, to],
                    token,
                    [is_token, is_token],
                    epsilon,
                    ready,
                )
            };
        } else {
            let first: i32 = (block - QH / HB) * HB;
            if first < KH {
                let start: Tile<i32, { [R] }> = broadcast_scalar(first, const_shape![R]);
                let head: Tile<i32, { [R] }> = within + start;
                let from: Tile<i32, { [R] }> = broadcast_scalar(QH, const_shape![R]);
                let at: Tile<i64, { [R] }> = token_starts::<R>(head + from, D);
                // SAFETY: slots lie inside the cache.
                unsafe {
                    turn_heads::<A, R, D, P, C, REST, RC, STYLE, NORM>(
                        input,
                        keys,
                        angles,
                        key_weight,
                        [row_start + at, cache_starts::<R, D, KH, BT>(slot, head)],
                        token,
                        [is_token, is_kept],
                        epsilon,
                        ready,
                    )
                };
            } else {
                let start: Tile<i32, { [R] }> = broadcast_scalar(first - KH, const_shape![R]);
                let head: Tile<i32, { [R] }> = within + start;
                let from: Tile<i32, { [R] }> = broadcast_scalar(QH + KH, const_shape![R]);
                let at: Tile<i64, { [R] }> = token_starts::<R>(head + from, D);
                let to: Tile<i64, { [R] }> = cache_starts::<R, D, KH, BT>(slot, head);
                // SAFETY: as above.
                unsafe {
                    copy_heads::<A, R, D, DC>(input, values, row_start + at, to, is_kept, ready)
                };
            }
        }
    }
}

/// Tokens of a block where there are few and where there are many.
const BLOCK_TOKENS_BY_SIZE: [usize; 2] = [1, 4];

/// From so many tokens on, blocks have several.
const MANY_TOKENS: usize = 256;

/// Most heads of a block.
const BLOCK_HEADS: usize = 4;

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

/// What becomes of queries and keys before they are turned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadNorm {
    /// Nothing, or it has been done.
    None,
    /// RMS norm of each head with a weight `[D]`.
    ByHead {
        /// Added to the mean square.
        epsilon: f32,
    },
}

/// Heads of the joint projection and how they turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotateShape {
    /// Query heads of a token.
    pub query_heads: usize,
    /// Key-value heads of a token.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that turn, the first ones: [`super::RopeConfig::rotary_dim`].
    pub rotary_dim: usize,
    /// Pairing.
    pub style: RopeStyle,
    /// Norm of queries and keys.
    pub norm: HeadNorm,
}

impl RotateShape {
    /// Elements of a row of the joint projection.
    pub fn row_width(&self) -> usize {
        (self.query_heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self) -> Result<(), LayersError> {
        let Self { query_heads, kv_heads, head_dim, rotary_dim, .. } = *self;
        if query_heads == 0 || kv_heads == 0 {
            return Err(LayersError::config("heads", query_heads.min(kv_heads), "at least 1"));
        }
        if head_dim == 0 || head_dim > 1024 {
            return Err(LayersError::config("head_dim", head_dim, "in 1..=1024 on a GPU"));
        }
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            let allowed = format!("even and in 2..={head_dim}");
            return Err(LayersError::config("rotary_dim", rotary_dim, allowed));
        }
        Ok(())
    }

    /// Heads of a block: a power of two that divides both counts.
    fn block_heads(&self) -> usize {
        let shared = self.query_heads | self.kv_heads;
        (1 << shared.trailing_zeros()).min(BLOCK_HEADS)
    }

    fn spec(&self, element: &str, block_tokens: usize) -> KernelSpec {
        let Self { query_heads, kv_heads, head_dim, rotary_dim, style, norm } = *self;
        let (pairs, rest) = (rotary_dim / 2, head_dim - rotary_dim);
        let heads = self.block_heads();
        let style = if style == RopeStyle::Interleaved { 1 } else { 0 };
        let norm = if norm == HeadNorm::None { 0 } else { 1 };
        let dims = [head_dim, head_dim.next_power_of_two(), pairs, pairs.next_power_of_two()];
        let rest = [rest, rest.next_power_of_two(), style, norm];
        let block = [block_tokens, heads, block_tokens * heads, BLOCK_TOKENS];
        let sizes = [query_heads, kv_heads].into_iter().chain(dims).chain(rest).chain(block);
        let module = kernels::__module_ast_self;
        KernelSpec::new("rope/rotate_and_cache", module, "kernels", "rotate_and_cache")
            .element(element)
            .generics(sizes.map(|size| size as i32))
            .pointers(["input", "angles", "query_weight", "key_weight", "slots"])
            .pointers(["queries", "keys", "values"])
            .warps(4)
            .programmatic()
    }
}

/// What is turned.
#[derive(Debug, Clone, Copy)]
pub struct RotateInputs<'a, A: Element> {
    /// Rows of the joint projection `[T, (query_heads + 2 kv_heads) * D]`: queries, keys, values.
    pub rows: DeviceSlice<'a, A>,
    /// `T`.
    pub tokens: usize,
    /// `[T, 2, pairs]` of [`RopeAngles`].
    pub angles: DeviceSlice<'a, f32>,
    /// Weights `[D]` of queries and of keys, present exactly with [`HeadNorm::ByHead`].
    pub norm_weights: Option<[DeviceSlice<'a, f32>; 2]>,
    /// Where keys and values of each token go, `[T]`: `block * 16 + row`; outside of the cache, such as
    /// at -1: nowhere.
    pub slots: DeviceSlice<'a, i32>,
}

/// Norm, rotation and the write to the cache in one.
#[derive(Debug, Clone)]
pub struct RotateAndCache<A> {
    kernels: [Kernel; 2],
    shape: RotateShape,
    element: PhantomData<A>,
}

impl<A: Element> RotateAndCache<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for heads that do not fit, [`LayersError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(kernels: &mut Kernels, shape: RotateShape) -> Result<Self, LayersError> {
        shape.check()?;
        let [few, many] = BLOCK_TOKENS_BY_SIZE.map(|tokens| shape.spec(A::NAME, tokens));
        let kernels = [kernels.get(&few)?, kernels.get(&many)?];
        Ok(Self { kernels, shape, element: PhantomData })
    }

    /// Writes turned queries to `queries` `[T, query_heads * D]`, turned keys and values to the cache.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are norm weights without a norm, or none with it.
    pub fn launch(
        &self,
        stream: &Stream,
        inputs: &RotateInputs<'_, A>,
        queries: &mut DeviceSliceMut<'_, A>,
        cache: &mut CacheSlices<'_, A>,
    ) -> Result<(), LayersError> {
        let RotateShape { query_heads, kv_heads, head_dim, rotary_dim, norm, .. } = self.shape;
        let tokens = inputs.tokens;
        inputs.rows.expect_len("rows to turn", tokens * self.shape.row_width())?;
        inputs.angles.expect_len("angles of tokens", tokens * rotary_dim)?;
        inputs.slots.expect_len("slots of tokens", tokens)?;
        queries.expect_len("turned queries", tokens * query_heads * head_dim)?;
        let arguments = Arguments::new().slice(inputs.rows).slice(inputs.angles);
        let (arguments, epsilon) = match (norm, inputs.norm_weights) {
            (HeadNorm::None, None) => (arguments.no_slice().no_slice(), 0.0),
            (HeadNorm::ByHead { epsilon }, Some([of_queries, of_keys])) => {
                of_queries.expect_len("norm weights of queries", head_dim)?;
                of_keys.expect_len("norm weights of keys", head_dim)?;
                (arguments.slice(of_queries).slice(of_keys), epsilon)
            }
            _ => panic!("this is a bug: norm weights and their use must come together"),
        };
        let arguments = arguments
            .slice(inputs.slots)
            .slice_mut(queries)
            .slice_mut(&cache.keys)
            .slice_mut(&cache.values)
            .size(tokens)
            .size(cache.blocks(kv_heads, head_dim) * BLOCK_TOKENS)
            .f32(epsilon);
        let many = usize::from(tokens >= MANY_TOKENS);
        let heads = (query_heads + 2 * kv_heads) / self.shape.block_heads();
        let grid = [tokens.div_ceil(BLOCK_TOKENS_BY_SIZE[many]), heads, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; slots outside of the
        // cache are passed over.
        unsafe { self.kernels[many].launch(stream, grid, arguments) }?;
        Ok(())
    }
}
