//! The aligned form on the GPU: a stable counting sort without atomics.
//!
//! Few pairs take one launch. Every block counts all pairs, then each places its own pairs and
//! names its own share of the blocks of the result. Many pairs take four: chunks are counted, the
//! counts of the chunks are summed, runs are laid out, chunks are placed. Counting multiplies two matrices of zeros
//! and ones on the tensor cores, `[high bits of the run, pair] x [pair, low bits]`; sums stay exact.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::{AlignOptions, LocalExperts, NonLocalExperts, PaddedLength};
use crate::MoeError;

/// Most pairs that one launch sorts: beyond, counting all of them in every block takes longer than
/// three more launches.
pub const FEW_PAIRS_MAX: usize = 1024;

/// Pairs that one block counts or places where there are many.
const CHUNK: usize = 256;

/// Pairs that one block places where there are few.
const FEW_CHUNK: usize = 16;

/// Blocks of the result that one block names at a time.
const BLOCKS: usize = 16;

/// Runs of one block that sums counts, and chunks it reads at a time.
const SUM_RUNS: usize = 32;
const SUM_CHUNKS: usize = 128;

#[cutile::module]
mod kernels {
    use crate::assignment::runs::cuda::run_code::*;
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Few pairs: this block places `C` of them and names `N` blocks of the result a turn. `RUNS`
    /// is `64 * LOW`, `ROWS` is `RUNS / 16`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn align_few<
        const C: i32,
        const P: i32,
        const LOW: i32,
        const SHIFT: i32,
        const RUNS: i32,
        const ROWS: i32,
        const B: i32,
        const N: i32,
        const PACKED: i32,
        const MAPPED: i32,
        const NAMED: i32,
        const PDL: i32,
    >(
        ids: *mut i32,
        expert_map: *mut i32,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pair_positions: *mut i32,
        pairs: i32,
        num_experts: i32,
        num_runs: i32,
        num_blocks: i32,
        sorted_len: i32,
        blocks_each: i32,
    ) {
        let source = IdSource { ids, expert_map, pairs, num_experts, num_runs };
        let results = Results {
            sorted_token_ids,
            expert_ids,
            num_tokens_post_padded,
            pair_positions,
            num_blocks,
            sorted_len,
            blocks_each,
        };
        let part: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after whatever wrote the ids.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let pair: Tile<i32, { [C] }> = count_from::<C>(part * C);
        // SAFETY: there are `pairs` ids, and a map where ids are mapped.
        let run: Tile<i32, { [C] }> =
            unsafe { load_runs::<C, PACKED, MAPPED>(source, pair, ready) };
        let mut counts: Tile<f32, { [64, LOW] }> = constant(0.0f32, const_shape![64, LOW]);
        let mut rank: Tile<i32, { [C] }> = constant(0i32, const_shape![C]);
        for chunk in 0i32..ceil_div(pairs, P) {
            let other: Tile<i32, { [P] }> = count_from::<P>(chunk * P);
            // SAFETY: as above.
            let other_run: Tile<i32, { [P] }> =
                unsafe { load_runs::<P, PACKED, MAPPED>(source, other, ready) };
            counts = count_runs::<P, LOW, SHIFT>(other_run, counts);
            rank = rank + rank_among(run, pair, other_run, other);
        }
        let counts: Tile<i32, { [64, LOW] }> = ftoi(counts, rounding::NearestIntToZero);
        let counts: Tile<i32, { [RUNS] }> = counts.reshape(const_shape![RUNS]);
        let ends: Tile<i32, { [RUNS] }> = block_ends_of_product::<RUNS, ROWS, B>(counts);
        let starts: Tile<i32, { [RUNS] }> = ends - blocks_of::<RUNS, B>(counts);
        let rows: Tile<i32, { [C] }> = broadcast_scalar(B, const_shape![C]);
        let position: Tile<i32, { [C] }> = look_up(run, starts) * rows + rank;
        // SAFETY: the results have room, as the host has checked.
        unsafe { store_pairs(results, pair, pairs, run, position, ready) };
        // SAFETY: as above.
        unsafe { store_share::<N, RUNS, B, NAMED>(results, source, part, starts, counts, ready) };
    }

    /// Many pairs, first: counts the runs of a chunk of `C` pairs into row `chunk` of `counts`
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

    /// Second: counts become the number of pairs of the run in the chunks before; the sums of all
    /// chunks follow in one more row. `W` runs a block, `R` chunks a turn.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn sum_counts<const R: i32, const W: i32, const RUNS: i32, const PDL: i32>(
        counts: *mut i32,
        chunks: i32,
    ) {
        // SAFETY: launched as its specification says, after the counts were written.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let run: Tile<i32, { [W] }> = count_from::<W>(get_tile_block_id().0 * W);
        let always: Tile<bool, { [W] }> = constant(true, const_shape![W]);
        let mut before: Tile<i32, { [W] }> = constant(0i32, const_shape![W]);
        for turn in 0i32..ceil_div(chunks, R) {
            let chunk: Tile<i32, { [R] }> = count_from::<R>(turn * R);
            let mask: Tile<bool, { [R, W] }> = block_mask(below(chunk, chunks), always);
            let offsets: Tile<i64, { [R, W] }> = block_offsets(chunk, RUNS, run);
            // SAFETY: counts is `[chunks + 1, RUNS]`.
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
        let offsets: Tile<i32, { [W] }> = broadcast_scalar(chunks * RUNS, const_shape![W]);
        // SAFETY: as above.
        unsafe { scatter(counts, offsets + run, always, before, ready) };
    }

    /// Third: the first block of each run, as one more row behind the sums.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn lay_out_runs<const RUNS: i32, const B: i32, const PDL: i32>(
        counts: *mut i32,
        chunks: i32,
    ) {
        // SAFETY: launched as its specification says, after the counts were summed.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let sums: Tile<i32, { [RUNS] }> = count_from::<RUNS>(chunks * RUNS);
        let always: Tile<bool, { [RUNS] }> = constant(true, const_shape![RUNS]);
        // SAFETY: counts is `[chunks + 2, RUNS]`.
        let totals: Tile<i32, { [RUNS] }> = unsafe { gather(counts, sums, always, 0i32, ready) };
        let ends: Tile<i32, { [RUNS] }> = block_ends::<RUNS, B>(totals);
        let starts: Tile<i32, { [RUNS] }> = ends - blocks_of::<RUNS, B>(totals);
        let row: Tile<i32, { [RUNS] }> = count_from::<RUNS>((chunks + 1i32) * RUNS);
        // SAFETY: as above.
        unsafe { scatter(counts, row, always, starts, ready) };
    }

    /// Fourth: places a chunk of `C` pairs and names `N` blocks of the result a turn.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn place_chunk<
        const C: i32,
        const RUNS: i32,
        const B: i32,
        const N: i32,
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
        blocks_each: i32,
    ) {
        let source = IdSource { ids, expert_map, pairs, num_experts, num_runs };
        let results = Results {
            sorted_token_ids,
            expert_ids,
            num_tokens_post_padded,
            pair_positions,
            num_blocks,
            sorted_len,
            blocks_each,
        };
        let chunk: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the counts were summed.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let pair: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
        // SAFETY: there are `pairs` ids, and a map where ids are mapped.
        let run: Tile<i32, { [C] }> =
            unsafe { load_runs::<C, PACKED, MAPPED>(source, pair, ready) };
        let none: Tile<i32, { [C] }> = constant(-1i32, const_shape![C]);
        let is_kept: Tile<bool, { [C] }> = gt_tile(run, none);
        let row: Tile<i32, { [C] }> = broadcast_scalar(chunk * RUNS, const_shape![C]);
        // SAFETY: a chunk with pairs has a row of counts.
        let before: Tile<i32, { [C] }> = unsafe { gather(counts, row + run, is_kept, 0i32, ready) };
        let chunks: i32 = ceil_div(pairs, C);
        let row: Tile<i32, { [C] }> = broadcast_scalar((chunks + 1i32) * RUNS, const_shape![C]);
        // SAFETY: the last row holds where runs start.
        let start: Tile<i32, { [C] }> = unsafe { gather(counts, row + run, is_kept, 0i32, ready) };
        let rank: Tile<i32, { [C] }> = rank_among(run, pair, run, pair);
        let rows: Tile<i32, { [C] }> = broadcast_scalar(B, const_shape![C]);
        let position: Tile<i32, { [C] }> = start * rows + before + rank;
        // SAFETY: the results have room, as the host has checked.
        unsafe { store_pairs(results, pair, pairs, run, position, ready) };
        let always: Tile<bool, { [RUNS] }> = constant(true, const_shape![RUNS]);
        let row: Tile<i32, { [RUNS] }> = count_from::<RUNS>(chunks * RUNS);
        // SAFETY: the sums are the row behind the last chunk.
        let totals: Tile<i32, { [RUNS] }> = unsafe { gather(counts, row, always, 0i32, ready) };
        let row: Tile<i32, { [RUNS] }> = count_from::<RUNS>((chunks + 1i32) * RUNS);
        // SAFETY: and where runs start, the row behind.
        let starts: Tile<i32, { [RUNS] }> = unsafe { gather(counts, row, always, 0i32, ready) };
        // SAFETY: as above.
        unsafe { store_share::<N, RUNS, B, NAMED>(results, source, chunk, starts, totals, ready) };
    }
}

/// Largest block of the aligned form on a GPU.
pub const BLOCK_SIZE_MAX: usize = 256;

/// Results of one launch. `sorted_token_ids` and `expert_ids` are written whole, the part that is
/// not in use with the sentinel and -1.
#[derive(Debug)]
pub struct AlignedSlices<'a> {
    /// As long as [`Align::sorted_len`] says.
    pub sorted_token_ids: DeviceSliceMut<'a, i32>,
    /// One for each block of `sorted_token_ids`, the last block perhaps being cut short.
    pub expert_ids: DeviceSliceMut<'a, i32>,
    /// One number.
    pub num_tokens_post_padded: DeviceSliceMut<'a, i32>,
    /// `[T * K]`: where each pair stands in `sorted_token_ids`; -1 for dropped pairs.
    pub pair_positions: DeviceSliceMut<'a, i32>,
}

/// Where ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// Plain ids.
    Plain,
    /// The high halves of packed pairs.
    Packed,
}

/// The aligned form for one set of options, any number of pairs.
#[derive(Debug, Clone)]
pub struct Align {
    few: Kernel,
    many: [Kernel; 4],
    runs: usize,
    num_experts: usize,
    num_runs: usize,
    block_size: usize,
    padded_length: PaddedLength,
    is_mapped: bool,
}

impl Align {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when one is missing and cannot be made, [`MoeError::Config`] for a block
    /// size that is not a power of two up to 256, [`MoeError::Shape`] for an expert map of another
    /// length.
    pub fn load(
        kernels: &mut Kernels,
        options: &AlignOptions<'_>,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        options.check()?;
        let AlignOptions { num_experts, block_size, padded_length, .. } = *options;
        if !block_size.is_power_of_two() || block_size > BLOCK_SIZE_MAX {
            let allowed = format!("a power of two up to {BLOCK_SIZE_MAX} on a GPU");
            return Err(MoeError::config("block_size", block_size, allowed));
        }
        let (num_runs, mapped, named) = match options.experts {
            LocalExperts::All => (num_experts, 0, 0),
            LocalExperts::Mapped(map, NonLocalExperts::Drop) => (map.num_local(), 1, 0),
            LocalExperts::Mapped(_, NonLocalExperts::ZeroBlocks) => (num_experts, 0, 1),
        };
        let packed = i32::from(ids == IdForm::Packed);
        let form = RunForm::new(num_runs);
        let block = block_size as i32;
        let few = spec("assignment/align_few", "align_few")
            .generics([FEW_CHUNK as i32, CHUNK as i32, form.low, form.few_shift()])
            .generics([64 * form.low, 4 * form.low, block, BLOCKS as i32, packed, mapped, named])
            .warps(4);
        let count = spec("assignment/count_chunk", "count_chunk")
            .generics([CHUNK as i32, form.low, form.shift, form.runs, packed, mapped])
            .warps(4);
        let sum = spec("assignment/sum_counts", "sum_counts")
            .generics([SUM_CHUNKS as i32, SUM_RUNS as i32, form.runs])
            .warps(4);
        let lay_out =
            spec("assignment/lay_out_runs", "lay_out_runs").generics([form.runs, block]).warps(4);
        let place = spec("assignment/place_chunk", "place_chunk")
            .generics([CHUNK as i32, form.runs, block])
            .generics([BLOCKS as i32, packed, mapped, named])
            .warps(8);
        Ok(Self {
            few: kernels.get(&few)?,
            many: [
                kernels.get(&count)?,
                kernels.get(&sum)?,
                kernels.get(&lay_out)?,
                kernels.get(&place)?,
            ],
            runs: form.runs as usize,
            num_experts,
            num_runs,
            block_size,
            padded_length,
            is_mapped: mapped + named > 0,
        })
    }

    /// Length of `sorted_token_ids` for `pairs` pairs.
    ///
    /// # Errors
    /// [`MoeError::Config`] for lengths beyond what kernels count.
    pub fn sorted_len(&self, pairs: usize) -> Result<usize, MoeError> {
        let options = AlignOptions {
            padded_length: self.padded_length,
            ..AlignOptions::new(self.num_experts, self.block_size)
        };
        let sorted_len = options.sorted_len(pairs)?;
        // Blocks look for their run among numbers of `row * runs + run`.
        let runs = self.runs.max(64 * 8);
        match i32::try_from((sorted_len + self.block_size).saturating_mul(runs)) {
            Ok(_) => Ok(sorted_len),
            Err(_) => {
                let allowed = format!("at most {} (use smaller batches)", i32::MAX as usize / runs);
                Err(MoeError::config("rows of an assignment", sorted_len, allowed))
            }
        }
    }

    /// Numbers of working memory that `pairs` pairs need.
    pub fn workspace_len(&self, pairs: usize) -> usize {
        match pairs <= FEW_PAIRS_MAX {
            true => 0,
            false => (pairs.div_ceil(CHUNK) + 2) * self.runs,
        }
    }

    /// Sorts the pairs of `ids`. `expert_map` is read when the options map experts.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails, [`MoeError::Config`] as
    /// [`sorted_len`](Self::sorted_len).
    ///
    /// # Panics
    /// When the options map experts and there is no map, or the other way about.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: DeviceSlice<'_, i32>,
        expert_map: Option<DeviceSlice<'_, i32>>,
        workspace: &mut DeviceSliceMut<'_, i32>,
        out: &mut AlignedSlices<'_>,
    ) -> Result<(), MoeError> {
        assert_eq!(expert_map.is_some(), self.is_mapped, "this is a bug: a map and its use");
        if let Some(map) = expert_map {
            map.expect_len("expert_map", self.num_experts)?;
        }
        let (pairs, sorted_len) = (ids.len(), self.sorted_len(ids.len())?);
        let blocks = sorted_len.div_ceil(self.block_size);
        out.sorted_token_ids.expect_len("sorted_token_ids", sorted_len)?;
        out.expert_ids.expect_len("expert_ids", blocks)?;
        out.num_tokens_post_padded.expect_len("num_tokens_post_padded", 1)?;
        out.pair_positions.expect_len("pair_positions", pairs)?;
        workspace.expect_len("workspace of the assignment", self.workspace_len(pairs))?;
        let inputs = match expert_map {
            None => Arguments::new().slice(ids).no_slice(),
            Some(map) => Arguments::new().slice(ids).slice(map),
        };
        let sizes =
            |arguments: Arguments| arguments.size(pairs).size(self.num_experts).size(self.num_runs);
        let results = |arguments: Arguments, parts: usize| {
            sizes(out.slices(arguments)).size(blocks).size(sorted_len).size(blocks.div_ceil(parts))
        };
        if pairs <= FEW_PAIRS_MAX {
            let parts = pairs.div_ceil(FEW_CHUNK).max(1);
            // SAFETY: the arguments are the kernel's, with the lengths checked above.
            unsafe { self.few.launch(stream, [parts, 1, 1], results(inputs, parts)) }?;
            return Ok(());
        }
        let [count, sum, lay_out, place] = &self.many;
        let chunks = pairs.div_ceil(CHUNK);
        let parts = chunks.max(blocks.div_ceil(BLOCKS));
        let counts = sizes(inputs.slice_mut(workspace));
        // SAFETY: the arguments are the kernel's; the workspace has a row for every chunk.
        unsafe { count.launch(stream, [chunks, 1, 1], counts) }?;
        let sums = Arguments::new().slice_mut(workspace).size(chunks);
        // SAFETY: as above, and two more rows for the sums and the starts.
        unsafe { sum.launch(stream, [self.runs / SUM_RUNS, 1, 1], sums) }?;
        // SAFETY: as above.
        unsafe { lay_out.launch(stream, [1, 1, 1], sums) }?;
        let arguments = results(inputs.slice_mut(workspace), parts);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { place.launch(stream, [parts, 1, 1], arguments) }?;
        Ok(())
    }
}

impl AlignedSlices<'_> {
    fn slices(&self, arguments: Arguments) -> Arguments {
        arguments
            .slice_mut(&self.sorted_token_ids)
            .slice_mut(&self.expert_ids)
            .slice_mut(&self.num_tokens_post_padded)
            .slice_mut(&self.pair_positions)
    }
}

/// How runs are counted: run `h * 2^shift + l` at `[h, l]` of a matrix of 64 rows.
struct RunForm {
    shift: i32,
    low: i32,
    runs: i32,
}

impl RunForm {
    fn new(num_runs: usize) -> Self {
        let shift = num_runs.div_ceil(64).next_power_of_two().trailing_zeros() as i32;
        // The product has at least 8 columns.
        Self { shift, low: 8.max(1 << shift), runs: 64 << shift }
    }

    /// The same where columns without runs are kept.
    fn few_shift(&self) -> i32 {
        self.low.trailing_zeros() as i32
    }
}

/// One of the kernels; all their pointers are aligned.
fn spec(operation: &'static str, entry: &'static str) -> KernelSpec {
    let spec = KernelSpec::new(operation, kernels::__module_ast_self, "kernels", entry);
    let reads_ids = entry != "sum_counts" && entry != "lay_out_runs";
    let reads = ["ids", "expert_map"].into_iter().filter(|_| reads_ids);
    let counts = ["counts"].into_iter().filter(|_| entry != "align_few");
    let results = ["sorted_token_ids", "expert_ids", "num_tokens_post_padded", "pair_positions"];
    let has_results = entry == "align_few" || entry == "place_chunk";
    let results = results.into_iter().filter(|_| has_results);
    spec.pointers(reads).pointers(counts).pointers(results).programmatic()
}
