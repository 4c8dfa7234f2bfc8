//! Paged attention of many tokens a sequence in one launch.
//!
//! Work: `4 D` operations for each query head and each key that a token sees: `2 T (2 cached + T) D
//! query_heads` for `T` new tokens of one sequence, over the peak of the matrix units. Bytes: rows of
//! queries and of outputs once, keys and values at least once.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;

use super::TILE_ROWS;
use crate::LayersError;
use crate::attention::cuda::{AttentionParameters, CacheSlices, LOG2_E, SequenceSlices, head_dim};
use crate::attention::{AttentionShape, BLOCK_TOKENS};

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// The same column `B` times.
    fn beside<const M: i32, const B: i32>(column: Tile<f32, { [M] }>) -> Tile<f32, { [M, B] }> {
        let column: Tile<f32, { [M, 1] }> = column.reshape(const_shape![M, 1]);
        column.broadcast(const_shape![M, B])
    }

    /// Which keys of a step that begins at `start` each row sees: those up to its own position, and beyond
    /// `before` where there is a window.
    fn sees<const BM: i32, const BK: i32, const WINDOW: i32>(
        position: Tile<i32, { [BM] }>,
        before: Tile<i32, { [BM] }>,
        start: i32,
    ) -> Tile<bool, { [BM, BK] }> {
        let key: Tile<i32, { [BK] }> = iota(const_shape![BK]);
        let key: Tile<i32, { [1, BK] }> = key.reshape(const_shape![1, BK]);
        let key: Tile<i32, { [BM, BK] }> = key.broadcast(const_shape![BM, BK]);
        let start: Tile<i32, { [BM] }> = splat::<BM>(start);
        let last: Tile<i32, { [BM, 1] }> = (position - start).reshape(const_shape![BM, 1]);
        let mut seen: Tile<bool, { [BM, BK] }> = le_tile(key, last.broadcast(const_shape![BM, BK]));
        if WINDOW == 1i32 {
            let before: Tile<i32, { [BM, 1] }> = (before - start).reshape(const_shape![BM, 1]);
            seen = seen & gt_tile(key, before.broadcast(const_shape![BM, BK]));
        }
        seen
    }

    /// Rows of the cache that hold the keys of a step, all of which are wanted. Which of the four blocks
    /// a thread reads does not depend on the step, so that the compiler can choose it.
    fn rows_of_blocks<const BK: i32, const KH: i32, const BT: i32>(
        blocks: [i32; 4],
        head: i32,
    ) -> Tile<i32, { [BK] }> {
        let key: Tile<i32, { [BK] }> = iota(const_shape![BK]);
        rows_of_keys::<BK, KH, BT>(key, 0i32, blocks, head)
    }

    /// Weighted values and weights of some steps of keys, on top of `so_far`: the values, the largest
    /// logit, the weights, the blocks of the first step; in the end those of the step behind the last.
    /// `place`: where the sequence's table begins, the key-value head; `range`: where the keys begin,
    /// their end, the first that is seen. `MASKED`: not every row sees every key. A branch in its place
    /// would cost the whole steps registers.
    unsafe fn attend_steps<
        A: ElementType,
        const KH: i32,
        const D: i32,
        const BM: i32,
        const BK: i32,
        const BT: i32,
        const WINDOW: i32,
        const MASKED: i32,
    >(
        query: Tile<A, { [BM, D] }>,
        cache: (*mut A, *mut A, *mut i32),
        place: [i32; 2],
        range: [i32; 3],
        steps: [i32; 2],
        rows: (Tile<i32, { [BM] }>, Tile<i32, { [BM] }>),
        scale: f32,
        so_far: (Tile<f32, { [BM, D] }>, Tile<f32, { [BM] }>, Tile<f32, { [BM] }>, [i32; 4]),
    ) -> (Tile<f32, { [BM, D] }>, Tile<f32, { [BM] }>, Tile<f32, { [BM] }>, [i32; 4]) {
        let (keys, values, tables): (*mut A, *mut A, *mut i32) = cache;
        let (position, before): (Tile<i32, { [BM] }>, Tile<i32, { [BM] }>) = rows;
        let (mut sum, mut largest, mut total, mut blocks): (
            Tile<f32, { [BM, D] }>,
            Tile<f32, { [BM] }>,
            Tile<f32, { [BM] }>,
            [i32; 4],
        ) = so_far;
        let row_scale: Tile<f32, { [BM] }> = broadcast_scalar(scale, const_shape![BM]);
        let scale: Tile<f32, { [BM, BK] }> = broadcast_scalar(scale, const_shape![BM, BK]);
        let nothing: Tile<f32, { [BM, BK] }> = constant(0.0f32, const_shape![BM, BK]);
        for step in steps[0]..steps[1] {
            let start: i32 = range[0] + step * BK;
            let mut row: Tile<i32, { [BK] }> = rows_of_blocks::<BK, KH, BT>(blocks, place[1]);
            if MASKED == 1i32 {
                let key: Tile<i32, { [BK] }> = count_from::<BK>(start);
                let inside: Tile<i32, { [BK] }> = within::<BK>(key, range[2], range[1]);
                row = rows_of_keys::<BK, KH, BT>(inside, start, blocks, place[1]);
            }
            // SAFETY: the block lies in the cache.
            let k: Tile<A, { [BK, D] }> = unsafe { read_rows::<A, BK, D>(keys, row) };
            // SAFETY: as above.
            let v: Tile<A, { [BK, D] }> = unsafe { read_rows::<A, BK, D>(values, row) };
            // The blocks of the next step are looked up a step ahead.
            // SAFETY: the sequence has a block for each key.
            blocks =
                unsafe { blocks_of_step::<BT>(tables, place[0], start + BK, range[2], range[1]) };
            let mut logits: Tile<f32, { [BM, BK] }> = mmaf(query, k.transpose(), nothing);
            if MASKED == 1i32 {
                let seen: Tile<bool, { [BM, BK] }> =
                    sees::<BM, BK, WINDOW>(position, before, start);
                logits = select(seen, logits, beside::<BM, BK>(lowest::<BM>()));
            }
            let found: Tile<f32, { [BM] }> = reduce_max(logits, 1i32);
            let new_largest: Tile<f32, { [BM] }> = max_tile(largest, found * row_scale);
            let relative: Tile<f32, { [BM] }> = finite::<BM>(new_largest);
            // Scaled here, a logit takes one instruction until its power.
            let weight: Tile<f32, { [BM, BK] }> =
                exp2(logits * scale - beside::<BM, BK>(relative), ftz::Enabled);
            let correction: Tile<f32, { [BM] }> = exp2(largest - relative, ftz::Enabled);
            let added: Tile<f32, { [BM] }> = reduce_sum(weight, 1i32);
            total = total * correction + added;
            let weight: Tile<A, { [BM, BK] }> = convert_tile(weight);
            sum = mmaf(weight, v, sum * beside::<BM, D>(correction));
            largest = new_largest;
        }
        (sum, largest, total, blocks)
    }

    /// The weighted values of a tile, divided by their weights: first the steps that all rows see whole,
    /// which are none where a window begins within the keys, then the others. `place` and `range` as
    /// above; `first_position`: of the tile's rows.
    unsafe fn attend<
        A: ElementType,
        const KH: i32,
        const D: i32,
        const BM: i32,
        const BK: i32,
        const BT: i32,
        const WINDOW: i32,
    >(
        query: Tile<A, { [BM, D] }>,
        cache: (*mut A, *mut A, *mut i32),
        place: [i32; 2],
        range: [i32; 3],
        first_position: i32,
        sink: Tile<f32, { [BM] }>,
        window: i32,
        scale: f32,
    ) -> Tile<f32, { [BM, D] }> {
        let (_keys, _values, tables): (*mut A, *mut A, *mut i32) = cache;
        let steps: i32 = ceil_div(range[1] - range[0], BK);
        let mut whole: i32 = min((first_position + 1i32 - range[0]) / BK, steps);
        if WINDOW == 1i32 {
            if first_position + BM - window > range[0] {
                whole = 0i32;
            }
        }
        let position: Tile<i32, { [BM] }> = count_from::<BM>(first_position);
        let before: Tile<i32, { [BM] }> =
            max_tile(position - splat::<BM>(window), splat::<BM>(-1i32));
        let rows: (Tile<i32, { [BM] }>, Tile<i32, { [BM] }>) = (position, before);
        let nothing: Tile<f32, { [BM, D] }> = constant(0.0f32, const_shape![BM, D]);
        let of_sink: Tile<f32, { [BM] }> = exp2(sink - finite::<BM>(sink), ftz::Enabled);
        // SAFETY: the sequence has a block for each key.
        let blocks: [i32; 4] =
            unsafe { blocks_of_step::<BT>(tables, place[0], range[0], range[2], range[1]) };
        let mut so_far: (
            Tile<f32, { [BM, D] }>,
            Tile<f32, { [BM] }>,
            Tile<f32, { [BM] }>,
            [i32; 4],
        ) = (nothing, sink, of_sink, blocks);
        // SAFETY: as the caller's.
        so_far = unsafe {
            attend_steps::<A, KH, D, BM, BK, BT, WINDOW, 0>(
                query,
                cache,
                place,
                range,
                [0i32, whole],
                rows,
                scale,
                so_far,
            )
        };
        // SAFETY: as the caller's.
        so_far = unsafe {
            attend_steps::<A, KH, D, BM, BK, BT, WINDOW, 1>(
                query,
                cache,
                place,
                range,
                [whole, steps],
                rows,
                scale,
                so_far,
            )
        };
        let (sum, _largest, total, _blocks): (
            Tile<f32, { [BM, D] }>,
            Tile<f32, { [BM] }>,
            Tile<f32, { [BM] }>,
            [i32; 4],
        ) = so_far;
        let zero: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let one: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        let share: Tile<f32, { [BM] }> = select(eq_tile(total, zero), zero, one / total);
        sum * beside::<BM, D>(share)
    }

    /// The logit of a head's sink in powers of two, negative infinity without one.
    unsafe fn load_sink<const BM: i32, const SINKS: i32>(
        sinks: *mut f32,
        head: i32,
    ) -> Tile<f32, { [BM] }> {
        let mut sink: Tile<f32, { [BM] }> = lowest::<BM>();
        if SINKS == 1i32 {
            // SAFETY: the caller vouches for the head; nobody writes sinks.
            let logit: Tile<f32, { [BM] }> = unsafe { read(sinks, splat::<BM>(head)) };
            let log2_e: Tile<f32, { [BM] }> = constant(1.442695f32, const_shape![BM]);
            sink = logit * log2_e;
        }
        sink
    }

    /// Grid: tiles, query heads. A tile of sequence -1 is none.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn attend_tiles<
        A: ElementType,
        const QH: i32,
        const KH: i32,
        const D: i32,
        const BM: i32,
        const BK: i32,
        const BT: i32,
        const SINKS: i32,
        const WINDOW: i32,
        const PDL: i32,
    >(
        queries: *mut A,
        keys: *mut A,
        values: *mut A,
        tables: *mut i32,
        lengths: *mut i32,
        first_rows: *mut i32,
        tile_sequences: *mut i32,
        tile_rows: *mut i32,
        sinks: *mut f32,
        out: *mut A,
        table_stride: i32,
        window: i32,
        scale: f32,
    ) {
        let (tile, head, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a sequence for each tile.
        let sequence: i32 = unsafe { load_i32(tile_sequences, tile, ready) };
        if sequence >= 0i32 {
            // SAFETY: and a first row.
            let first_row: i32 = unsafe { load_i32(tile_rows, tile, ready) };
            // SAFETY: there is one more first row than sequences.
            let end_row: i32 = unsafe { load_i32(first_rows, sequence + 1i32, ready) };
            // SAFETY: there is a length for each sequence.
            let length: i32 = unsafe { load_i32(lengths, sequence, ready) };
            let first_position: i32 = length - end_row + first_row;
            let end: i32 = min(first_position + BM, length);
            let mut first_seen: i32 = 0i32;
            if WINDOW == 1i32 {
                first_seen = max(first_position - window + 1i32, 0i32);
            }
            let range: [i32; 3] = [first_seen / BK * BK, end, first_seen];
            let row: Tile<i32, { [BM] }> = count_from::<BM>(first_row);
            let is_row: Tile<bool, { [BM] }> = below(row, end_row);
            let head_row: Tile<i32, { [BM] }> = row * splat::<BM>(QH) + splat::<BM>(head);
            let column: Tile<i32, { [D] }> = count_from::<D>(0i32);
            let always: Tile<bool, { [D] }> = constant(true, const_shape![D]);
            let mask: Tile<bool, { [BM, D] }> = block_mask(is_row, always);
            let offsets: Tile<i64, { [BM, D] }> = block_offsets(head_row, D, column);
            // SAFETY: queries has the rows of all sequences.
            let query: Tile<A, { [BM, D] }> =
                unsafe { gather_block(queries, offsets, mask, ready) };
            // SAFETY: there is a sink for each head.
            let sink: Tile<f32, { [BM] }> = unsafe { load_sink::<BM, SINKS>(sinks, head) };
            let place: [i32; 2] = [sequence * table_stride, head / (QH / KH)];
            // SAFETY: the sequence has a block for each key, and all lie in the cache.
            let mean: Tile<f32, { [BM, D] }> = unsafe {
                attend::<A, KH, D, BM, BK, BT, WINDOW>(
                    query,
                    (keys, values, tables),
                    place,
                    range,
                    first_position,
                    sink,
                    window,
                    scale,
                )
            };
            let mean: Tile<A, { [BM, D] }> = convert_tile(mean);
            // SAFETY: out has the rows of queries.
            unsafe { scatter_block(out, offsets, mask, mean, ready) };
        }
    }
}

/// Keys of a step.
const STEP_KEYS: usize = 64;

/// The tiles of a step on the device; see [`super::tiles`].
#[derive(Debug, Clone, Copy)]
pub struct TileSlices<'a> {
    /// First row of each sequence, and the end of the last, `[S + 1]`.
    pub first_rows: DeviceSlice<'a, i32>,
    /// Sequence of each tile, `[tiles]`; -1: none.
    pub sequences: DeviceSlice<'a, i32>,
    /// First row of each tile, `[tiles]`.
    pub rows: DeviceSlice<'a, i32>,
}

/// What a layer's attention has besides queries, keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefillForm {
    /// One logit more for each query head.
    pub sinks: bool,
    /// Whether tokens see a window of keys only.
    pub window: bool,
}

/// Attention of many tokens a sequence.
#[derive(Debug, Clone)]
pub struct PrefillAttention<A> {
    kernel: Kernel,
    shape: AttentionShape,
    form: PrefillForm,
    element: PhantomData<A>,
}

/// Blocks of a multiprocessor, as many as have registers for what they sum up: while one finds weights,
/// the others multiply.
fn occupancy(head_dim: usize) -> usize {
    match head_dim {
        ..=64 => 4,
        65..=128 => 3,
        _ => 2,
    }
}

impl<A: HalfElement> PrefillAttention<A> {
    /// Asks for the kernel; the window and the scale are arguments of a launch.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a shape without a kernel, [`LayersError::Cuda`] when the kernel is
    /// missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: AttentionShape,
        form: PrefillForm,
    ) -> Result<Self, LayersError> {
        let head_dim = head_dim(&shape)?;
        let heads = [shape.query_heads, shape.kv_heads, head_dim];
        let tile = [TILE_ROWS, STEP_KEYS, BLOCK_TOKENS];
        let form_sizes = [form.sinks, form.window].map(usize::from);
        let sizes = heads.into_iter().chain(tile).chain(form_sizes);
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("attention/prefill", module, "kernels", "attend_tiles")
            .element(A::NAME)
            .generics(sizes.map(|size| size as i32))
            .pointers(["queries", "keys", "values", "tables", "lengths"])
            .pointers(["first_rows", "tile_sequences", "tile_rows", "sinks", "out"])
            .warps(4)
            .occupancy(occupancy(head_dim))
            .programmatic();
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, shape, form, element: PhantomData })
    }

    /// Attends for all new tokens: `queries` and `out` are `[T, query_heads * D]`. The keys and values of
    /// the new tokens are in the cache; the lengths of the sequences count them.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a window of 0 or a scale that is not above 0, [`LayersError::Cuda`]
    /// when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are sinks that were not asked for, or none that were; the same of a window.
    pub fn launch(
        &self,
        stream: &Stream,
        (queries, cache): (DeviceSlice<'_, A>, &CacheSlices<'_, A>),
        (sequences, tiles): (&SequenceSlices<'_>, &TileSlices<'_>),
        parameters: &AttentionParameters<'_>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), LayersError> {
        sequences.check()?;
        cache.check(&self.shape)?;
        tiles.first_rows.expect_len("first rows of sequences", sequences.sequences + 1)?;
        tiles.rows.expect_len("first rows of tiles", tiles.sequences.len())?;
        out.expect_len("the output of attention", queries.len())?;
        // The largest logit is found before it is scaled.
        if parameters.scale.is_nan() || parameters.scale <= 0.0 {
            return Err(LayersError::config("scale", parameters.scale, "above 0 on a GPU"));
        }
        let arguments = Arguments::new()
            .slice(queries)
            .slice_mut(&cache.keys)
            .slice_mut(&cache.values)
            .slice(sequences.tables)
            .slice(sequences.lengths)
            .slice(tiles.first_rows)
            .slice(tiles.sequences)
            .slice(tiles.rows);
        let arguments = match (self.form.sinks, parameters.sinks) {
            (false, None) => arguments.no_slice(),
            (true, Some(sinks)) => {
                sinks.expect_len("the attention sinks", self.shape.query_heads)?;
                arguments.slice(sinks)
            }
            _ => panic!("this is a bug: sinks and their use must come together"),
        };
        if self.form.window != parameters.window.is_some() {
            panic!("this is a bug: a window and its use must come together");
        }
        let arguments = arguments
            .slice_mut(out)
            .size(sequences.table_stride)
            .i32(parameters.window()?)
            .f32(parameters.scale * LOG2_E);
        let grid = [tiles.sequences.len(), self.shape.query_heads, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches
        // for tables, lengths and tiles.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
