//! Many pairs: each block of a launch looks at some of them, for all runs.
//!
//! 1. Count the runs of each chunk. This multiplies two matrices of zeros and ones on the tensor
//!    cores, `[high bits of the run, pair] x [pair, low bits]`; sums stay exact.
//! 2. Sum the counts of each run over the chunks, and the blocks of the runs over groups of runs.
//! 3. Look up where the run of each pair begins, rank the pairs of each run within the chunk, and
//!    write them. Each block also finishes the blocks of one run and a share of what is behind the
//!    blocks in use.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{Arguments, Kernel, KernelSpec, Kernels};

use crate::MoeError;
use crate::assignment::cuda::{Form, RESULTS, Step};

/// Pairs that one block counts or places.
const CHUNK: usize = 64;

/// Groups of runs, each summed by one block.
const GROUPS: usize = 32;

/// Counts that such a block sums at a time.
const SUMMED: usize = 4096;

/// What the counts have room for besides the chunks: three rows.
const MORE_ROWS: usize = 3;

#[cutile::module]
mod kernels {
    use crate::assignment::runs::cuda::run_code::*;
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// First: counts the runs of a chunk of `C` pairs into row `chunk` of `counts`
    /// `[chunks, RUNS]`. `RUNS` is `64 * 2^SHIFT`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn count_chunk<
        const C: i32,
        const LOW: i32,
        const SHIFT: i32,
        const RUNS: i32,
        const PACKED: i32,
        const MAPPED: i32,
        const PDL: i32,
    >(
        ids: *mut i32,
        expert_map: *mut i32,
        counts: *mut i32,
        pairs: i32,
        num_experts: i32,
        num_runs: i32,
    ) {
        let source = IdSource { ids, expert_map, pairs, num_experts, num_runs };
        let chunk: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after whatever wrote the ids.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let pair: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
        // SAFETY: there are `pairs` ids, and a map where ids are mapped.
        let run: Tile<i32, { [C] }> =
            unsafe { load_runs::<C, PACKED, MAPPED>(source, pair, ready) };
        let none: Tile<f32, { [64, LOW] }> = constant(0.0f32, const_shape![64, LOW]);
        let found: Tile<f32, { [64, LOW] }> = count_runs::<C, LOW, SHIFT>(run, none);
        let found: Tile<i32, { [64, LOW] }> = ftoi(found, rounding::NearestIntToZero);
        let high: Tile<i32, { [64] }> = count_from::<64>(chunk * 64i32);
        let low: Tile<i32, { [LOW] }> = count_from::<LOW>(0i32);
        let all: Tile<bool, { [64] }> = constant(true, const_shape![64]);
        let offsets: Tile<i64, { [64, LOW] }> = block_offsets(high, RUNS / 64i32, low);
        let mask: Tile<bool, { [64, LOW] }> = block_mask(all, below(low, RUNS / 64i32));
        // SAFETY: counts has a row for every chunk.
        unsafe { scatter_block(counts, offsets, mask, found, ready) };
    }

    /// Second, a group of `W` runs a block: counts become the number of pairs of the run in the
    /// chunks before. Three rows follow: the pairs of each run, the blocks of the runs before in
    /// its group, and the blocks of each group.
    /// A turn takes `R` chunks.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn sum_counts<
        const R: i32,
        const W: i32,
        const RUNS: i32,
        const B: i32,
        const PDL: i32,
    >(
        counts: *mut i32,
        chunks: i32,
    ) {
        // SAFETY: launched as its specification says, after the counts were written.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let group: i32 = get_tile_block_id().0;
        let run: Tile<i32, { [W] }> = count_from::<W>(group * W);
        let always: Tile<bool, { [W] }> = constant(true, const_shape![W]);
        let mut before: Tile<i32, { [W] }> = constant(0i32, const_shape![W]);
        for turn in 0i32..ceil_div(chunks, R) {
            let chunk: Tile<i32, { [R] }> = count_from::<R>(turn * R);
            let mask: Tile<bool, { [R, W] }> = block_mask(below(chunk, chunks), always);
            let offsets: Tile<i64, { [R, W] }> = block_offsets(chunk, RUNS, run);
            // SAFETY: counts is `[chunks + 3, RUNS]`.
            let found: Tile<i32, { [R, W] }> =
                unsafe { gather_block(counts, offsets, mask, ready) };
            let zero: Tile<i32, { [R, W] }> = constant(0i32, const_shape![R, W]);
            let found: Tile<i32, { [R, W] }> = select(mask, found, zero);
            let sums: Tile<i32, { [R, W] }> = scan_sum(found, 0i32, reverse::Forward, 0i32);
            let earlier: Tile<i32, { [1, W] }> = before.reshape(const_shape![1, W]);
            let sums: Tile<i32, { [R, W] }> = sums - found + earlier.broadcast(const_shape![R, W]);
            // SAFETY: as above; each number is read before it is replaced, by this block alone.
            unsafe { scatter_block(counts, offsets, mask, sums, ready) };
            before = before + reduce_sum(found, 0i32);
        }
        let row: Tile<i32, { [W] }> = broadcast_scalar(chunks * RUNS, const_shape![W]);
        // SAFETY: as above.
        unsafe { scatter(counts, row + run, always, before, ready) };
        let row: Tile<i32, { [W] }> = broadcast_scalar((chunks + 1i32) * RUNS, const_shape![W]);
        let blocks: Tile<i32, { [W] }> = blocks_of::<W, B>(before);
        let run_in_group: Tile<i32, { [W] }> = count_from::<W>(0i32);
        let starts: Tile<i32, { [W] }> = sum_before(run_in_group, blocks);
        // SAFETY: as above.
        unsafe { scatter(counts, row + run, always, starts, ready) };
        let row: i32 = (chunks + 2i32) * RUNS;
        let blocks: i32 = tile_to_scalar(reduce_sum(blocks, 0i32));
        // SAFETY: as above.
        unsafe { store_one(counts, row + group, blocks, ready) };
    }

    /// Third: places a chunk of `C` pairs. `RUNS` is `GROUPS * W`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn place_chunk<
        const C: i32,
        const RUNS: i32,
        const GROUPS: i32,
        const W: i32,
        const B: i32,
        const PACKED: i32,
        const MAPPED: i32,
        const NAMED: i32,
        const PDL: i32,
    >(
        ids: *mut i32,
        expert_map: *mut i32,
        counts: *mut i32,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pair_positions: *mut i32,
        pairs: i32,
        num_experts: i32,
        num_runs: i32,
        num_blocks: i32,
        sorted_len: i32,
    ) {
        let source = IdSource { ids, expert_map, pairs, num_experts, num_runs };
        let results = Results {
            sorted_token_ids,
            expert_ids,
            num_tokens_post_padded,
            pair_positions,
            num_blocks,
            sorted_len,
            sentinel: pairs,
        };
        let part: i32 = get_tile_block_id().0;
        let chunks: i32 = ceil_div(pairs, C);
        // SAFETY: launched as its specification says, after the counts were summed.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let at: Tile<i32, { [GROUPS] }> = count_from::<GROUPS>((chunks + 2i32) * RUNS);
        let always: Tile<bool, { [GROUPS] }> = constant(true, const_shape![GROUPS]);
        // SAFETY: the last row holds the blocks of each group.
        let blocks: Tile<i32, { [GROUPS] }> = unsafe { gather(counts, at, always, 0i32, ready) };
        if part < chunks {
            let pair: Tile<i32, { [C] }> = count_from::<C>(part * C);
            // SAFETY: there are `pairs` ids, and a map where ids are mapped.
            let run: Tile<i32, { [C] }> =
                unsafe { load_runs::<C, PACKED, MAPPED>(source, pair, ready) };
            // SAFETY: a chunk has a row of counts, and three rows follow.
            let start: Tile<i32, { [C] }> = unsafe {
                starts::<C, RUNS, GROUPS, W, B>(counts, part, chunks, run, blocks, ready)
            };
            let position: Tile<i32, { [C] }> = start + rank_among(run, pair, run, pair);
            // SAFETY: the results have room, as the host has checked.
            unsafe { store_pairs(results, pair, pairs, run, position, ready) };
        }
        if part < num_runs {
            let earlier: i32 = blocks_before(blocks, part / W);
            // SAFETY: every run has a start in its group and a sum.
            let start: i32 = unsafe { load_i32(counts, (chunks + 1i32) * RUNS + part, ready) };
            // SAFETY: as above.
            let count: i32 = unsafe { load_i32(counts, chunks * RUNS + part, ready) };
            let at: i32 = earlier + start;
            // SAFETY: as above.
            unsafe { store_run::<B, NAMED>(results, expert_map, part, at, count, ready) };
        }
        let used_blocks: i32 = tile_to_scalar(reduce_sum(blocks, 0i32));
        // SAFETY: as above.
        unsafe { store_rest::<B>(results, part, used_blocks, ready) };
    }

    /// The sum of the blocks of the groups before `group`.
    fn blocks_before<const GROUPS: i32>(blocks: Tile<i32, { [GROUPS] }>, group: i32) -> i32 {
        let groups: Tile<i32, { [GROUPS] }> = count_from::<GROUPS>(0i32);
        let none: Tile<i32, { [GROUPS] }> = constant(0i32, const_shape![GROUPS]);
        let earlier: Tile<i32, { [GROUPS] }> = select(below(groups, group), blocks, none);
        tile_to_scalar(reduce_sum(earlier, 0i32))
    }

    /// Where the first pair of the chunk goes in each run: behind those of the chunks before.
    unsafe fn starts<
        const C: i32,
        const RUNS: i32,
        const GROUPS: i32,
        const W: i32,
        const B: i32,
    >(
        counts: *mut i32,
        chunk: i32,
        chunks: i32,
        run: Tile<i32, { [C] }>,
        blocks: Tile<i32, { [GROUPS] }>,
        ready: Token,
    ) -> Tile<i32, { [C] }> {
        let zero: Tile<i32, { [C] }> = constant(0i32, const_shape![C]);
        let is_kept: Tile<bool, { [C] }> = ge_tile(run, zero);
        let row: Tile<i32, { [C] }> = broadcast_scalar(chunk * RUNS, const_shape![C]);
        // SAFETY: a chunk has a row of counts.
        let before: Tile<i32, { [C] }> = unsafe { gather(counts, row + run, is_kept, 0i32, ready) };
        let row: Tile<i32, { [C] }> = broadcast_scalar((chunks + 1i32) * RUNS, const_shape![C]);
        // SAFETY: the row behind the sums holds where runs start in their groups.
        let start: Tile<i32, { [C] }> = unsafe { gather(counts, row + run, is_kept, 0i32, ready) };
        let width: Tile<i32, { [C] }> = broadcast_scalar(W, const_shape![C]);
        let group: Tile<i32, { [C] }> = run / width;
        let first: Tile<i32, { [C] }> = start + sum_before(group, blocks);
        let rows: Tile<i32, { [C] }> = broadcast_scalar(B, const_shape![C]);
        first * rows + before
    }

    /// For each `position` the sum of the values before it.
    fn sum_before<const C: i32, const N: i32>(
        position: Tile<i32, { [C] }>,
        values: Tile<i32, { [N] }>,
    ) -> Tile<i32, { [C] }> {
        let to: Tile<i32, { [C, 1] }> = position.reshape(const_shape![C, 1]);
        let from: Tile<i32, { [1, N] }> = count_from::<N>(0i32).reshape(const_shape![1, N]);
        let is_before: Tile<bool, { [C, N] }> =
            gt_tile(to.broadcast(const_shape![C, N]), from.broadcast(const_shape![C, N]));
        let values: Tile<i32, { [1, N] }> = values.reshape(const_shape![1, N]);
        let zero: Tile<i32, { [C, N] }> = constant(0i32, const_shape![C, N]);
        reduce_sum(select(is_before, values.broadcast(const_shape![C, N]), zero), 1i32)
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
}

/// The launches.
#[derive(Debug, Clone)]
pub struct ByChunks {
    count: Kernel,
    sum: Kernel,
    place: Kernel,
    runs: usize,
}

impl ByChunks {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when one is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, form: &Form) -> Result<Self, MoeError> {
        let shift = form.num_runs.div_ceil(64).next_power_of_two().trailing_zeros();
        // The product has at least 8 columns.
        let (runs, low) = (64 << shift, 8.max(1 << shift));
        let (chunk, groups, width) = (CHUNK as i32, GROUPS as i32, runs / GROUPS as i32);
        let inputs = ["ids", "expert_map", "counts"];
        let count = spec("assignment/count_chunk", "count_chunk")
            .pointers(inputs)
            .generics([chunk, low, shift as i32, runs, form.packed, form.mapped])
            .warps(4);
        let sum = spec("assignment/sum_counts", "sum_counts")
            .pointers(["counts"])
            .generics([SUMMED as i32 / width, width, runs, form.block_size])
            .warps(8);
        let place = spec("assignment/place_chunk", "place_chunk")
            .pointers(inputs)
            .pointers(RESULTS)
            .generics([chunk, runs, groups, width, form.block_size])
            .generics([form.packed, form.mapped, form.named])
            .warps(4);
        let runs = runs as usize;
        let (count, sum, place) = (kernels.get(&count)?, kernels.get(&sum)?, kernels.get(&place)?);
        Ok(Self { count, sum, place, runs })
    }

    /// Numbers of working memory that `pairs` pairs need.
    pub fn workspace_len(&self, pairs: usize) -> usize {
        (pairs.div_ceil(CHUNK) + MORE_ROWS) * self.runs
    }

    /// Sorts pairs.
    ///
    /// # Safety
    /// The step's slices are as long as its numbers say.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a launch fails.
    pub unsafe fn launch(&self, step: &Step<'_>) -> Result<(), MoeError> {
        let (pairs, stream) = (step.pairs, step.stream);
        let chunks = pairs.div_ceil(CHUNK);
        let inputs = step.expert_map(Arguments::new().slice(step.ids)).slice_mut(step.workspace);
        let ids =
            |arguments: Arguments| arguments.size(pairs).size(step.num_experts).size(step.num_runs);
        // SAFETY: the arguments are the kernel's; the workspace has a row for every chunk.
        unsafe { self.count.launch(stream, [chunks, 1, 1], ids(inputs)) }?;
        let sums = Arguments::new().slice_mut(step.workspace).size(chunks);
        // SAFETY: as above, and three more rows.
        unsafe { self.sum.launch(stream, [GROUPS, 1, 1], sums) }?;
        let arguments = ids(step.out.slices(inputs)).size(step.num_blocks).size(step.sorted_len);
        let parts = chunks.max(step.num_runs);
        // SAFETY: the arguments are the kernel's, with the lengths that the caller vouches for.
        unsafe { self.place.launch(stream, [parts, 1, 1], arguments) }?;
        Ok(())
    }
}

fn spec(operation: &'static str, entry: &'static str) -> KernelSpec {
    let spec = KernelSpec::new(operation, kernels::__module_ast_self, "kernels", entry);
    spec.programmatic()
}
