//! The launches of a draw.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::quant::Element;

use super::BINS;
use super::{bins, choose};
use crate::LayersError;
use crate::sample::cuda::{CHUNK, check_vocabulary};

#[cutile::module]
mod kernels {
    use crate::sample::cuda::draw::code::cuda::draw_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Weighs the candidates of each chunk. `CUTS`: they are counted, too, and so are those from the
    /// floor on, which go into bins if the row may be cut. Grid: rows, chunks of `C`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn weigh_chunks<
        L: ElementType,
        const V: i32,
        const C: i32,
        const CUTS: i32,
        const PDL: i32,
    >(
        logits: *mut L,
        largests: *mut f32,
        floors: *mut f32,
        temperatures: *mut f32,
        least: *mut f32,
        top_ks: *mut i32,
        top_ps: *mut f32,
        counts: *mut i32,
        sums: *mut i64,
        bins: *mut i32,
        bin_sums: *mut i64,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after the largest logits were found.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is one of each for a row.
        let (draws, about): (i32, [f32; 3]) =
            unsafe { row_numbers(temperatures, largests, least, row, ready) };
        if draws == 1i32 {
            let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
            // SAFETY: the row has logits.
            let logit: Tile<f32, { [C] }> =
                unsafe { read_chunk::<L, V, C>(logits, row, id, ready) };
            let relative: Tile<f32, { [C] }> = relative_of::<C>(logit, about);
            let counted: Tile<bool, { [C] }> = is_candidate::<C>(relative, about);
            let amount: Tile<i64, { [C] }> = units::<C>(relative, counted);
            let chunks: i32 = get_num_tile_blocks().1;
            let place: i32 = 2i32 * row * chunks + chunk;
            // SAFETY: there is a place for each chunk, twice.
            unsafe { store_i64(sums, place, sum_of::<C>(amount), ready) };
            if CUTS == 1i32 {
                // SAFETY: there is one of each for a row.
                let floor: f32 = unsafe { load_f32(floors, row, ready) };
                // SAFETY: as above.
                let top_k: i32 = unsafe { load_i32(top_ks, row, ready) };
                // SAFETY: as above.
                let top_p: f32 = unsafe { load_f32(top_ps, row, ready) };
                let rank: Tile<i32, { [C] }> = rank_of::<C>(relative);
                let near: Tile<bool, { [C] }> =
                    counted & le_tile(rank, all::<C>(rank_of_one(floor, about)));
                let near_amount: Tile<i64, { [C] }> = select(near, amount, wide::<C>(0i64));
                // SAFETY: there is a place for each chunk, twice.
                unsafe {
                    store_i32(counts, place, count_of::<C>(counted), ready);
                    store_i32(counts, place + chunks, count_of::<C>(near), ready);
                    store_i64(sums, place + chunks, sum_of::<C>(near_amount), ready);
                }
                if max(cuts_by_count(top_k, V), cuts_by_share(top_p)) == 1i32 {
                    // SAFETY: each row has a counter for each bin.
                    unsafe { add_to_bins::<C>(bins, bin_sums, row, rank, amount, near, ready) };
                }
            }
        }
    }

    /// What all candidates of a row weigh.
    unsafe fn weight_of_row<const CP: i32>(
        sums: *mut i64,
        row: i32,
        chunks: i32,
        after: Token,
    ) -> i64 {
        let chunk: Tile<i32, { [CP] }> = count_from::<CP>(0i32);
        let place: Tile<i32, { [CP] }> = count_from::<CP>(2i32 * row * chunks);
        // SAFETY: the caller vouches for a place for each chunk, twice.
        sum_of::<CP>(unsafe { gather(sums, place, below(chunk, chunks), 0i64, after) })
    }

    /// The first token, by id, up to which a row weighs `wanted`.
    unsafe fn token_by_id<L: ElementType, const V: i32, const C: i32, const CP: i32>(
        logits: *mut L,
        sums: *mut i64,
        row: i32,
        about: [f32; 3],
        wanted: i64,
        after: Token,
    ) -> i32 {
        let number: Tile<i32, { [CP] }> = count_from::<CP>(0i32);
        let is_chunk: Tile<bool, { [CP] }> = below(number, ceil_div(V, C));
        let place: Tile<i32, { [CP] }> = number + all::<CP>(2i32 * row * ceil_div(V, C));
        // SAFETY: there is a place for each chunk, twice.
        let sum: Tile<i64, { [CP] }> = unsafe { gather(sums, place, is_chunk, 0i64, after) };
        let up_to: Tile<i64, { [CP] }> = scan_sum(sum, 0i32, reverse::Forward, 0i64);
        let reached: Tile<bool, { [CP] }> = ge_tile(up_to, wide::<CP>(wanted));
        let chunk: Tile<i32, { [] }> =
            reduce_min(select(reached, number, all::<CP>(2147483647i32)), 0i32);
        let chunk: i32 = tile_to_scalar(chunk);
        let passed: i64 = sum_of::<CP>(select(reached, wide::<CP>(0i64), sum));
        let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
        // SAFETY: the row has logits.
        let logit: Tile<f32, { [C] }> = unsafe { read_chunk::<L, V, C>(logits, row, id, after) };
        let relative: Tile<f32, { [C] }> = relative_of::<C>(logit, about);
        let amount: Tile<i64, { [C] }> = units::<C>(relative, is_candidate::<C>(relative, about));
        let up_to: Tile<i64, { [C] }> = scan_sum(amount, 0i32, reverse::Forward, 0i64);
        let reached: Tile<bool, { [C] }> = ge_tile(up_to, wide::<C>(wanted - passed));
        let token: Tile<i32, { [] }> =
            reduce_min(select(reached, id, all::<C>(2147483647i32)), 0i32);
        tile_to_scalar(token)
    }

    /// Draws from rows that are not cut: tokens in the order of their ids. With `CUTS` it writes of the
    /// others which tokens they need.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn draw_by_id<
        L: ElementType,
        const V: i32,
        const C: i32,
        const CP: i32,
        const CUTS: i32,
        const PDL: i32,
    >(
        logits: *mut L,
        largests: *mut f32,
        floors: *mut f32,
        temperatures: *mut f32,
        least: *mut f32,
        top_ks: *mut i32,
        top_ps: *mut f32,
        uniforms: *mut f64,
        counts: *mut i32,
        sums: *mut i64,
        limits: *mut i32,
        tokens: *mut i32,
    ) {
        let row: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the chunks were weighed.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is one of each for a row.
        let (draws, about): (i32, [f32; 3]) =
            unsafe { row_numbers(temperatures, largests, least, row, ready) };
        let mut limit: i32 = -1i32;
        if draws == 1i32 {
            let mut weight: i64 = 0i64;
            if CUTS == 1i32 {
                // SAFETY: the chunks of the row have been weighed.
                let (found, sum): ([i32; 2], [i64; 2]) =
                    unsafe { totals::<CP>(counts, sums, row, ceil_div(V, C), ready) };
                // SAFETY: there is one of each for a row.
                let top_k: i32 = unsafe { load_i32(top_ks, row, ready) };
                // SAFETY: as above.
                let top_p: f32 = unsafe { load_f32(top_ps, row, ready) };
                // SAFETY: as above.
                let floor: f32 = unsafe { load_f32(floors, row, ready) };
                limit = limit_of(found, sum, top_k, top_p, rank_of_one(floor, about));
                weight = sum[0];
            }
            if CUTS == 0i32 {
                // SAFETY: the chunks of the row have been weighed.
                weight = unsafe { weight_of_row::<CP>(sums, row, ceil_div(V, C), ready) };
            }
            if limit < 0i32 {
                // SAFETY: as above.
                let wanted: i64 = unsafe { units_of_draw(uniforms, row, weight, ready) };
                // SAFETY: the row has logits.
                let token: i32 =
                    unsafe { token_by_id::<L, V, C, CP>(logits, sums, row, about, wanted, ready) };
                // SAFETY: there is a token for each row.
                unsafe { store_i32(tokens, row, token, ready) };
            }
        }
        if CUTS == 1i32 {
            // SAFETY: and a limit.
            unsafe { store_i32(limits, row, limit, ready) };
        }
    }
}

/// Numbers of a tile of the search.
const SEARCHED: usize = 2048;

/// What each row asks for; `[rows]` each.
#[derive(Debug, Clone, Copy)]
pub struct DrawRows<'a> {
    /// Largest adjusted logits.
    pub largests: DeviceSlice<'a, f32>,
    /// Least of the largest adjusted logits of groups.
    pub floors: DeviceSlice<'a, f32>,
    /// Rows of temperature 0 are passed over.
    pub temperatures: DeviceSlice<'a, f32>,
    /// 0 keeps all.
    pub top_ks: DeviceSlice<'a, i32>,
    /// In (0, 1].
    pub top_ps: DeviceSlice<'a, f32>,
    /// `ln(min_p)`.
    pub least: DeviceSlice<'a, f32>,
    /// Random numbers in [0, 1).
    pub uniforms: DeviceSlice<'a, f64>,
}

impl DrawRows<'_> {
    fn check(&self, rows: usize) -> Result<(), LayersError> {
        self.largests.expect_len("largest logits of rows", rows)?;
        self.floors.expect_len("floors of rows", rows)?;
        self.temperatures.expect_len("temperatures of rows", rows)?;
        self.top_ks.expect_len("top-k of rows", rows)?;
        self.top_ps.expect_len("top-p of rows", rows)?;
        self.least.expect_len("min-p of rows", rows)?;
        self.uniforms.expect_len("random numbers of rows", rows)?;
        Ok(())
    }
}

/// What one launch leaves to the next, for `R` rows.
#[derive(Debug)]
pub struct DrawState<'a> {
    /// Candidates of chunks, `[R, 2, chunks]`: all, and those from the floor on.
    pub counts: DeviceSliceMut<'a, i32>,
    /// Their weights.
    pub sums: DeviceSliceMut<'a, i64>,
    /// Tokens of bins, `[R, 1024]`: zeros before the first launch, and after each.
    pub bins: DeviceSliceMut<'a, i32>,
    /// Their weights.
    pub bin_sums: DeviceSliceMut<'a, i64>,
    /// Where the next token of each bin goes, `[R, 1024]`.
    pub cursors: DeviceSliceMut<'a, i32>,
    /// The least probable rank that a row needs, `[R]`; -1 where it is not cut.
    pub limits: DeviceSliceMut<'a, i32>,
    /// Tokens bin by bin, `[R, V]`.
    pub ids: DeviceSliceMut<'a, i32>,
}

impl DrawState<'_> {
    fn check(&self, rows: usize, vocabulary: usize) -> Result<(), LayersError> {
        let chunks = 2 * rows * vocabulary.div_ceil(CHUNK);
        self.counts.expect_len("counts of chunks", chunks)?;
        self.sums.expect_len("weights of chunks", chunks)?;
        self.bins.expect_len("counts of bins", rows * BINS)?;
        self.bin_sums.expect_len("weights of bins", rows * BINS)?;
        self.cursors.expect_len("cursors of bins", rows * BINS)?;
        self.limits.expect_len("limits of rows", rows)?;
        self.ids.expect_len("gathered tokens", rows * vocabulary)?;
        Ok(())
    }
}

/// The kernels of one vocabulary and number type of logits.
#[derive(Debug, Clone)]
pub struct Draw<L> {
    /// Of rows none of which is cut, and of others.
    weigh: [Kernel; 2],
    by_id: [Kernel; 2],
    fill: Kernel,
    order: Kernel,
    gather: Kernel,
    choose: Kernel,
    vocabulary: usize,
    element: PhantomData<L>,
}

impl<L: Element> Draw<L> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a vocabulary without kernels, [`LayersError::Cuda`] when a kernel
    /// is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        check_vocabulary(vocabulary)?;
        let chunks = vocabulary.div_ceil(CHUNK);
        let padded = chunks.next_power_of_two();
        let numbers = |values: &[usize]| values.iter().map(|&v| v as i32).collect::<Vec<_>>();
        let of_rows = ["largests", "temperatures", "least"];
        let spec = |module, entry, values: &[usize]| {
            KernelSpec::new("sample/draw", module, "kernels", entry)
                .element(L::NAME)
                .generics(numbers(values))
                .pointers(["logits"].into_iter().chain(of_rows))
                .programmatic()
        };
        let own = |entry, values: &[usize]| spec(kernels::__module_ast_self, entry, values);
        let binned =
            |entry, values: &[usize]| spec(bins::cuda::kernels::__module_ast_self, entry, values);
        let weigh = [0, 1].map(|cuts| {
            own("weigh_chunks", &[vocabulary, CHUNK, cuts])
                .pointers(["floors", "top_ks", "top_ps", "counts", "sums", "bins", "bin_sums"])
                .warps(4)
        });
        let by_id = [0, 1].map(|cuts| {
            own("draw_by_id", &[vocabulary, CHUNK, padded, cuts])
                .pointers(["floors", "top_ks", "top_ps", "uniforms", "counts", "sums", "limits"])
                .pointers(["tokens"])
                .warps(8)
        });
        let fill = binned("fill_bins", &[vocabulary, CHUNK])
            .pointers(["floors", "bins", "bin_sums", "limits"])
            .warps(4);
        let module = bins::cuda::kernels::__module_ast_self;
        let order = KernelSpec::new("sample/draw", module, "kernels", "order_bins")
            .pointers(["top_ks", "top_ps", "bins", "bin_sums", "cursors", "limits"])
            .pointers(["sums", "counts"])
            .warps(8)
            .programmatic();
        let gather = binned("gather_tokens", &[vocabulary, CHUNK])
            .pointers(["limits", "cursors", "ids"])
            .warps(4);
        let module = choose::cuda::kernels::__module_ast_self;
        let choose = spec(module, "choose", &[vocabulary, SEARCHED, padded])
            .pointers(["top_ks", "top_ps", "uniforms", "counts", "sums", "bins", "bin_sums"])
            .pointers(["limits", "ids", "tokens"])
            .warps(8);
        Ok(Self {
            weigh: [kernels.get(&weigh[0])?, kernels.get(&weigh[1])?],
            by_id: [kernels.get(&by_id[0])?, kernels.get(&by_id[1])?],
            fill: kernels.get(&fill)?,
            order: kernels.get(&order)?,
            gather: kernels.get(&gather)?,
            choose: kernels.get(&choose)?,
            vocabulary,
            element: PhantomData,
        })
    }

    /// Chooses a token for each row of `logits` `[rows, V]` with a temperature and something to choose.
    /// `cuts`: whether a row may be cut by top-k or top-p.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or a launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        logits: DeviceSlice<'_, L>,
        (rows, cuts): (&DrawRows<'_>, bool),
        state: &mut DrawState<'_>,
        tokens: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        rows.check(count)?;
        state.check(count, self.vocabulary)?;
        tokens.expect_len("chosen tokens", count)?;
        let grid = [count, self.vocabulary.div_ceil(CHUNK), 1];
        let arguments = Arguments::new()
            .slice(logits)
            .slice(rows.largests)
            .slice(rows.floors)
            .slice(rows.temperatures)
            .slice(rows.least)
            .slice(rows.top_ks)
            .slice(rows.top_ps)
            .slice_mut(&state.counts)
            .slice_mut(&state.sums)
            .slice_mut(&state.bins)
            .slice_mut(&state.bin_sums);
        let (weigh, by_id) = (&self.weigh[usize::from(cuts)], &self.by_id[usize::from(cuts)]);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { weigh.launch(stream, grid, arguments) }?;
        let arguments = Arguments::new()
            .slice(logits)
            .slice(rows.largests)
            .slice(rows.floors)
            .slice(rows.temperatures)
            .slice(rows.least)
            .slice(rows.top_ks)
            .slice(rows.top_ps)
            .slice(rows.uniforms)
            .slice_mut(&state.counts)
            .slice_mut(&state.sums)
            .slice_mut(&state.limits)
            .slice_mut(tokens);
        // SAFETY: as above.
        unsafe { by_id.launch(stream, [count, 1, 1], arguments) }?;
        if cuts { self.launch_cut(stream, logits, rows, state, tokens) } else { Ok(()) }
    }

    /// The launches of rows that are cut.
    fn launch_cut(
        &self,
        stream: &Stream,
        logits: DeviceSlice<'_, L>,
        rows: &DrawRows<'_>,
        state: &mut DrawState<'_>,
        tokens: &mut DeviceSliceMut<'_, i32>,
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        let chunks = self.vocabulary.div_ceil(CHUNK);
        let arguments = Arguments::new()
            .slice(logits)
            .slice(rows.largests)
            .slice(rows.floors)
            .slice(rows.temperatures)
            .slice(rows.least)
            .slice_mut(&state.bins)
            .slice_mut(&state.bin_sums)
            .slice_mut(&state.limits);
        // SAFETY: the arguments are the kernel's, with the lengths that `launch` has checked.
        unsafe { self.fill.launch(stream, [count, chunks, 1], arguments) }?;
        let arguments = Arguments::new()
            .slice(rows.top_ks)
            .slice(rows.top_ps)
            .slice_mut(&state.bins)
            .slice_mut(&state.bin_sums)
            .slice_mut(&state.cursors)
            .slice_mut(&state.limits)
            .slice_mut(&state.sums)
            .slice_mut(&state.counts)
            .size(chunks);
        // SAFETY: as above.
        unsafe { self.order.launch(stream, [count, 1, 1], arguments) }?;
        let arguments = Arguments::new()
            .slice(logits)
            .slice(rows.largests)
            .slice(rows.temperatures)
            .slice(rows.least)
            .slice_mut(&state.limits)
            .slice_mut(&state.cursors)
            .slice_mut(&state.ids);
        // SAFETY: as above.
        unsafe { self.gather.launch(stream, [count, chunks, 1], arguments) }?;
        let arguments = Arguments::new()
            .slice(logits)
            .slice(rows.largests)
            .slice(rows.temperatures)
            .slice(rows.least)
            .slice(rows.top_ks)
            .slice(rows.top_ps)
            .slice(rows.uniforms)
            .slice_mut(&state.counts)
            .slice_mut(&state.sums)
            .slice_mut(&state.bins)
            .slice_mut(&state.bin_sums)
            .slice_mut(&state.limits)
            .slice_mut(&state.ids)
            .slice_mut(tokens)
            .size(chunks);
        // SAFETY: as above.
        unsafe { self.choose.launch(stream, [count, 1, 1], arguments) }?;
        Ok(())
    }
}
