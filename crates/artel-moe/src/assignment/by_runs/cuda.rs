//! Few pairs: each block of a launch looks at all of them, for one run.
//!
//! 1. Count the pairs of the run.
//! 2. From the counts of all runs follows where the run begins. Scan which pairs are its own, and
//!    write them, the rest of its blocks and a share of what is behind the blocks in use.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{Arguments, Kernel, KernelSpec, Kernels};

use crate::MoeError;
use crate::assignment::cuda::{Form, RESULTS, Step};

/// Most pairs: beyond, looking at all of them in every block takes longer than one more launch.
pub const PAIRS_MAX: usize = TILES[2];

/// Pairs that kernels are compiled for. Every block looks at as many, in use or not.
const TILES: [usize; 3] = [512, 1024, 4096];

#[cutile::module]
mod kernels {
    use crate::assignment::runs::cuda::run_code::*;
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// First: the count of one run.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn count_run<const P: i32, const PACKED: i32, const MAPPED: i32, const PDL: i32>(
        ids: *mut i32,
        expert_map: *mut i32,
        counts: *mut i32,
        pairs: i32,
        num_experts: i32,
        num_runs: i32,
    ) {
        let source = IdSource { ids, expert_map, pairs, num_experts, num_runs };
        let own: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after whatever wrote the ids.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let pair: Tile<i32, { [P] }> = count_from::<P>(0i32);
        // SAFETY: there are `pairs` ids, and a map where ids are mapped.
        let run: Tile<i32, { [P] }> =
            unsafe { load_runs::<P, PACKED, MAPPED>(source, pair, ready) };
        let owner: Tile<i32, { [P] }> = broadcast_scalar(own, const_shape![P]);
        let is_own: Tile<bool, { [P] }> = eq_tile(run, owner);
        let zero: Tile<i32, { [P] }> = constant(0i32, const_shape![P]);
        let one: Tile<i32, { [P] }> = constant(1i32, const_shape![P]);
        let count: i32 = tile_to_scalar(reduce_sum(select(is_own, one, zero), 0i32));
        // SAFETY: there is a count for every block.
        unsafe { store_one(counts, own, count, ready) };
    }

    /// Second: places the pairs of one run of at most `RUNS`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn place_run<
        const P: i32,
        const RUNS: i32,
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
        let own: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the runs were counted.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let pair: Tile<i32, { [P] }> = count_from::<P>(0i32);
        // SAFETY: there are `pairs` ids, and a map where ids are mapped.
        let run: Tile<i32, { [P] }> =
            unsafe { load_runs::<P, PACKED, MAPPED>(source, pair, ready) };
        // SAFETY: there is a count for every block.
        let count: i32 = unsafe { load_i32(counts, own, ready) };
        let all: Tile<i32, { [RUNS] }> = count_from::<RUNS>(0i32);
        // SAFETY: and for every run.
        let counts_of_all: Tile<i32, { [RUNS] }> =
            unsafe { gather(counts, all, below(all, num_runs), 0i32, ready) };
        let owner: Tile<i32, { [P] }> = broadcast_scalar(own, const_shape![P]);
        let is_own: Tile<bool, { [P] }> = eq_tile(run, owner);
        let zero: Tile<i32, { [P] }> = constant(0i32, const_shape![P]);
        let one: Tile<i32, { [P] }> = constant(1i32, const_shape![P]);
        let place: Tile<i32, { [P] }> =
            scan_sum(select(is_own, one, zero), 0i32, reverse::Forward, 0i32);
        let blocks: Tile<i32, { [RUNS] }> = blocks_of::<RUNS, B>(counts_of_all);
        let both: i32 = sum_all_and_earlier(blocks, below(all, own));
        let used_blocks: i32 = both / 65536i32;
        let first_block: i32 = both % 65536i32;
        // The first pair of a run has place 1.
        let before: Tile<i32, { [P] }> = broadcast_scalar(first_block * B - 1i32, const_shape![P]);
        // SAFETY: the results have room, as the host has checked.
        unsafe { store_own_pairs(results, source, own, pair, run, before + place, ready) };
        if own < num_runs {
            // SAFETY: as above.
            unsafe { store_run::<B, NAMED>(results, expert_map, own, first_block, count, ready) };
        }
        // SAFETY: as above.
        unsafe { store_rest::<B>(results, own, used_blocks, ready) };
    }

    /// `65536 *` the sum of all plus the sum of the earlier ones, in one reduction. There are at
    /// most as many blocks as pairs, so neither reaches 32768.
    fn sum_all_and_earlier<const N: i32>(
        blocks: Tile<i32, { [N] }>,
        is_earlier: Tile<bool, { [N] }>,
    ) -> i32 {
        let once: Tile<i32, { [N] }> = constant(65536i32, const_shape![N]);
        let twice: Tile<i32, { [N] }> = constant(65537i32, const_shape![N]);
        tile_to_scalar(reduce_sum(blocks * select(is_earlier, twice, once), 0i32))
    }

    /// Writes the pairs of run `own`; the first block also says which pairs are dropped.
    unsafe fn store_own_pairs<const P: i32>(
        results: Results,
        source: IdSource,
        own: i32,
        pair: Tile<i32, { [P] }>,
        run: Tile<i32, { [P] }>,
        position: Tile<i32, { [P] }>,
        after: Token,
    ) {
        let owner: Tile<i32, { [P] }> = broadcast_scalar(own, const_shape![P]);
        let is_own: Tile<bool, { [P] }> = eq_tile(run, owner);
        // SAFETY: positions of the run's pairs are inside, each is taken once.
        unsafe { scatter(results.sorted_token_ids, position, is_own, pair, after) };
        let none: Tile<i32, { [P] }> = constant(-1i32, const_shape![P]);
        let mut dropped: i32 = -2i32;
        if own == 0i32 {
            dropped = -1i32;
        }
        let dropped: Tile<i32, { [P] }> = broadcast_scalar(dropped, const_shape![P]);
        let is_dropped: Tile<bool, { [P] }> = eq_tile(run, dropped) & below(pair, source.pairs);
        let position: Tile<i32, { [P] }> = select(is_own, position, none);
        // SAFETY: there are `pairs` positions.
        unsafe { scatter(results.pair_positions, pair, is_own | is_dropped, position, after) };
    }
}

/// The launches.
#[derive(Debug, Clone)]
pub struct ByRuns {
    of_tiles: [CountAndPlace; 3],
    runs: usize,
}

#[derive(Debug, Clone)]
struct CountAndPlace {
    count: Kernel,
    place: Kernel,
}

impl ByRuns {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when one is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, form: &Form) -> Result<Self, MoeError> {
        let [small, medium, large] = TILES.map(|tile| CountAndPlace::load(kernels, form, tile));
        // The first block also writes what belongs to no run.
        Ok(Self { of_tiles: [small?, medium?, large?], runs: form.num_runs.max(1) })
    }

    /// Numbers of working memory: a count for every block of a launch.
    pub fn workspace_len(&self) -> usize {
        self.runs
    }

    /// Sorts at most [`PAIRS_MAX`] pairs.
    ///
    /// # Safety
    /// The step's slices are as long as its numbers say.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a launch fails.
    pub unsafe fn launch(&self, step: &Step<'_>) -> Result<(), MoeError> {
        let fits = TILES.iter().position(|&tile| step.pairs <= tile);
        let CountAndPlace { count, place } = &self.of_tiles[fits.expect("this is a bug: pairs")];
        let (grid, stream) = ([self.runs, 1, 1], step.stream);
        let inputs = step.expert_map(Arguments::new().slice(step.ids)).slice_mut(step.workspace);
        let ids = |arguments: Arguments| {
            arguments.size(step.pairs).size(step.num_experts).size(step.num_runs)
        };
        // SAFETY: the arguments are the kernel's; the workspace has a count for every block.
        unsafe { count.launch(stream, grid, ids(inputs)) }?;
        let arguments = ids(step.out.slices(inputs)).size(step.num_blocks).size(step.sorted_len);
        // SAFETY: the arguments are the kernel's, with the lengths that the caller vouches for.
        unsafe { place.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

impl CountAndPlace {
    fn load(kernels: &mut Kernels, form: &Form, tile: usize) -> Result<Self, MoeError> {
        let runs = form.num_runs.next_power_of_two().max(32) as i32;
        let count = spec("assignment/count_run", "count_run")
            .pointers(["ids", "expert_map", "counts"])
            .generics([tile as i32, form.packed, form.mapped]);
        let place = spec("assignment/place_run", "place_run")
            .pointers(["ids", "expert_map", "counts"])
            .pointers(RESULTS)
            .generics([tile as i32, runs, form.block_size])
            .generics([form.packed, form.mapped, form.named]);
        Ok(Self { count: kernels.get(&count)?, place: kernels.get(&place)? })
    }
}

fn spec(operation: &'static str, entry: &'static str) -> KernelSpec {
    let spec = KernelSpec::new(operation, kernels::__module_ast_self, "kernels", entry);
    spec.warps(4).programmatic()
}
