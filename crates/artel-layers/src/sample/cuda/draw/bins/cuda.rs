//! Tokens of rows that are cut, gathered by how probable they are.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod kernels {
    use crate::sample::cuda::draw::code::cuda::draw_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Puts the candidates beyond the floor into bins, too, for rows that need them. Grid: rows, chunks of
    /// `C`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn fill_bins<L: ElementType, const V: i32, const C: i32, const PDL: i32>(
        logits: *mut L,
        largests: *mut f32,
        floors: *mut f32,
        temperatures: *mut f32,
        least: *mut f32,
        bins: *mut i32,
        bin_sums: *mut i64,
        limits: *mut i32,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after the limits were written.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a limit for each row.
        let limit: i32 = unsafe { load_i32(limits, row, ready) };
        if limit == 2147483647i32 {
            // SAFETY: there is one of each for a row.
            let (_draws, about): (i32, [f32; 3]) =
                unsafe { row_numbers(temperatures, largests, least, row, ready) };
            // SAFETY: as above.
            let floor: f32 = unsafe { load_f32(floors, row, ready) };
            let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
            // SAFETY: the row has logits.
            let logit: Tile<f32, { [C] }> =
                unsafe { read_chunk::<L, V, C>(logits, row, id, ready) };
            let relative: Tile<f32, { [C] }> = relative_of::<C>(logit, about);
            let rank: Tile<i32, { [C] }> = rank_of::<C>(relative);
            let far: Tile<bool, { [C] }> = is_candidate::<C>(relative, about)
                & gt_tile(rank, all::<C>(rank_of_one(floor, about)));
            let amount: Tile<i64, { [C] }> = units::<C>(relative, far);
            // SAFETY: each row has a counter for each bin.
            unsafe { add_to_bins::<C>(bins, bin_sums, row, rank, amount, far, ready) };
        }
    }

    /// Where the tokens of each bin of a row begin; and the least probable rank that a row needs.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn order_bins<const PDL: i32>(
        top_ks: *mut i32,
        top_ps: *mut f32,
        bins: *mut i32,
        bin_sums: *mut i64,
        cursors: *mut i32,
        limits: *mut i32,
        sums: *mut i64,
        counts: *mut i32,
        chunks: i32,
    ) {
        let row: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the bins were filled.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a limit for each row.
        let limit: i32 = unsafe { load_i32(limits, row, ready) };
        if limit >= 0i32 {
            let bin: Tile<i32, { [1024] }> = count_from::<1024>(0i32);
            let place: Tile<i32, { [1024] }> = bin + all::<1024>(row * 1024i32);
            let always: Tile<bool, { [1024] }> = constant(true, const_shape![1024]);
            // SAFETY: each row has a counter for each bin.
            let count: Tile<i32, { [1024] }> = unsafe { gather(bins, place, always, 0i32, ready) };
            // SAFETY: as above.
            let sum: Tile<i64, { [1024] }> =
                unsafe { gather(bin_sums, place, always, 0i64, ready) };
            let end: Tile<i32, { [1024] }> = scan_sum(count, 0i32, reverse::Forward, 0i32);
            // SAFETY: as above.
            unsafe { scatter(cursors, place, always, end - count, ready) };
            let sum: Tile<i64, { [1024] }> = scan_sum(sum, 0i32, reverse::Forward, 0i64);
            // SAFETY: the chunks of the row have been weighed.
            let (found, total): ([i32; 2], [i64; 2]) =
                unsafe { totals::<1024>(counts, sums, row, chunks, ready) };
            // SAFETY: as above.
            let top_k: i32 = unsafe { load_i32(top_ks, row, ready) };
            // SAFETY: as above.
            let top_p: f32 = unsafe { load_f32(top_ps, row, ready) };
            let mut reached: Tile<bool, { [1024] }> =
                ge_tile(sum, wide::<1024>(units_of_share(top_p, total[0])));
            if cuts_by_count(top_k, found[0]) == 1i32 {
                reached = ge_tile(end, all::<1024>(top_k));
            }
            let last: Tile<i32, { [] }> =
                reduce_min(select(reached, bin, all::<1024>(1023i32)), 0i32);
            let last: i32 = tile_to_scalar(last);
            // SAFETY: as above.
            unsafe { store_i32(limits, row, min(limit, end_of_bin(last)), ready) };
        }
    }

    /// Writes the ids of the tokens that a row needs, bin by bin, in any order within a bin. Grid: rows,
    /// chunks of `C`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn gather_tokens<L: ElementType, const V: i32, const C: i32, const PDL: i32>(
        logits: *mut L,
        largests: *mut f32,
        temperatures: *mut f32,
        least: *mut f32,
        limits: *mut i32,
        cursors: *mut i32,
        ids: *mut i32,
    ) {
        let (row, chunk, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after the bins were put in order.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a limit for each row.
        let limit: i32 = unsafe { load_i32(limits, row, ready) };
        if limit >= 0i32 {
            // SAFETY: there is one of each for a row.
            let (_draws, about): (i32, [f32; 3]) =
                unsafe { row_numbers(temperatures, largests, least, row, ready) };
            let id: Tile<i32, { [C] }> = count_from::<C>(chunk * C);
            // SAFETY: the row has logits.
            let logit: Tile<f32, { [C] }> =
                unsafe { read_chunk::<L, V, C>(logits, row, id, ready) };
            let relative: Tile<f32, { [C] }> = relative_of::<C>(logit, about);
            let rank: Tile<i32, { [C] }> = rank_of::<C>(relative);
            let needed: Tile<bool, { [C] }> =
                is_candidate::<C>(relative, about) & le_tile(rank, all::<C>(limit));
            let bin: Tile<i32, { [C] }> = bin_of::<C>(rank) + all::<C>(row * 1024i32);
            // SAFETY: each row has a counter for each bin.
            let place: Tile<i32, { [C] }> =
                unsafe { add_to::<i32, C>(cursors, bin, all::<C>(1i32), needed, ready) };
            let mask: Tile<bool, { [1, C] }> = needed.reshape(const_shape![1, C]);
            let offsets: Tile<i64, { [1, C] }> = block_offsets(count_from::<1>(row), V, place);
            let id: Tile<i32, { [1, C] }> = id.reshape(const_shape![1, C]);
            // SAFETY: there is a place for each token of the row.
            unsafe { scatter_block(ids, offsets, mask, id, ready) };
        }
    }
}
