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

use super::RopeStyle;
pub use super::angles::cuda::RopeAngles;
use crate::LayersError;
use crate::attention::BLOCK_TOKENS;
use crate::attention::cuda::CacheSlices;
use crate::linear::parts::cuda::PartSums;

#[cutile::module]
mod kernels {
    use crate::rope::heads::cuda::rope_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

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
        const PARTS: i32,
        const N: i32,
        const PDL: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        angles: *mut f32,
        q_weight: *mut f32,
        k_weight: *mut f32,
        slots: *mut i32,
        queries: *mut A,
        keys: *mut A,
        values: *mut A,
        tokens: i32,
        part_rows: i32,
        slots_total: i32,
        epsilon: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let within: Tile<i32, { [R] }> = head_within::<R, HB>();
        let token: Tile<i32, { [R] }> = token_of::<R, HB>(get_tile_block_id().0 * TB);
        let is_token: Tile<bool, { [R] }> = below(token, tokens);
        let first: i32 = get_tile_block_id().1 * HB;
        if first < QH {
            // SAFETY: queries and input have a row for every token.
            unsafe {
                turn_queries::<A, R, D, P, C, REST, RC, STYLE, NORM, QH, PARTS, N>(
                    input, sums, part_rows, queries, angles, q_weight, token, within, is_token,
                    first, epsilon, ready,
                )
            };
        } else {
            // SAFETY: there is a slot for each token.
            let slot: Tile<i32, { [R] }> = unsafe { gather(slots, token, is_token, -1i32, ready) };
            let none: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
            let is_kept: Tile<bool, { [R] }> = gt_tile(slot, none) & below(slot, slots_total);
            let is_row: [Tile<bool, { [R] }>; 2] = [is_token, is_kept];
            let first: i32 = first - QH;
            // SAFETY: rows that are kept have slots in the cache.
            unsafe {
                cache_heads::<A, QH, KH, D, DC, P, C, REST, RC, STYLE, NORM, HB, R, BT, PARTS, N>(
                    input, sums, part_rows, keys, values, angles, k_weight, slot, token, within,
                    is_row, first, epsilon, ready,
                )
            };
        }
    }
}

/// Tokens of a block where there are few and where there are many.
const BLOCK_TOKENS_BY_SIZE: [usize; 2] = [1, 4];

/// From so many tokens on, blocks have several.
const MANY_TOKENS: usize = 256;

/// Most heads of a block.
const BLOCK_HEADS: usize = 4;

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
    /// Parts in which the rows of few tokens may come, 2, 4 or 8; 1 for none.
    pub parts: usize,
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

    fn spec(&self, element: &str, block_tokens: usize, parts: usize) -> KernelSpec {
        let Self { query_heads, kv_heads, head_dim, rotary_dim, style, norm, .. } = *self;
        let (pairs, rest) = (rotary_dim / 2, head_dim - rotary_dim);
        let heads = self.block_heads();
        let style = if style == RopeStyle::Interleaved { 1 } else { 0 };
        let norm = if norm == HeadNorm::None { 0 } else { 1 };
        let dims = [head_dim, head_dim.next_power_of_two(), pairs, pairs.next_power_of_two()];
        let rest = [rest, rest.next_power_of_two(), style, norm];
        let block = [block_tokens, heads, block_tokens * heads, BLOCK_TOKENS];
        let parts = [parts, self.row_width()];
        let sizes = [query_heads, kv_heads].into_iter().chain(dims).chain(rest).chain(block);
        let sizes = sizes.chain(parts);
        let module = kernels::__module_ast_self;
        KernelSpec::new("rope/rotate_and_cache", module, "kernels", "rotate_and_cache")
            .element(element)
            .generics(sizes.map(|size| size as i32))
            .pointers(["input", "sums", "angles", "q_weight", "k_weight", "slots"])
            .pointers(["queries", "keys", "values"])
            .warps(4)
            .programmatic()
    }
}

/// Rows of the joint projection `[T, (query_heads + 2 kv_heads) * D]`: queries, keys, values.
#[derive(Debug, Clone, Copy)]
pub enum RotateRows<'a, A: Element> {
    /// As they are.
    Whole(DeviceSlice<'a, A>),
    /// In the parts that [`RotateShape::parts`] says.
    Parts(PartSums<'a>),
}

/// What is turned.
#[derive(Debug, Clone, Copy)]
pub struct RotateInputs<'a, A: Element> {
    /// The joint projection.
    pub rows: RotateRows<'a, A>,
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
    of_parts: Option<Kernel>,
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
        let [few, many] = BLOCK_TOKENS_BY_SIZE.map(|tokens| shape.spec(A::NAME, tokens, 1));
        let of_parts = match shape.parts {
            1 => None,
            parts => Some(kernels.get(&shape.spec(A::NAME, BLOCK_TOKENS_BY_SIZE[0], parts))?),
        };
        let kernels = [kernels.get(&few)?, kernels.get(&many)?];
        Ok(Self { kernels, of_parts, shape, element: PhantomData })
    }

    /// Writes turned queries to `queries` `[T, query_heads * D]`, turned keys and values to the cache.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are norm weights without a norm, or none with it, or parts that were not asked for.
    pub fn launch(
        &self,
        stream: &Stream,
        inputs: &RotateInputs<'_, A>,
        queries: &mut DeviceSliceMut<'_, A>,
        cache: &mut CacheSlices<'_, A>,
    ) -> Result<(), LayersError> {
        let RotateShape { query_heads, kv_heads, head_dim, rotary_dim, norm, .. } = self.shape;
        let tokens = inputs.tokens;
        inputs.angles.expect_len("angles of tokens", tokens * rotary_dim)?;
        inputs.slots.expect_len("slots of tokens", tokens)?;
        queries.expect_len("turned queries", tokens * query_heads * head_dim)?;
        let (kernel, block_tokens, arguments, part_rows) = self.rows(inputs)?;
        let arguments = arguments.slice(inputs.angles);
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
            .size(part_rows)
            .size(cache.blocks(kv_heads, head_dim) * BLOCK_TOKENS)
            .f32(epsilon);
        let heads = (query_heads + 2 * kv_heads) / self.shape.block_heads();
        let grid = [tokens.div_ceil(block_tokens), heads, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; slots outside of the
        // cache are passed over.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// The kernel for some rows and tokens of its blocks; its arguments up to the rows, and rows of a
    /// part.
    fn rows(
        &self,
        inputs: &RotateInputs<'_, A>,
    ) -> Result<(&Kernel, usize, Arguments, usize), LayersError> {
        let (tokens, width) = (inputs.tokens, self.shape.row_width());
        match (inputs.rows, &self.of_parts) {
            (RotateRows::Whole(rows), _) => {
                rows.expect_len("rows to turn", tokens * width)?;
                let many = usize::from(tokens >= MANY_TOKENS);
                let arguments = Arguments::new().slice(rows).no_slice();
                Ok((&self.kernels[many], BLOCK_TOKENS_BY_SIZE[many], arguments, 0))
            }
            (RotateRows::Parts(sums), Some(kernel)) => {
                let arguments = Arguments::new().no_slice();
                let arguments = sums.argument(arguments, self.shape.parts, [tokens, width])?;
                Ok((kernel, BLOCK_TOKENS_BY_SIZE[0], arguments, sums.rows))
            }
            _ => panic!("this is a bug: rows in parts that were not asked for"),
        }
    }
}
