//! Device code that sorts pairs into *runs*, the pairs of one expert.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// What the kernels of the aligned form share.
#[cutile::module]
pub mod run_code {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Where ids come from. The map has an entry for each of `num_experts` experts.
    #[derive(Clone, Copy)]
    pub struct IdSource {
        pub ids: *mut i32,
        pub expert_map: *mut i32,
        pub pairs: i32,
        pub num_experts: i32,
        pub num_runs: i32,
    }

    /// Where results go. Each block of the kernel names `blocks_each` blocks of the result.
    #[derive(Clone, Copy)]
    pub struct Results {
        pub sorted_token_ids: *mut i32,
        pub expert_ids: *mut i32,
        pub num_tokens_post_padded: *mut i32,
        pub pair_positions: *mut i32,
        pub num_blocks: i32,
        pub sorted_len: i32,
        pub blocks_each: i32,
    }

    /// The run that each pair belongs to; -1 for pairs that are dropped. `PACKED`: ids are the high
    /// halves of packed pairs. `MAPPED` 1: runs are the local ids of `expert_map`.
    pub unsafe fn load_runs<const C: i32, const PACKED: i32, const MAPPED: i32>(
        source: IdSource,
        pair: Tile<i32, { [C] }>,
        after: Token,
    ) -> Tile<i32, { [C] }> {
        let none: Tile<i32, { [C] }> = constant(-1i32, const_shape![C]);
        let is_pair: Tile<bool, { [C] }> = below(pair, source.pairs);
        // SAFETY: the caller vouches for `pairs` ids.
        let mut id: Tile<i32, { [C] }> = unsafe { gather(source.ids, pair, is_pair, -1i32, after) };
        if PACKED == 1i32 {
            let sixteen: Tile<i32, { [C] }> = constant(16i32, const_shape![C]);
            id = id >> sixteen;
        }
        let exists: Tile<bool, { [C] }> = gt_tile(id, none) & below(id, source.num_experts);
        let mut run: Tile<i32, { [C] }> = select(exists, id, none);
        if MAPPED == 1i32 {
            // SAFETY: the map has `num_experts` entries.
            run = unsafe { gather(source.expert_map, run, exists, -1i32, after) };
            run = select(below(run, source.num_runs), run, none);
        }
        run
    }

    /// Adds to `counts[h, l]` how often run `h * 2^SHIFT + l` occurs.
    pub fn count_runs<const C: i32, const LOW: i32, const SHIFT: i32>(
        run: Tile<i32, { [C] }>,
        counts: Tile<f32, { [64, LOW] }>,
    ) -> Tile<f32, { [64, LOW] }> {
        let shift: Tile<i32, { [C] }> = broadcast_scalar(SHIFT, const_shape![C]);
        let one: Tile<i32, { [C] }> = constant(1i32, const_shape![C]);
        let low: Tile<i32, { [C] }> = run & ((one << shift) - one);
        let high: Tile<i32, { [1, C] }> = (run >> shift).reshape(const_shape![1, C]);
        let low: Tile<i32, { [C, 1] }> = low.reshape(const_shape![C, 1]);
        let row: Tile<i32, { [64, 1] }> = count_from::<64>(0i32).reshape(const_shape![64, 1]);
        let column: Tile<i32, { [1, LOW] }> = count_from::<LOW>(0i32).reshape(const_shape![1, LOW]);
        let is_high: Tile<bool, { [64, C] }> =
            eq_tile(row.broadcast(const_shape![64, C]), high.broadcast(const_shape![64, C]));
        let is_low: Tile<bool, { [C, LOW] }> =
            eq_tile(low.broadcast(const_shape![C, LOW]), column.broadcast(const_shape![C, LOW]));
        let yes: Tile<f32, { [64, C] }> = constant(1.0f32, const_shape![64, C]);
        let no: Tile<f32, { [64, C] }> = constant(0.0f32, const_shape![64, C]);
        let high: Tile<bf16, { [64, C] }> = convert_tile(select(is_high, yes, no));
        let yes: Tile<f32, { [C, LOW] }> = constant(1.0f32, const_shape![C, LOW]);
        let no: Tile<f32, { [C, LOW] }> = constant(0.0f32, const_shape![C, LOW]);
        let low: Tile<bf16, { [C, LOW] }> = convert_tile(select(is_low, yes, no));
        mmaf(high, low, counts)
    }

    /// How many of `others` before each pair belong to its run.
    pub fn rank_among<const C: i32, const P: i32>(
        run: Tile<i32, { [C] }>,
        pair: Tile<i32, { [C] }>,
        other_run: Tile<i32, { [P] }>,
        other_pair: Tile<i32, { [P] }>,
    ) -> Tile<i32, { [C] }> {
        let run: Tile<i32, { [C, 1] }> = run.reshape(const_shape![C, 1]);
        let other_run: Tile<i32, { [1, P] }> = other_run.reshape(const_shape![1, P]);
        let is_same: Tile<bool, { [C, P] }> =
            eq_tile(run.broadcast(const_shape![C, P]), other_run.broadcast(const_shape![C, P]));
        let pair: Tile<i32, { [C, 1] }> = pair.reshape(const_shape![C, 1]);
        let other_pair: Tile<i32, { [1, P] }> = other_pair.reshape(const_shape![1, P]);
        let is_before: Tile<bool, { [C, P] }> =
            gt_tile(pair.broadcast(const_shape![C, P]), other_pair.broadcast(const_shape![C, P]));
        let one: Tile<i32, { [C, P] }> = constant(1i32, const_shape![C, P]);
        let zero: Tile<i32, { [C, P] }> = constant(0i32, const_shape![C, P]);
        reduce_sum(select(is_same & is_before, one, zero), 1i32)
    }

    /// `table[run]`, 0 for a run of -1.
    pub fn look_up<const C: i32, const RUNS: i32>(
        run: Tile<i32, { [C] }>,
        table: Tile<i32, { [RUNS] }>,
    ) -> Tile<i32, { [C] }> {
        let run: Tile<i32, { [C, 1] }> = run.reshape(const_shape![C, 1]);
        let all: Tile<i32, { [1, RUNS] }> = count_from::<RUNS>(0i32).reshape(const_shape![1, RUNS]);
        let is_run: Tile<bool, { [C, RUNS] }> =
            eq_tile(run.broadcast(const_shape![C, RUNS]), all.broadcast(const_shape![C, RUNS]));
        let table: Tile<i32, { [1, RUNS] }> = table.reshape(const_shape![1, RUNS]);
        let zero: Tile<i32, { [C, RUNS] }> = constant(0i32, const_shape![C, RUNS]);
        reduce_sum(select(is_run, table.broadcast(const_shape![C, RUNS]), zero), 1i32)
    }

    /// Blocks up to the end of each run, from counts that were loaded.
    pub fn block_ends<const RUNS: i32, const B: i32>(
        counts: Tile<i32, { [RUNS] }>,
    ) -> Tile<i32, { [RUNS] }> {
        scan_sum(blocks_of::<RUNS, B>(counts), 0i32, reverse::Forward, 0i32)
    }

    /// The same from counts that come from a product, `ROWS` times 16 of them. The compiler refuses
    /// to scan such a vector, and along the row of a matrix of one row it scans without adding.
    pub fn block_ends_of_product<const RUNS: i32, const ROWS: i32, const B: i32>(
        counts: Tile<i32, { [RUNS] }>,
    ) -> Tile<i32, { [RUNS] }> {
        let blocks: Tile<i32, { [ROWS, 16] }> =
            blocks_of::<RUNS, B>(counts).reshape(const_shape![ROWS, 16]);
        let to: Tile<i32, { [1, 16, 1] }> = count_from::<16>(0i32).reshape(const_shape![1, 16, 1]);
        let from: Tile<i32, { [1, 1, 16] }> =
            count_from::<16>(0i32).reshape(const_shape![1, 1, 16]);
        let is_counted: Tile<bool, { [ROWS, 16, 16] }> = ge_tile(
            to.broadcast(const_shape![ROWS, 16, 16]),
            from.broadcast(const_shape![ROWS, 16, 16]),
        );
        let spread: Tile<i32, { [ROWS, 1, 16] }> = blocks.reshape(const_shape![ROWS, 1, 16]);
        let zero: Tile<i32, { [ROWS, 16, 16] }> = constant(0i32, const_shape![ROWS, 16, 16]);
        let in_row: Tile<i32, { [ROWS, 16] }> = reduce_sum(
            select(is_counted, spread.broadcast(const_shape![ROWS, 16, 16]), zero),
            2i32,
        );
        let sums: Tile<i32, { [ROWS] }> = reduce_sum(blocks, 1i32);
        let to: Tile<i32, { [ROWS, 1] }> = count_from::<ROWS>(0i32).reshape(const_shape![ROWS, 1]);
        let from: Tile<i32, { [1, ROWS] }> =
            count_from::<ROWS>(0i32).reshape(const_shape![1, ROWS]);
        let is_earlier: Tile<bool, { [ROWS, ROWS] }> = gt_tile(
            to.broadcast(const_shape![ROWS, ROWS]),
            from.broadcast(const_shape![ROWS, ROWS]),
        );
        let sums: Tile<i32, { [1, ROWS] }> = sums.reshape(const_shape![1, ROWS]);
        let zero: Tile<i32, { [ROWS, ROWS] }> = constant(0i32, const_shape![ROWS, ROWS]);
        let before: Tile<i32, { [ROWS] }> =
            reduce_sum(select(is_earlier, sums.broadcast(const_shape![ROWS, ROWS]), zero), 1i32);
        let before: Tile<i32, { [ROWS, 1] }> = before.reshape(const_shape![ROWS, 1]);
        let ends: Tile<i32, { [ROWS, 16] }> = in_row + before.broadcast(const_shape![ROWS, 16]);
        ends.reshape(const_shape![RUNS])
    }

    /// Blocks of each run.
    pub fn blocks_of<const RUNS: i32, const B: i32>(
        counts: Tile<i32, { [RUNS] }>,
    ) -> Tile<i32, { [RUNS] }> {
        let rows: Tile<i32, { [RUNS] }> = broadcast_scalar(B, const_shape![RUNS]);
        let round: Tile<i32, { [RUNS] }> = broadcast_scalar(B - 1i32, const_shape![RUNS]);
        (counts + round) / rows
    }

    /// Writes the positions of pairs, and the pairs at their positions.
    pub unsafe fn store_pairs<const C: i32>(
        results: Results,
        pair: Tile<i32, { [C] }>,
        pairs: i32,
        run: Tile<i32, { [C] }>,
        position: Tile<i32, { [C] }>,
        after: Token,
    ) {
        let none: Tile<i32, { [C] }> = constant(-1i32, const_shape![C]);
        let is_kept: Tile<bool, { [C] }> = gt_tile(run, none);
        // SAFETY: positions of kept pairs are inside, each is taken once.
        unsafe { scatter(results.sorted_token_ids, position, is_kept, pair, after) };
        let position: Tile<i32, { [C] }> = select(is_kept, position, none);
        // SAFETY: there are `pairs` positions.
        unsafe { scatter(results.pair_positions, pair, below(pair, pairs), position, after) };
    }

    /// Names the runs of `N` blocks from `first` on and fills the rows that no pair takes.
    pub unsafe fn store_blocks<const N: i32, const RUNS: i32, const B: i32, const NAMED: i32>(
        results: Results,
        expert_map: *mut i32,
        first: i32,
        starts: Tile<i32, { [RUNS] }>,
        counts: Tile<i32, { [RUNS] }>,
        used_blocks: i32,
        sentinel: i32,
        after: Token,
    ) {
        let rows: Tile<i32, { [RUNS] }> = broadcast_scalar(B, const_shape![RUNS]);
        let radix: Tile<i32, { [RUNS] }> = broadcast_scalar(RUNS, const_shape![RUNS]);
        // Of the runs that have begun by a block, its own ends last: one maximum finds both the
        // run and its last row.
        let key: Tile<i32, { [RUNS] }> =
            (starts * rows + counts) * radix + count_from::<RUNS>(0i32);
        let block: Tile<i32, { [N] }> = count_from::<N>(first);
        let starts: Tile<i32, { [1, RUNS] }> = starts.reshape(const_shape![1, RUNS]);
        let is_begun: Tile<bool, { [N, RUNS] }> = ge_tile(
            block.reshape(const_shape![N, 1]).broadcast(const_shape![N, RUNS]),
            starts.broadcast(const_shape![N, RUNS]),
        );
        let key: Tile<i32, { [1, RUNS] }> = key.reshape(const_shape![1, RUNS]);
        let zero: Tile<i32, { [N, RUNS] }> = constant(0i32, const_shape![N, RUNS]);
        let last: Tile<i32, { [N] }> =
            reduce_max(select(is_begun, key.broadcast(const_shape![N, RUNS]), zero), 1i32);
        let radix: Tile<i32, { [N] }> = broadcast_scalar(RUNS, const_shape![N]);
        let none: Tile<i32, { [N] }> = constant(-1i32, const_shape![N]);
        let is_used: Tile<bool, { [N] }> = below(block, used_blocks);
        let mut expert: Tile<i32, { [N] }> = last % radix;
        if NAMED == 1i32 {
            // SAFETY: the map has an entry for every run in use.
            expert = unsafe { gather(expert_map, expert, is_used, -1i32, after) };
        }
        let expert: Tile<i32, { [N] }> = select(is_used, expert, none);
        // SAFETY: there are `num_blocks` blocks.
        unsafe {
            scatter(results.expert_ids, block, below(block, results.num_blocks), expert, after)
        };
        let end: Tile<i32, { [N] }> = select(is_used, last / radix, none);
        // SAFETY: `sorted_len` rows; pairs are before the end of their run.
        unsafe { fill_rows::<N, B>(results, block, end, sentinel, after) };
    }

    /// Writes `sentinel` to the rows of blocks from `end` on.
    pub unsafe fn fill_rows<const N: i32, const B: i32>(
        results: Results,
        block: Tile<i32, { [N] }>,
        end: Tile<i32, { [N] }>,
        sentinel: i32,
        after: Token,
    ) {
        let in_block: Tile<i32, { [1, B] }> = count_from::<B>(0i32).reshape(const_shape![1, B]);
        let rows: Tile<i32, { [N] }> = broadcast_scalar(B, const_shape![N]);
        let start: Tile<i32, { [N, 1] }> = (block * rows).reshape(const_shape![N, 1]);
        let row: Tile<i32, { [N, B] }> =
            start.broadcast(const_shape![N, B]) + in_block.broadcast(const_shape![N, B]);
        let end: Tile<i32, { [N, 1] }> = end.reshape(const_shape![N, 1]);
        let len: Tile<i32, { [N, B] }> = broadcast_scalar(results.sorted_len, const_shape![N, B]);
        let is_free: Tile<bool, { [N, B] }> =
            ge_tile(row, end.broadcast(const_shape![N, B])) & lt_tile(row, len);
        let sentinel: Tile<i32, { [N, B] }> = broadcast_scalar(sentinel, const_shape![N, B]);
        let row: Tile<i64, { [N, B] }> = exti(row);
        // SAFETY: the caller vouches for `sorted_len` rows.
        unsafe { scatter_block(results.sorted_token_ids, row, is_free, sentinel, after) };
    }

    /// `base[0] = value`.
    pub unsafe fn store_one(base: *mut i32, value: i32, after: Token) {
        let first: Tile<i32, { [1] }> = constant(0i32, const_shape![1]);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let value: Tile<i32, { [1] }> = broadcast_scalar(value, const_shape![1]);
        // SAFETY: the caller vouches for one number.
        unsafe { scatter(base, first, always, value, after) };
    }

    /// Part `part` of what is not pairs: `blocks_each` blocks, `N` a turn, and once the number of
    /// rows in use.
    pub unsafe fn store_share<const N: i32, const RUNS: i32, const B: i32, const NAMED: i32>(
        results: Results,
        source: IdSource,
        part: i32,
        starts: Tile<i32, { [RUNS] }>,
        counts: Tile<i32, { [RUNS] }>,
        after: Token,
    ) {
        let ends: Tile<i32, { [RUNS] }> = starts + blocks_of::<RUNS, B>(counts);
        let used_blocks: i32 = tile_to_scalar(reduce_max(ends, 0i32));
        if part == 0i32 {
            // SAFETY: one number.
            unsafe { store_one(results.num_tokens_post_padded, used_blocks * B, after) };
        }
        for turn in 0i32..ceil_div(results.blocks_each, N) {
            let first: i32 = part * results.blocks_each + turn * N;
            // SAFETY: the caller vouches for `num_blocks` blocks and `sorted_len` rows.
            unsafe {
                store_blocks::<N, RUNS, B, NAMED>(
                    results,
                    source.expert_map,
                    first,
                    starts,
                    counts,
                    used_blocks,
                    source.pairs,
                    after,
                )
            };
        }
    }
}
