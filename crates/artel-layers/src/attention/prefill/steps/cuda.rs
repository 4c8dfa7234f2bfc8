//! Device functions of a tile: its keys in steps, those that all rows see and those that some do.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// From queries, keys and values to weighted values.
#[cutile::module]
pub mod step_code {
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
    pub unsafe fn attend<
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
        let (early, late): ([i32; 2], [i32; 2]) = ([0i32, whole], [whole, steps]);
        // SAFETY: as the caller's.
        so_far = unsafe {
            attend_steps::<A, KH, D, BM, BK, BT, WINDOW, 0>(
                query, cache, place, range, early, rows, scale, so_far,
            )
        };
        // SAFETY: as the caller's.
        so_far = unsafe {
            attend_steps::<A, KH, D, BM, BK, BT, WINDOW, 1>(
                query, cache, place, range, late, rows, scale, so_far,
            )
        };
        let (sum, _largest, total, _blocks): (
            Tile<f32, { [BM, D] }>,
            Tile<f32, { [BM] }>,
            Tile<f32, { [BM] }>,
            [i32; 4],
        ) = so_far;
        sum * share_of::<BM, D>(total)
    }

    /// One over the weights of each row, 0 of a row without any.
    fn share_of<const BM: i32, const D: i32>(total: Tile<f32, { [BM] }>) -> Tile<f32, { [BM, D] }> {
        let zero: Tile<f32, { [BM] }> = constant(0.0f32, const_shape![BM]);
        let one: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        let share: Tile<f32, { [BM] }> = select(eq_tile(total, zero), zero, one / total);
        beside::<BM, D>(share)
    }

    /// The logit of a head's sink in powers of two, negative infinity without one.
    pub unsafe fn load_sink<const BM: i32, const SINKS: i32>(
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
}
