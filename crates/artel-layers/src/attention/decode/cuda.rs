//! Paged attention of one token a sequence in two launches: the parts, then their sum.
//!
//! Keys stand on the long side of the matrix units, the query heads that share them on the short one,
//! so that each key and each value is read once for all of them.
//!
//! Bytes: `2 * keys * kv_heads * D` numbers a sequence, and for each part `query_heads * (D + 2)`
//! float32 written and read: 3 to 6 % more at parts of 128 keys. Floor: that over the bandwidth.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, Context, DeviceBuffer, DeviceSlice, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;

use super::Cut;
use super::sum::cuda::DecodeSum;
pub use super::sum::cuda::{DecodeOut, DecodeParts};
use crate::LayersError;
use crate::attention::cuda::{AttentionParameters, CacheSlices, LOG2_E, SequenceSlices, head_dim};
use crate::attention::latent::{self, LatentSizes};
use crate::attention::{AttentionShape, BLOCK_TOKENS, ValueStorage};

/// How the keys of a sequence are cut.
#[cutile::module]
pub mod decode_code {
    use cutile::core::*;

    /// The keys that a sequence's token sees, cut: where the first part begins, the first key that is
    /// seen, keys of a part, and parts.
    pub fn cut<const BK: i32, const PARTS: i32, const PART_MIN: i32>(
        length: i32,
        window: i32,
    ) -> [i32; 4] {
        let first_seen: i32 = max(length - window, 0i32);
        let first: i32 = first_seen / BK * BK;
        let share: i32 = ceil_div(ceil_div(length - first, PARTS), BK) * BK;
        let part: i32 = max(share, PART_MIN);
        [first, first_seen, part, ceil_div(length - first, part)]
    }
}

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use crate::attention::decode::cuda::decode_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// The query heads of one key-value head, transposed; anything in the columns of no head.
    unsafe fn load_queries<
        A: ElementType,
        const KH: i32,
        const G: i32,
        const GP: i32,
        const D: i32,
    >(
        queries: *mut A,
        sequence: i32,
        head: i32,
        after: Token,
    ) -> Tile<A, { [D, GP] }> {
        let number: Tile<i32, { [GP] }> = count_from::<GP>(0i32);
        let is_head: Tile<bool, { [GP] }> = below(number, G);
        let row: Tile<i32, { [GP] }> = number + splat::<GP>((sequence * KH + head) * G);
        let column: Tile<i32, { [D] }> = count_from::<D>(0i32);
        let always: Tile<bool, { [D] }> = constant(true, const_shape![D]);
        let mask: Tile<bool, { [GP, D] }> = block_mask(is_head, always);
        // SAFETY: the caller vouches for the sequence.
        let values: Tile<A, { [GP, D] }> =
            unsafe { gather_block(queries, block_offsets(row, D, column), mask, after) };
        values.transpose()
    }

    /// `sum`, and for each head the largest logit and the total weight of a part, `[D, GP]` and `[GP]`.
    /// `first_blocks`: those of its first step.
    unsafe fn attend_to_part<
        A: ElementType,
        const KH: i32,
        const GP: i32,
        const D: i32,
        const BK: i32,
        const BT: i32,
    >(
        query: Tile<A, { [D, GP] }>,
        keys: *mut A,
        values: *mut A,
        tables: *mut i32,
        place: [i32; 2],
        range: [i32; 3],
        first_blocks: [i32; 4],
        scale: f32,
        after: Token,
    ) -> (Tile<f32, { [D, GP] }>, Tile<f32, { [GP] }>, Tile<f32, { [GP] }>) {
        let mut sum: Tile<f32, { [D, GP] }> = constant(0.0f32, const_shape![D, GP]);
        let mut total: Tile<f32, { [GP] }> = constant(0.0f32, const_shape![GP]);
        let mut largest: Tile<f32, { [GP] }> = lowest::<GP>();
        let scale: Tile<f32, { [BK, GP] }> = broadcast_scalar(scale, const_shape![BK, GP]);
        let nothing: Tile<f32, { [BK, GP] }> = constant(0.0f32, const_shape![BK, GP]);
        let unseen: Tile<f32, { [BK, GP] }> = across::<BK, GP>(lowest::<GP>());
        let mut blocks: [i32; 4] = first_blocks;
        for step in 0i32..ceil_div(range[1] - range[0], BK) {
            let start: i32 = range[0] + step * BK;
            let key: Tile<i32, { [BK] }> = count_from::<BK>(start);
            let inside: Tile<i32, { [BK] }> = within::<BK>(key, range[2], range[1]);
            let row: Tile<i32, { [BK] }> =
                rows_of_keys::<BK, KH, BT>(inside, start, blocks, place[1]);
            // SAFETY: the block lies in the cache.
            let k: Tile<A, { [BK, D] }> = unsafe { read_rows_after::<A, BK, D>(keys, row, after) };
            // SAFETY: as above.
            let v: Tile<A, { [BK, D] }> =
                unsafe { read_rows_after::<A, BK, D>(values, row, after) };
            // The blocks of the next step are looked up a step ahead.
            // SAFETY: the sequence has a block for each key.
            blocks =
                unsafe { blocks_of_step::<BT>(tables, place[0], start + BK, range[2], range[1]) };
            let logits: Tile<f32, { [BK, GP] }> = mmaf(k, query, nothing);
            let seen: Tile<bool, { [BK, 1] }> = eq_tile(key, inside).reshape(const_shape![BK, 1]);
            let seen: Tile<bool, { [BK, GP] }> = seen.broadcast(const_shape![BK, GP]);
            let logits: Tile<f32, { [BK, GP] }> = select(seen, logits * scale, unseen);
            let found: Tile<f32, { [GP] }> = reduce_max(logits, 0i32);
            let new_largest: Tile<f32, { [GP] }> = max_tile(largest, found);
            let relative: Tile<f32, { [GP] }> = finite::<GP>(new_largest);
            let weight: Tile<f32, { [BK, GP] }> =
                exp2(logits - across::<BK, GP>(relative), ftz::Disabled);
            let correction: Tile<f32, { [GP] }> = exp2(largest - relative, ftz::Disabled);
            let added: Tile<f32, { [GP] }> = reduce_sum(weight, 0i32);
            total = total * correction + added;
            let weight: Tile<A, { [BK, GP] }> = convert_tile(weight);
            sum = mmaf(v.transpose(), weight, sum * across::<D, GP>(correction));
            largest = new_largest;
        }
        (sum, largest, total)
    }

    /// The same row `B` times.
    fn across<const B: i32, const GP: i32>(row: Tile<f32, { [GP] }>) -> Tile<f32, { [B, GP] }> {
        let row: Tile<f32, { [1, GP] }> = row.reshape(const_shape![1, GP]);
        row.broadcast(const_shape![B, GP])
    }

    /// Stores one part of each head.
    unsafe fn store_part<const GP: i32, const D: i32>(
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        row: Tile<i32, { [GP] }>,
        is_head: Tile<bool, { [GP] }>,
        sum: Tile<f32, { [D, GP] }>,
        largest: Tile<f32, { [GP] }>,
        total: Tile<f32, { [GP] }>,
        after: Token,
    ) {
        // SAFETY: the caller vouches for the rows.
        unsafe { scatter(largests, row, is_head, largest, after) };
        // SAFETY: as above.
        unsafe { scatter(totals, row, is_head, total, after) };
        let always: Tile<bool, { [D] }> = constant(true, const_shape![D]);
        let offsets: Tile<i64, { [GP, D] }> = block_offsets(row, D, count_from::<D>(0i32));
        let mask: Tile<bool, { [GP, D] }> = block_mask(is_head, always);
        // SAFETY: as above.
        unsafe { scatter_block(sums, offsets, mask, sum.transpose(), after) };
    }

    /// Grid: sequences times key-value heads, and blocks that share the parts of one.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn attend_parts<
        A: ElementType,
        const KH: i32,
        const G: i32,
        const GP: i32,
        const D: i32,
        const BK: i32,
        const BT: i32,
        const PARTS: i32,
        const PART_MIN: i32,
        const PDL: i32,
    >(
        queries: *mut A,
        keys: *mut A,
        values: *mut A,
        tables: *mut i32,
        lengths: *mut i32,
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        table_stride: i32,
        window: i32,
        scale: f32,
    ) {
        let (pair, first_part, _): (i32, i32, i32) = get_tile_block_id();
        let sharing: i32 = get_num_tile_blocks().1;
        let (sequence, head): (i32, i32) = (pair / KH, pair - pair / KH * KH);
        // SAFETY: what it reads before it waits is older than every kernel that may still run.
        let early: Token = unsafe { release::<PDL>() };
        // SAFETY: there is a length for each sequence.
        let length: i32 = unsafe { load_i32(lengths, sequence, early) };
        let keys_cut: [i32; 4] = cut::<BK, PARTS, PART_MIN>(length, window);
        let place: [i32; 2] = [sequence * table_stride, head];
        let start: i32 = keys_cut[0] + first_part * keys_cut[2];
        // SAFETY: the table of a sequence has a block at least.
        let mut blocks: [i32; 4] =
            unsafe { blocks_of_step::<BT>(tables, place[0], start, keys_cut[1], length) };
        // SAFETY: launched as its specification says, after whatever wrote queries and keys.
        let ready: Token = unsafe { wait::<PDL>(early) };
        // SAFETY: there is a row of queries for each sequence.
        let query: Tile<A, { [D, GP] }> =
            unsafe { load_queries::<A, KH, G, GP, D>(queries, sequence, head, ready) };
        let is_head: Tile<bool, { [GP] }> = below(count_from::<GP>(0i32), G);
        let head_row: Tile<i32, { [GP] }> = count_from::<GP>(pair * G) * splat::<GP>(PARTS);
        for turn in 0i32..ceil_div(max(keys_cut[3] - first_part, 0i32), sharing) {
            let part: i32 = first_part + turn * sharing;
            let start: i32 = keys_cut[0] + part * keys_cut[2];
            let range: [i32; 3] = [start, min(start + keys_cut[2], length), keys_cut[1]];
            // SAFETY: the sequence has a block for each key, and all lie in the cache.
            let (sum, largest, total): (
                Tile<f32, { [D, GP] }>,
                Tile<f32, { [GP] }>,
                Tile<f32, { [GP] }>,
            ) = unsafe {
                attend_to_part::<A, KH, GP, D, BK, BT>(
                    query, keys, values, tables, place, range, blocks, scale, ready,
                )
            };
            let next: i32 = start + sharing * keys_cut[2];
            // SAFETY: as above; behind the last part, its last block.
            blocks = unsafe { blocks_of_step::<BT>(tables, place[0], next, keys_cut[1], length) };
            let row: Tile<i32, { [GP] }> = head_row + splat::<GP>(part);
            // SAFETY: there is room for `PARTS` parts of every head.
            unsafe {
                store_part::<GP, D>(
                    sums, largests, totals, row, is_head, sum, largest, total, ready,
                )
            };
        }
    }
}

/// Blocks of threads that a launch aims at: long sequences among short ones keep many.
const BLOCKS_WANTED: usize = 2112;

/// Where parts lie between the two launches.
#[derive(Debug)]
pub struct DecodeWorkspace {
    sums: DeviceBuffer<f32>,
    largests: DeviceBuffer<f32>,
    totals: DeviceBuffer<f32>,
    rows: usize,
}

impl DecodeWorkspace {
    /// float32 numbers that `sequences` sequences take.
    pub fn numbers(shape: &AttentionShape, sequences: usize) -> usize {
        sequences * shape.query_heads * Cut::of(shape).parts_max * (shape.value_dim + 2)
    }

    /// Room for `sequences` sequences, for all layers of this shape.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when memory runs out.
    pub fn new(
        context: &Context,
        shape: &AttentionShape,
        sequences: usize,
    ) -> Result<Self, LayersError> {
        let rows = sequences * shape.query_heads * Cut::of(shape).parts_max;
        Ok(Self {
            sums: DeviceBuffer::new(context, rows * shape.value_dim)?,
            largests: DeviceBuffer::new(context, rows)?,
            totals: DeviceBuffer::new(context, rows)?,
            rows,
        })
    }

    /// Where the parts of `sequences` sequences go, whose numbers besides are given.
    pub(super) fn parts<'a>(
        &'a mut self,
        shape: &AttentionShape,
        sequences: usize,
        lengths: DeviceSlice<'a, i32>,
        sinks: Option<DeviceSlice<'a, f32>>,
        window: i32,
    ) -> Result<DecodeParts<'a>, LayersError> {
        let rows = sequences * shape.query_heads * Cut::of(shape).parts_max;
        LayersError::check_shape("parts of attention", rows.max(self.rows), self.rows)?;
        let (sums, largests) = (self.sums.slice(), self.largests.slice());
        Ok(DecodeParts { sums, largests, totals: self.totals.slice(), lengths, sinks, window })
    }
}

/// Attention of one token a sequence.
#[derive(Debug, Clone)]
pub struct DecodeAttention<A> {
    parts: Kernel,
    sum: DecodeSum<A>,
    shape: AttentionShape,
    cut: Cut,
    /// Blocks of threads that share the heads of a token.
    head_blocks: usize,
    element: PhantomData<A>,
}

impl<A: HalfElement> DecodeAttention<A> {
    /// Asks for the kernels; windows and scales are arguments of a launch.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a shape without kernels, [`LayersError::Cuda`] when a kernel is
    /// missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: AttentionShape,
        has_sinks: bool,
    ) -> Result<Self, LayersError> {
        let cut = Cut::of(&shape);
        let (parts, head_blocks) = match shape.values {
            ValueStorage::Own => (spec(A::NAME, &shape, cut)?, shape.kv_heads),
            ValueStorage::KeyPrefix => {
                let sizes = LatentSizes::new(&shape)?;
                (latent::decode::cuda::spec(A::NAME, &shape, cut, sizes), sizes.head_blocks)
            }
        };
        let (parts, sum) =
            (kernels.get(&parts)?, DecodeSum::load(kernels, (shape, cut), has_sinks)?);
        Ok(Self { parts, sum, shape, cut, head_blocks, element: PhantomData })
    }

    /// Whether it can leave codes.
    pub fn makes_codes(&self) -> bool {
        self.sum.makes_codes()
    }

    /// Attends for one token of each sequence: `queries` are `[S, query_heads * D]`. The keys and values
    /// of the new tokens are in the cache. A sequence of length 0 gives zeros. Lengths and tables are older
    /// than every kernel that may still run.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a window of 0, [`LayersError::Cuda`] when a slice is too short or a
    /// launch fails.
    ///
    /// # Panics
    /// When there are sinks that were not asked for, or none that were; when codes are wanted that it does
    /// not [make](Self::makes_codes).
    pub fn launch(
        &self,
        stream: &Stream,
        (queries, cache): (DeviceSlice<'_, A>, &CacheSlices<'_, A>),
        sequences: &SequenceSlices<'_>,
        parameters: &AttentionParameters<'_>,
        workspace: &mut DecodeWorkspace,
        out: DecodeOut<'_, '_, A>,
    ) -> Result<(), LayersError> {
        let count = sequences.sequences;
        sequences.check()?;
        cache.check(&self.shape)?;
        queries.expect_len("queries", count * self.shape.query_width())?;
        let window = parameters.window()?;
        let (lengths, sinks) = (sequences.lengths, parameters.sinks);
        let parts = workspace.parts(&self.shape, count, lengths, sinks, window)?;
        let arguments = Arguments::new()
            .slice(queries)
            .slice_mut(&cache.keys)
            .slice_mut(&cache.values)
            .slice(sequences.tables)
            .slice(sequences.lengths)
            .slice(parts.sums)
            .slice(parts.largests)
            .slice(parts.totals)
            .size(sequences.table_stride)
            .i32(window)
            .f32(parameters.scale * LOG2_E);
        let pairs = count * self.head_blocks;
        let sharing = (BLOCKS_WANTED / pairs.max(1)).clamp(1, self.cut.parts_max);
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches
        // for tables and lengths.
        unsafe { self.parts.launch(stream, [pairs, sharing, 1], arguments) }?;
        self.sum.launch(stream, count, parts, out)
    }
}

/// The kernel of a shape whose values are its own.
fn spec(element: &str, shape: &AttentionShape, cut: Cut) -> Result<KernelSpec, LayersError> {
    let head_dim = head_dim(shape)?;
    let group = shape.query_heads / shape.kv_heads;
    if group > 64 {
        let allowed = "at most 64 query heads a key-value head on a GPU";
        return Err(LayersError::config("query_heads", shape.query_heads, allowed));
    }
    let Cut { step_keys, parts_max, part_keys_min } = cut;
    let heads = [shape.kv_heads, group, group.next_power_of_two().max(8), head_dim];
    let keys = [step_keys, BLOCK_TOKENS, parts_max, part_keys_min];
    let module = kernels::__module_ast_self;
    Ok(KernelSpec::new("attention/decode", module, "kernels", "attend_parts")
        .element(element)
        .generics(heads.into_iter().chain(keys).map(|size| size as i32))
        .pointers(["queries", "keys", "values", "tables", "lengths"])
        .pointers(["sums", "largests", "totals"])
        .warps(4)
        .occupancy(if head_dim == 128 { 4 } else { 2 })
        .programmatic())
}
