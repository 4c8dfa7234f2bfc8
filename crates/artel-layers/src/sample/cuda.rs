//! Sampling on the GPU: the same token as on the CPU for the same logits, seed and position.
//!
//! The vocabulary of a row is cut into chunks, a block of threads each.
//! 1. Every chunk finds its largest logit and its sum of exponentials; a second launch joins them.
//!    That is all a greedy row needs.
//! 2. What a request forbids by a mask, adds to logits, and its penalties, are applied to a float32
//!    copy.
//! 3. Where a row is cut by top-k, then by top-p, and which token its random number means, is found by
//!    [`Draw`](draw::cuda::Draw).
//!
//! Random numbers are the CPU's: they depend on seed and position only, so the host brings them.
//!
//! Bytes: a greedy row `V` logits; where logits are adjusted `4 V` more for the copy.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

mod adjust;
pub mod draw;
mod mask;
mod run;

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::Element;

pub use mask::cuda::RowMasks;
pub use run::{RowAdjustments, RowParameters, SampleKernels, SampleSteps, SampleWorkspace};

use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    fn all<const B: i32>(value: f32) -> Tile<f32, { [B] }> {
        let tile: Tile<f32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    fn minus_infinity<const B: i32>() -> Tile<f32, { [B] }> {
        let bits: Tile<i32, { [B] }> = constant(-8388608i32, const_shape![B]);
        bitcast(bits)
    }

    /// Negative infinity where a logit is NaN.
    fn without_nan<const B: i32>(logit: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        select(eq_tile(logit, logit), logit, minus_infinity::<B>())
    }

    /// `logit - largest`, zero for the largest itself even where it is infinite.
    fn relative_to<const B: i32>(
        logit: Tile<f32, { [B] }>,
        largest: Tile<f32, { [B] }>,
    ) -> Tile<f32, { [B] }> {
        select(eq_tile(logit, largest), all::<B>(0.0f32), logit - largest)
    }

    /// The lowest of the ids of the largest value.
    fn first_of<const B: i32>(
        value: Tile<f32, { [B] }>,
        largest: Tile<f32, { [1] }>,
        id: Tile<i32, { [B] }>,
    ) -> Tile<i32, { [1] }> {
        let beyond: Tile<i32, { [B] }> = constant(2147483647i32, const_shape![B]);
        let is_largest: Tile<bool, { [B] }> = eq_tile(value, largest.broadcast(const_shape![B]));
        let ids: Tile<i32, { [B] }> = select(is_largest, id, beyond);
        reduce_min(ids.reshape(const_shape![1, B]), 1i32)
    }

    /// Largest logit of a chunk, its lowest id, the sum of `e^(logit - largest)`, and the least of the
    /// largest logits of its `G` groups. `COPY`: the logits are stored as float32. Grid: rows, chunks of
    /// `C`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn scan_chunk<
        L: ElementType,
        const V: i32,
        const C: i32,
        const G: i32,
        const GB: i32,
        const COPY: i32,
        const PDL: i32,
    >(
        logits: *mut L,
        copy: *mut f32,
        largests: *mut f32,
        ids: *mut i32,
        sums: *mut f32,
        floors: *mut f32,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after whatever wrote the logits.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
        let is_id: Tile<bool, { [1, C] }> = below(id, V).reshape(const_shape![1, C]);
        let offsets: Tile<i64, { [1, C] }> = block_offsets(count_from::<1>(row), V, id);
        // SAFETY: logits is `[rows, V]`.
        let logit: Tile<L, { [1, C] }> = unsafe { gather_block(logits, offsets, is_id, ready) };
        let logit: Tile<f32, { [1, C] }> = convert_tile(logit);
        if COPY == 1i32 {
            // SAFETY: so is the copy.
            unsafe { scatter_block(copy, offsets, is_id, logit, ready) };
        }
        let logit: Tile<f32, { [C] }> = logit.reshape(const_shape![C]);
        let logit: Tile<f32, { [C] }> =
            select(below(id, V), without_nan::<C>(logit), minus_infinity::<C>());
        let largest: Tile<f32, { [1] }> = reduce_max(logit.reshape(const_shape![1, C]), 1i32);
        let first: Tile<i32, { [1] }> = first_of::<C>(logit, largest, id);
        let weight: Tile<f32, { [C] }> =
            exp(relative_to::<C>(logit, largest.broadcast(const_shape![C])));
        let weight: Tile<f32, { [C] }> =
            select(gt_tile(logit, minus_infinity::<C>()), weight, all::<C>(0.0f32));
        let sum: Tile<f32, { [1] }> = reduce_sum(weight.reshape(const_shape![1, C]), 1i32);
        let place: Tile<i32, { [1] }> = count_from::<1>(row * get_num_tile_blocks().1 + chunk);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: there is a place for each chunk.
        unsafe { scatter(largests, place, always, largest, ready) };
        // SAFETY: as above.
        unsafe { scatter(ids, place, always, first, ready) };
        // SAFETY: as above.
        unsafe { scatter(sums, place, always, sum, ready) };
        let group: Tile<f32, { [G] }> = reduce_max(logit.reshape(const_shape![G, GB]), 1i32);
        let first_id: Tile<i32, { [G] }> = count_from::<G>(0i32)
            * broadcast_scalar(GB, const_shape![G])
            + broadcast_scalar(chunk * C, const_shape![G]);
        let group: Tile<f32, { [G] }> =
            select(below(first_id, V), group, largest.broadcast(const_shape![G]));
        let floor: Tile<f32, { [1] }> = reduce_min(group.reshape(const_shape![1, G]), 1i32);
        // SAFETY: as above.
        unsafe { scatter(floors, place, always, floor, ready) };
    }

    /// Joins the chunks of a row: largest logit, the least of the chunks' floors, the id of the largest
    /// (-1 when no logit is above negative infinity) and its logarithmic probability. With `keep` the normalizer of an earlier launch is used.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn join_chunks<const CP: i32, const PDL: i32>(
        largests: *mut f32,
        ids: *mut i32,
        sums: *mut f32,
        chunk_floors: *mut f32,
        row_largests: *mut f32,
        floors: *mut f32,
        normalizers: *mut f32,
        tokens: *mut i32,
        logprobs: *mut f32,
        chunks: i32,
        keep: i32,
    ) {
        let row: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the chunks.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let chunk: Tile<i32, { [CP] }> = count_from::<CP>(0i32);
        let is_chunk: Tile<bool, { [CP] }> = below(chunk, chunks);
        let place: Tile<i32, { [CP] }> = count_from::<CP>(row * chunks);
        // SAFETY: there is a place for each chunk.
        let largest: Tile<f32, { [CP] }> =
            unsafe { gather(largests, place, is_chunk, 0.0f32, ready) };
        let largest: Tile<f32, { [CP] }> = select(is_chunk, largest, minus_infinity::<CP>());
        // SAFETY: as above.
        let id: Tile<i32, { [CP] }> = unsafe { gather(ids, place, is_chunk, 2147483647i32, ready) };
        // SAFETY: as above.
        let sum: Tile<f32, { [CP] }> = unsafe { gather(sums, place, is_chunk, 0.0f32, ready) };
        let top: Tile<f32, { [1] }> = reduce_max(largest.reshape(const_shape![1, CP]), 1i32);
        let first: Tile<i32, { [1] }> = first_of::<CP>(largest, top, id);
        let none: Tile<i32, { [1] }> = constant(-1i32, const_shape![1]);
        let has: Tile<bool, { [1] }> = gt_tile(top, minus_infinity::<1>());
        let first: Tile<i32, { [1] }> = select(has, first, none);
        let scale: Tile<f32, { [CP] }> =
            exp(relative_to::<CP>(largest, top.broadcast(const_shape![CP])));
        let scale: Tile<f32, { [CP] }> =
            select(gt_tile(largest, minus_infinity::<CP>()), scale, all::<CP>(0.0f32));
        let total: Tile<f32, { [1] }> =
            reduce_sum((scale * sum).reshape(const_shape![1, CP]), 1i32);
        let here: Tile<i32, { [1] }> = count_from::<1>(row);
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let mut normalizer: Tile<f32, { [1] }> = top + log(total);
        if keep == 1i32 {
            // SAFETY: there is a place for each row.
            normalizer = unsafe { gather(normalizers, here, always, 0.0f32, ready) };
        }
        // SAFETY: as above.
        unsafe { scatter(normalizers, here, always, normalizer, ready) };
        // SAFETY: as above.
        unsafe { scatter(row_largests, here, always, top, ready) };
        // SAFETY: as above.
        let floor: Tile<f32, { [CP] }> =
            unsafe { gather(chunk_floors, place, is_chunk, 0.0f32, ready) };
        let floor: Tile<f32, { [CP] }> = select(is_chunk, floor, top.broadcast(const_shape![CP]));
        let floor: Tile<f32, { [1] }> = reduce_min(floor.reshape(const_shape![1, CP]), 1i32);
        // SAFETY: as above.
        unsafe { scatter(floors, here, always, floor, ready) };
        // SAFETY: as above.
        unsafe { scatter(tokens, here, always, first, ready) };
        // SAFETY: as above.
        unsafe { scatter(logprobs, here, always, top - normalizer, ready) };
    }

    /// Adds biases and takes penalties, `B` entries at a time. The entries of row `r` are those from
    /// `starts[r]` up to `starts[r + 1]`; no two of a row have the same id. `counts` -1: not seen.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn adjust_entries<const B: i32, const PDL: i32>(
        logits: *mut f32,
        starts: *mut i32,
        ids: *mut i32,
        counts: *mut i32,
        biases: *mut f32,
        penalties: *mut f32,
        vocabulary: i32,
    ) {
        let row: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the copy was made.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is one start more than rows.
        let start: i32 = unsafe { load_i32(starts, row, ready) };
        // SAFETY: as above.
        let end: i32 = unsafe { load_i32(starts, row + 1i32, ready) };
        let three: Tile<bool, { [B] }> = constant(true, const_shape![B]);
        let at: Tile<i32, { [B] }> = broadcast_scalar(row * 3i32, const_shape![B]);
        let one: Tile<i32, { [B] }> = constant(1i32, const_shape![B]);
        // SAFETY: there are three penalties a row.
        let repetition: Tile<f32, { [B] }> = unsafe { gather(penalties, at, three, 1.0f32, ready) };
        // SAFETY: as above.
        let presence: Tile<f32, { [B] }> =
            unsafe { gather(penalties, at + one, three, 0.0f32, ready) };
        // SAFETY: as above.
        let frequency: Tile<f32, { [B] }> =
            unsafe { gather(penalties, at + one + one, three, 0.0f32, ready) };
        for step in 0i32..ceil_div(end - start, B) {
            let entry: Tile<i32, { [B] }> = count_from::<B>(start + step * B);
            let is_entry: Tile<bool, { [B] }> = below(entry, end);
            // SAFETY: entries end where the starts say.
            let id: Tile<i32, { [B] }> = unsafe { gather(ids, entry, is_entry, -1i32, ready) };
            // SAFETY: as above.
            let count: Tile<i32, { [B] }> =
                unsafe { gather(counts, entry, is_entry, -1i32, ready) };
            // SAFETY: as above.
            let bias: Tile<f32, { [B] }> =
                unsafe { gather(biases, entry, is_entry, 0.0f32, ready) };
            let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
            let zero: Tile<i32, { [B] }> = constant(0i32, const_shape![B]);
            let exists: Tile<bool, { [1, B] }> =
                (gt_tile(id, none) & below(id, vocabulary)).reshape(const_shape![1, B]);
            let offsets: Tile<i64, { [1, B] }> =
                block_offsets(count_from::<1>(row), vocabulary, id);
            // SAFETY: ids of the vocabulary.
            let logit: Tile<f32, { [1, B] }> =
                unsafe { gather_block(logits, offsets, exists, ready) };
            let logit: Tile<f32, { [B] }> = logit.reshape(const_shape![B]) + bias;
            let positive: Tile<bool, { [B] }> = gt_tile(logit, all::<B>(0.0f32));
            let divided: Tile<f32, { [B] }> =
                divf(logit, repetition, rounding::NearestEven, ftz::Disabled);
            let penalised: Tile<f32, { [B] }> = select(positive, divided, logit * repetition);
            let logit: Tile<f32, { [B] }> = select(gt_tile(count, none), penalised, logit);
            let times: Tile<f32, { [B] }> = convert_tile(count);
            let taken: Tile<f32, { [B] }> =
                mulf(frequency, times, rounding::NearestEven, ftz::Disabled);
            let taken: Tile<f32, { [B] }> = presence + taken;
            let logit: Tile<f32, { [B] }> = select(gt_tile(count, zero), logit - taken, logit);
            let logit: Tile<f32, { [1, B] }> = logit.reshape(const_shape![1, B]);
            // SAFETY: as above.
            unsafe { scatter_block(logits, offsets, exists, logit, ready) };
        }
    }

    /// The logarithmic probability of each row's token under the logits as they were given.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn measure_tokens<L: ElementType, const B: i32, const PDL: i32>(
        logits: *mut L,
        normalizers: *mut f32,
        tokens: *mut i32,
        logprobs: *mut f32,
        rows: i32,
        vocabulary: i32,
    ) {
        // SAFETY: launched as its specification says, after the tokens were chosen.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let is_row: Tile<bool, { [B] }> = below(row, rows);
        // SAFETY: there is a token for each row.
        let token: Tile<i32, { [B] }> = unsafe { gather(tokens, row, is_row, -1i32, ready) };
        // SAFETY: and a normalizer.
        let normalizer: Tile<f32, { [B] }> =
            unsafe { gather(normalizers, row, is_row, 0.0f32, ready) };
        let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        let has: Tile<bool, { [B, 1] }> =
            (is_row & gt_tile(token, none)).reshape(const_shape![B, 1]);
        let row_start: Tile<i64, { [B, 1] }> =
            block_offsets(row, vocabulary, count_from::<1>(0i32));
        let token: Tile<i64, { [B] }> = exti(token);
        let offsets: Tile<i64, { [B, 1] }> = row_start + token.reshape(const_shape![B, 1]);
        // SAFETY: tokens are of the vocabulary.
        let logit: Tile<L, { [B, 1] }> = unsafe { gather_block(logits, offsets, has, ready) };
        let logit: Tile<f32, { [B, 1] }> = convert_tile(logit);
        let logprob: Tile<f32, { [B] }> = logit.reshape(const_shape![B]) - normalizer;
        // SAFETY: and a logprob.
        unsafe { scatter(logprobs, row, is_row, logprob, ready) };
    }
}

/// Logits that one block looks at.
pub const CHUNK: usize = 2048;

/// Tokens of a group, whose largest logit counts for the floor.
const GROUP: usize = 256;

/// Largest vocabulary: an id has 20 bits of a place.
pub const VOCABULARY_MAX: usize = 1 << 20;

/// Entries of a step of adjustment.
const ENTRIES: usize = 256;

/// Rows of a block that measures tokens.
const MEASURED_ROWS: usize = 128;

fn spec(entry: &'static str) -> KernelSpec {
    KernelSpec::new("sample/choose", kernels::__module_ast_self, "kernels", entry)
        .warps(4)
        .programmatic()
}

pub(super) fn check_vocabulary(vocabulary: usize) -> Result<(), LayersError> {
    if vocabulary == 0 || vocabulary > VOCABULARY_MAX {
        let allowed = format!("in 1..={VOCABULARY_MAX} on a GPU");
        return Err(LayersError::config("vocabulary", vocabulary, allowed));
    }
    Ok(())
}

/// What the chunks of all rows found; `[rows, chunks]` each.
#[derive(Debug)]
pub struct ChunkSlices<'a> {
    /// Largest logits.
    pub largests: DeviceSliceMut<'a, f32>,
    /// Their lowest ids.
    pub ids: DeviceSliceMut<'a, i32>,
    /// Sums of `e^(logit - largest)`.
    pub sums: DeviceSliceMut<'a, f32>,
    /// Least of the largest logits of their groups.
    pub floors: DeviceSliceMut<'a, f32>,
}

/// What is known of each row; `[rows]` each.
#[derive(Debug)]
pub struct RowSlices<'a> {
    /// Largest logit.
    pub largests: DeviceSliceMut<'a, f32>,
    /// Least of the largest logits of groups.
    pub floors: DeviceSliceMut<'a, f32>,
    /// `ln Σ e^logit` of the logits as they were given.
    pub normalizers: DeviceSliceMut<'a, f32>,
    /// Chosen tokens; -1 when there is nothing to choose from.
    pub tokens: DeviceSliceMut<'a, i32>,
    /// Natural logarithms of their probabilities.
    pub logprobs: DeviceSliceMut<'a, f32>,
}

impl RowSlices<'_> {
    fn check(&self, rows: usize) -> Result<(), LayersError> {
        self.largests.expect_len("largest logits of rows", rows)?;
        self.floors.expect_len("floors of rows", rows)?;
        self.normalizers.expect_len("normalizers of rows", rows)?;
        self.tokens.expect_len("chosen tokens", rows)?;
        self.logprobs.expect_len("probabilities of chosen tokens", rows)?;
        Ok(())
    }
}

/// The largest logit of each row, in two launches.
#[derive(Debug, Clone)]
pub struct Greedy<L> {
    scan: Kernel,
    join: Kernel,
    vocabulary: usize,
    copies: bool,
    element: PhantomData<L>,
}

impl<L: Element> Greedy<L> {
    /// Asks for the kernels; `copies`: logits are copied to float32 on the way.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a vocabulary without kernels, [`LayersError::Cuda`] when a kernel is
    /// missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        vocabulary: usize,
        copies: bool,
    ) -> Result<Self, LayersError> {
        check_vocabulary(vocabulary)?;
        let scan = spec("scan_chunk")
            .element(L::NAME)
            .generics([vocabulary, CHUNK, CHUNK / GROUP, GROUP].map(|size| size as i32))
            .generics([i32::from(copies)])
            .pointers(["logits", "copy", "largests", "ids", "sums", "floors"]);
        let padded = vocabulary.div_ceil(CHUNK).next_power_of_two();
        let join = spec("join_chunks").generics([padded as i32]).pointers([
            "largests",
            "ids",
            "sums",
            "chunk_floors",
            "row_largests",
            "floors",
            "normalizers",
            "tokens",
            "logprobs",
        ]);
        let (scan, join) = (kernels.get(&scan)?, kernels.get(&join)?);
        Ok(Self { scan, join, vocabulary, copies, element: PhantomData })
    }

    /// Chunks of a row.
    pub fn chunks(&self) -> usize {
        self.vocabulary.div_ceil(CHUNK)
    }

    /// Finds the largest of each row of `logits` `[rows, V]`. `keeps_normalizers`: those of an earlier
    /// launch stay.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or a launch fails.
    ///
    /// # Panics
    /// When there is a place for a copy that is not made, or none for one that is.
    pub fn launch(
        &self,
        stream: &Stream,
        (logits, copy): (DeviceSlice<'_, L>, Option<DeviceSliceMut<'_, f32>>),
        chunks: &mut ChunkSlices<'_>,
        rows: &mut RowSlices<'_>,
        keeps_normalizers: bool,
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        rows.check(count)?;
        let parts = count * self.chunks();
        chunks.largests.expect_len("largest logits of chunks", parts)?;
        chunks.ids.expect_len("ids of chunks", parts)?;
        chunks.sums.expect_len("sums of chunks", parts)?;
        chunks.floors.expect_len("floors of chunks", parts)?;
        let arguments = Arguments::new().slice(logits);
        let arguments = match (self.copies, copy) {
            (false, None) => arguments.no_slice(),
            (true, Some(copy)) => {
                copy.expect_len("a copy of logits", count * self.vocabulary)?;
                arguments.slice_mut(&copy)
            }
            _ => panic!("this is a bug: a copy of logits and its place must come together"),
        };
        let arguments =
            arguments.slice_mut(&chunks.largests).slice_mut(&chunks.ids).slice_mut(&chunks.sums);
        let arguments = arguments.slice_mut(&chunks.floors);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.scan.launch(stream, [count, self.chunks(), 1], arguments) }?;
        let arguments = Arguments::new()
            .slice_mut(&chunks.largests)
            .slice_mut(&chunks.ids)
            .slice_mut(&chunks.sums)
            .slice_mut(&chunks.floors)
            .slice_mut(&rows.largests)
            .slice_mut(&rows.floors)
            .slice_mut(&rows.normalizers)
            .slice_mut(&rows.tokens)
            .slice_mut(&rows.logprobs)
            .size(self.chunks())
            .i32(i32::from(keeps_normalizers));
        // SAFETY: as above.
        unsafe { self.join.launch(stream, [count, 1, 1], arguments) }?;
        Ok(())
    }
}
