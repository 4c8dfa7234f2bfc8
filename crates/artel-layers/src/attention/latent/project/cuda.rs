//! Norms of the latent vectors and the rotation of the rotary key, with the write to the cache, in one
//! launch: the rows of the joint projection of queries, keys and values, or the parts in which it left
//! few of them, are read once.
//!
//! Bytes of `T` tokens: `T (query_columns + rank + rope_dim)` numbers read and written. At few tokens the time
//! is that of a launch. A token's bits do not depend on the other tokens.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::activations::ScaleBounds;
use artel_moe::quant::activations::cuda::QuantizedRows;
use artel_moe::quant::{BLOCK, Element};

use super::super::LatentProjection;
use crate::LayersError;
use crate::linear::parts::cuda::PartSums;
use crate::rms_norm::cuda::WIDTH_MAX;
use crate::rope::RopeStyle;

#[cutile::module]
mod kernels {
    use crate::linear::parts::cuda::part_code::*;
    use crate::rms_norm::code::cuda::norm_code::*;
    use crate::rope::heads::cuda::rope_code::*;
    use artel_moe::cuda::device_code::*;
    use artel_moe::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// `C` columns from `first` on of a row of `N`, normalised over `H` of them.
    unsafe fn normed_columns<
        A: ElementType,
        const H: i32,
        const C: i32,
        const N: i32,
        const PARTS: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        weight: *mut f32,
        token: i32,
        first: i32,
        part_rows: i32,
        epsilon: f32,
        ready: Token,
    ) -> Tile<A, { [1, C] }> {
        let within: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let column: Tile<i32, { [C] }> = count_from::<C>(first);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, below(within, H));
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let mut values: Tile<f32, { [1, C] }> = constant(0.0f32, const_shape![1, C]);
        if PARTS > 1i32 {
            let start: Tile<i64, { [1] }> = token_starts::<1>(row, N);
            // SAFETY: every part has the row.
            let sum: Tile<f32, { [1, C] }> =
                unsafe { sum_parts::<1, C, PARTS, N>(sums, start, part_rows, column, mask, ready) };
            let rounded: Tile<A, { [1, C] }> = convert_tile(sum);
            values = convert_tile(rounded);
        }
        if PARTS == 1i32 {
            // SAFETY: the input has the row.
            values = unsafe { load_values(input, block_offsets(row, N, column), mask, ready) };
        }
        // SAFETY: the weight has `H` elements.
        let values: Tile<f32, { [1, C] }> =
            unsafe { normalized::<1, C, H>(values, weight, within, epsilon) };
        convert_tile(values)
    }

    /// Stores a row of `H` as codes, a scale for 128 columns.
    unsafe fn store_codes<
        A: ElementType,
        const H: i32,
        const C: i32,
        const GROUPS: i32,
        const TOTAL: i32,
    >(
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        values: Tile<A, { [1, C] }>,
        token: i32,
        strides: [i32; 2],
        bounds: [f32; 2],
        ready: Token,
    ) {
        let values: Tile<f32, { [1, C] }> = convert_tile(values);
        let found: Tile<f32, { [1, GROUPS] }> =
            group_scales::<1, C, GROUPS, 128>(values, bounds[0], bounds[1]);
        let code: Tile<f8e4m3fn, { [1, C] }> = to_codes::<1, C, GROUPS, 128>(values, found);
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let column: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mask: Tile<bool, { [1, C] }> = block_mask(always, below(column, H));
        // SAFETY: the caller vouches for the row.
        unsafe { scatter_block(codes, block_offsets(row, H, column), mask, code, ready) };
        // SAFETY: as above.
        unsafe {
            store_scales::<1, GROUPS>(
                scales, found, row, always, 0i32, TOTAL, strides[0], strides[1], ready,
            )
        };
    }

    /// Grid: tokens, and two: the row of the cache, the query latents, which are not always normalised.
    /// Rows are `N` wide: `FIRST` of queries, `L` of the latent vector, `D = 2 P` that turn. `Q`: width of
    /// the norm of queries; `QC`, `C`: `Q` and `P` rounded up to powers of two.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn project_latents<
        A: ElementType,
        const FIRST: i32,
        const Q: i32,
        const QC: i32,
        const GROUPS: i32,
        const TOTAL: i32,
        const L: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const W: i32,
        const N: i32,
        const STYLE: i32,
        const CODES: i32,
        const PARTS: i32,
        const PDL: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        angles: *mut f32,
        query_weight: *mut f32,
        weight: *mut f32,
        slots: *mut i32,
        queries: *mut A,
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        keys: *mut A,
        part_rows: i32,
        slots_total: i32,
        row_stride: i32,
        group_stride: i32,
        query_epsilon: f32,
        epsilon: f32,
        least: f32,
        most: f32,
    ) {
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let (token, section, _): (i32, i32, i32) = get_tile_block_id();
        if section == 0i32 {
            // SAFETY: there is a slot for each token.
            let slot: i32 = unsafe { load_i32(slots, token, ready) };
            if slot >= 0i32 {
                if slot < slots_total {
                    // SAFETY: the slot lies inside the cache.
                    unsafe {
                        cache_row::<A, FIRST, L, D, P, C, W, N, STYLE, PARTS>(
                            input, sums, angles, weight, keys, token, slot, part_rows, epsilon,
                            ready,
                        )
                    };
                }
            }
        } else {
            // SAFETY: the input has the row, the weight its width; queries or codes have the row.
            unsafe {
                query_row::<A, Q, QC, GROUPS, TOTAL, N, CODES, PARTS>(
                    (input, sums, query_weight),
                    (queries, codes, scales),
                    [token, part_rows, row_stride, group_stride],
                    query_epsilon,
                    [least, most],
                    ready,
                )
            };
        }
    }

    /// The normed query latents of a token. `place`: its row, rows of a part, strides of scales.
    unsafe fn query_row<
        A: ElementType,
        const Q: i32,
        const QC: i32,
        const GROUPS: i32,
        const TOTAL: i32,
        const N: i32,
        const CODES: i32,
        const PARTS: i32,
    >(
        from: (*mut A, *mut f32, *mut f32),
        to: (*mut A, *mut f8e4m3fn, *mut f32),
        place: [i32; 4],
        epsilon: f32,
        bounds: [f32; 2],
        ready: Token,
    ) {
        let (input, sums, weight): (*mut A, *mut f32, *mut f32) = from;
        let (queries, codes, scales): (*mut A, *mut f8e4m3fn, *mut f32) = to;
        let token: i32 = place[0];
        // SAFETY: the caller vouches for row and weight.
        let values: Tile<A, { [1, QC] }> = unsafe {
            normed_columns::<A, Q, QC, N, PARTS>(
                input, sums, weight, token, 0i32, place[1], epsilon, ready,
            )
        };
        if CODES == 1i32 {
            let strides: [i32; 2] = [place[2], place[3]];
            // SAFETY: the caller vouches for the row.
            unsafe {
                store_codes::<A, Q, QC, GROUPS, TOTAL>(
                    codes, scales, values, token, strides, bounds, ready,
                )
            };
        }
        if CODES == 0i32 {
            let row: Tile<i32, { [1] }> = count_from::<1>(token);
            let column: Tile<i32, { [QC] }> = count_from::<QC>(0i32);
            let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
            let mask: Tile<bool, { [1, QC] }> = block_mask(always, below(column, Q));
            // SAFETY: as above.
            unsafe { scatter_block(queries, block_offsets(row, Q, column), mask, values, ready) };
        }
    }

    /// The normed latent vector and the turned rotary key of a token, to row `slot` of the cache.
    unsafe fn cache_row<
        A: ElementType,
        const FIRST: i32,
        const L: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const W: i32,
        const N: i32,
        const STYLE: i32,
        const PARTS: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        angles: *mut f32,
        weight: *mut f32,
        keys: *mut A,
        token: i32,
        slot: i32,
        part_rows: i32,
        epsilon: f32,
        ready: Token,
    ) {
        // SAFETY: the caller vouches for the row, the weight has its width.
        let values: Tile<A, { [1, L] }> = unsafe {
            normed_columns::<A, L, L, N, PARTS>(
                input, sums, weight, token, FIRST, part_rows, epsilon, ready,
            )
        };
        let to: Tile<i32, { [1] }> = count_from::<1>(slot);
        let offsets: Tile<i64, { [1, L] }> = block_offsets(to, W, count_from::<L>(0i32));
        let every: Tile<bool, { [1, L] }> = constant(true, const_shape![1, L]);
        // SAFETY: the caller vouches for the slot.
        unsafe { scatter_block(keys, offsets, every, values, ready) };
        let row: Tile<i32, { [1] }> = count_from::<1>(token);
        let before: Tile<i32, { [1] }> = broadcast_scalar(FIRST + L, const_shape![1]);
        let latent: Tile<i32, { [1] }> = broadcast_scalar(L, const_shape![1]);
        let from: Tile<i64, { [1] }> = token_starts::<1>(row, N) + token_starts::<1>(before, 1i32);
        let to: Tile<i64, { [1] }> = token_starts::<1>(to, W) + token_starts::<1>(latent, 1i32);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: as above; without a norm there is no weight.
        unsafe {
            turn_heads::<A, 1, D, P, C, 0, 1, STYLE, 0, PARTS, N>(
                input,
                sums,
                part_rows,
                keys,
                angles,
                weight,
                [from, to],
                row,
                [always, always],
                epsilon,
                ready,
            )
        };
    }
}

/// Rows of the joint projection `[T, query_columns + rank + rope_dim]`.
#[derive(Debug, Clone, Copy)]
pub enum LatentRows<'a, A: Element> {
    /// As they are.
    Whole(DeviceSlice<'a, A>),
    /// In the parts that [`LatentProjection::parts`] says.
    Parts(PartSums<'a>),
}

/// What is projected.
#[derive(Debug, Clone, Copy)]
pub struct LatentInputs<'a, A: Element> {
    /// The joint projection.
    pub rows: LatentRows<'a, A>,
    /// `T`.
    pub tokens: usize,
    /// `[T, 2, rope_dim / 2]` of [`RopeAngles`](crate::rope::cuda::RopeAngles).
    pub angles: DeviceSlice<'a, f32>,
    /// Weight `[query_columns]` of the norm of queries, where they have one.
    pub query_weight: Option<DeviceSlice<'a, f32>>,
    /// Weight `[rank]` of the norm of the latent vector.
    pub weight: DeviceSlice<'a, f32>,
    /// Where each token's row of the cache is, `[T]`; outside of the cache, such as at -1: nowhere.
    pub slots: DeviceSlice<'a, i32>,
}

/// Where the query latents go.
#[derive(Debug)]
pub enum QueryLatents<'a, 'b, A: Element> {
    /// Nowhere: queries are in the joint projection as they are.
    None,
    /// Rows `[T, query_columns]`.
    Rows(&'a mut DeviceSliceMut<'b, A>),
    /// Codes of these rows, a scale for 128 columns.
    Codes(&'a mut QuantizedRows<'b>),
}

/// Norms, rotation and the write to the cache.
#[derive(Debug, Clone)]
pub struct ProjectLatents<A> {
    whole: Kernel,
    of_parts: Option<Kernel>,
    shape: LatentProjection,
    element: PhantomData<A>,
}

impl<A: Element> ProjectLatents<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for sizes without kernels, [`LayersError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(kernels: &mut Kernels, shape: LatentProjection) -> Result<Self, LayersError> {
        let LatentProjection { query_columns, query_epsilon, rank, rope_dim, parts, .. } = shape;
        if query_epsilon.is_some() && query_columns > WIDTH_MAX {
            let allowed = format!("at most {WIDTH_MAX} on a GPU");
            return Err(LayersError::config("q_lora_rank", query_columns, allowed));
        }
        if !rank.is_power_of_two() || rope_dim == 0 || !rope_dim.is_multiple_of(2) {
            let allowed = "a power of two and an even number on a GPU";
            let found = format!("{rank} and {rope_dim}");
            return Err(LayersError::config("kv_lora_rank and qk_rope_head_dim", found, allowed));
        }
        let whole = kernels.get(&spec(A::NAME, &LatentProjection { parts: 1, ..shape }))?;
        let of_parts = match parts {
            1 => None,
            _ => Some(kernels.get(&spec(A::NAME, &shape))?),
        };
        Ok(Self { whole, of_parts, shape, element: PhantomData })
    }

    /// Writes normed query latents to `queries`, latent vectors and turned rotary keys to `keys`
    /// `[blocks * 16, rank + rope_dim]`.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When query latents are of another form than was loaded, or parts were not asked for.
    pub fn launch(
        &self,
        stream: &Stream,
        inputs: &LatentInputs<'_, A>,
        queries: QueryLatents<'_, '_, A>,
        keys: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        let LatentProjection { query_columns, query_epsilon, rank, rope_dim, .. } = self.shape;
        let (tokens, width) = (inputs.tokens, self.shape.row_width());
        inputs.angles.expect_len("angles of tokens", tokens * rope_dim)?;
        inputs.slots.expect_len("slots of tokens", tokens)?;
        inputs.weight.expect_len("norm weights of latent vectors", rank)?;
        let (kernel, arguments, part_rows) = match (inputs.rows, &self.of_parts) {
            (LatentRows::Whole(rows), _) => {
                rows.expect_len("rows of the joint projection", tokens * width)?;
                (&self.whole, Arguments::new().slice(rows).no_slice(), 0)
            }
            (LatentRows::Parts(sums), Some(kernel)) => {
                let arguments = Arguments::new().no_slice();
                let arguments = sums.argument(arguments, self.shape.parts, [tokens, width])?;
                (kernel, arguments, sums.rows)
            }
            _ => panic!("this is a bug: rows in parts that were not asked for"),
        };
        let arguments = arguments.slice(inputs.angles);
        let arguments = match (inputs.query_weight, query_epsilon) {
            (Some(weight), Some(_)) => {
                weight.expect_len("norm weights of query latents", query_columns)?;
                arguments.slice(weight)
            }
            (None, None) => arguments.no_slice(),
            _ => panic!("this is a bug: norm weights and their use must come together"),
        };
        let arguments = arguments.slice(inputs.weight).slice(inputs.slots);
        let (arguments, strides, bounds) = self.queries(arguments, queries, tokens)?;
        let arguments = arguments
            .slice_mut(keys)
            .size(part_rows)
            .size(keys.len() / (rank + rope_dim))
            .size(strides[0])
            .size(strides[1])
            .f32(query_epsilon.unwrap_or_default())
            .f32(self.shape.epsilon)
            .f32(bounds.least)
            .f32(bounds.most);
        let grid = [tokens, if query_epsilon.is_some() { 2 } else { 1 }, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; slots outside of the
        // cache are passed over.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }

    fn queries(
        &self,
        arguments: Arguments,
        queries: QueryLatents<'_, '_, A>,
        tokens: usize,
    ) -> Result<(Arguments, [usize; 2], ScaleBounds), LayersError> {
        let LatentProjection { query_columns, query_epsilon, codes, .. } = self.shape;
        match (queries, query_epsilon, codes) {
            (QueryLatents::None, None, _) => {
                Ok((arguments.no_slice().no_slice().no_slice(), [0; 2], ScaleBounds::HIDDEN))
            }
            (QueryLatents::Rows(rows), Some(_), false) => {
                rows.expect_len("query latents", tokens * query_columns)?;
                let arguments = arguments.slice_mut(rows).no_slice().no_slice();
                Ok((arguments, [0; 2], ScaleBounds::HIDDEN))
            }
            (QueryLatents::Codes(rows), Some(_), true) => {
                let groups = query_columns.div_ceil(BLOCK);
                rows.expect_rows(tokens, query_columns, groups)?;
                let arguments = arguments.no_slice().slice_mut(&rows.codes).slice_mut(&rows.scales);
                Ok((arguments, rows.scale_strides(groups), rows.bounds))
            }
            _ => panic!("this is a bug: query latents of another form than was loaded"),
        }
    }
}

fn spec(element: &str, shape: &LatentProjection) -> KernelSpec {
    let LatentProjection { query_columns, rank, rope_dim, style, codes, parts, .. } = *shape;
    let normed = if shape.query_epsilon.is_some() { query_columns } else { 1 };
    let columns = normed.next_power_of_two().max(if codes { BLOCK } else { 1 });
    let groups = [(columns / BLOCK).max(1), normed.div_ceil(BLOCK)];
    let pairs = rope_dim / 2;
    let keys = [rank, rope_dim, pairs, pairs.next_power_of_two(), rank + rope_dim];
    let style = usize::from(style == RopeStyle::Interleaved);
    let form = [shape.row_width(), style, usize::from(codes), parts];
    let sizes = [query_columns, normed, columns].into_iter().chain(groups).chain(keys).chain(form);
    let module = kernels::__module_ast_self;
    let spec = KernelSpec::new("attention/project_latents", module, "kernels", "project_latents")
        .element(element)
        .generics(sizes.map(|size| size as i32))
        .pointers(["input", "sums", "angles", "query_weight", "weight", "slots"])
        .pointers(["queries", "codes", "scales", "keys"])
        .warps(4)
        .programmatic();
    if codes { spec.needs(Architecture::Sm90) } else { spec }
}
