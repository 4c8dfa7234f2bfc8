//! What both ways of the aligned form share: device code about *runs*, the pairs of one expert.

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

    /// Where results go, and what stands where no pair does.
    #[derive(Clone, Copy)]
    pub struct Results {
        pub sorted_token_ids: *mut i32,
        pub expert_ids: *mut i32,
        pub num_tokens_post_padded: *mut i32,
        pub pair_positions: *mut i32,
        pub num_blocks: i32,
        pub sorted_len: i32,
        pub sentinel: i32,
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

    /// Blocks of each run.
    pub fn blocks_of<const RUNS: i32, const B: i32>(
        counts: Tile<i32, { [RUNS] }>,
    ) -> Tile<i32, { [RUNS] }> {
        let rows: Tile<i32, { [RUNS] }> = broadcast_scalar(B, const_shape![RUNS]);
        let round: Tile<i32, { [RUNS] }> = broadcast_scalar(B - 1i32, const_shape![RUNS]);
        (counts + round) / rows
    }

    /// The first rows of a run that no pair takes, and the names of its blocks.
    pub unsafe fn store_run<const B: i32, const NAMED: i32>(
        results: Results,
        expert_map: *mut i32,
        run: i32,
        first_block: i32,
        count: i32,
        after: Token,
    ) {
        let end_block: i32 = first_block + ceil_div(count, B);
        let first_free: i32 = first_block * B + count;
        let end: i32 = min(end_block * B, results.sorted_len);
        // SAFETY: the caller vouches for `sorted_len` rows.
        unsafe { fill(results.sorted_token_ids, first_free, end, results.sentinel, after) };
        let mut expert: i32 = run;
        if NAMED == 1i32 {
            // SAFETY: the map has an entry for every run.
            expert = unsafe { load_i32(expert_map, run, after) };
        }
        // SAFETY: the run's blocks are among the results'.
        unsafe { fill(results.expert_ids, first_block, end_block, expert, after) };
    }

    /// This block's share of what is behind the blocks in use, and once the number of rows in use.
    pub unsafe fn store_rest<const B: i32>(
        results: Results,
        part: i32,
        used_blocks: i32,
        after: Token,
    ) {
        let parts: i32 = get_num_tile_blocks().0;
        let each: i32 = ceil_div(results.sorted_len, parts);
        let start: i32 = max(part * each, used_blocks * B);
        let end: i32 = min((part + 1i32) * each, results.sorted_len);
        // SAFETY: the caller vouches for `sorted_len` rows.
        unsafe { fill(results.sorted_token_ids, start, end, results.sentinel, after) };
        let each: i32 = ceil_div(results.num_blocks, parts);
        let start: i32 = max(part * each, used_blocks);
        let end: i32 = min((part + 1i32) * each, results.num_blocks);
        // SAFETY: and for `num_blocks` blocks.
        unsafe { fill(results.expert_ids, start, end, -1i32, after) };
        if part == 0i32 {
            // SAFETY: one number.
            unsafe { store_one(results.num_tokens_post_padded, 0i32, used_blocks * B, after) };
        }
    }

    /// `base[offset] = value`.
    pub unsafe fn store_one(base: *mut i32, offset: i32, value: i32, after: Token) {
        let offset: Tile<i32, { [1] }> = broadcast_scalar(offset, const_shape![1]);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let value: Tile<i32, { [1] }> = broadcast_scalar(value, const_shape![1]);
        // SAFETY: the caller vouches for the offset.
        unsafe { scatter(base, offset, always, value, after) };
    }

    /// `base[start..end] = value`.
    pub unsafe fn fill(base: *mut i32, start: i32, end: i32, value: i32, after: Token) {
        let value: Tile<i32, { [256] }> = broadcast_scalar(value, const_shape![256]);
        for turn in 0i32..ceil_div(end - start, 256i32) {
            let at: Tile<i32, { [256] }> = count_from::<256>(start + turn * 256i32);
            let mask: Tile<bool, { [256] }> = below(at, end);
            // SAFETY: the caller vouches for the range.
            unsafe { scatter(base, at, mask, value, after) };
        }
    }
}
