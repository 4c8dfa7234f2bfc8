//! The search among the gathered tokens of a row.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod kernels {
    use crate::sample::cuda::draw::code::cuda::draw_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Beyond all places. Literals have 31 bits.
    fn nowhere() -> i64 {
        2097152i64 * 2147483647i64
    }

    /// Places of some tokens of a bin up to a cut, the largest number for none; and what they amount to:
    /// one each, or their units. `segment`: the row, where the tokens begin, their end.
    unsafe fn read_tokens<L: ElementType, const V: i32, const B: i32>(
        logits: *mut L,
        ids: *mut i32,
        segment: [i32; 3],
        about: [f32; 3],
        cut: i64,
        by_count: i32,
        after: Token,
    ) -> (Tile<i64, { [B] }>, Tile<i64, { [B] }>) {
        let at: Tile<i32, { [B] }> = count_from::<B>(segment[1]);
        let exists: Tile<bool, { [B] }> = below(at, segment[2]);
        let mask: Tile<bool, { [1, B] }> = exists.reshape(const_shape![1, B]);
        let row: Tile<i32, { [1] }> = count_from::<1>(segment[0]);
        // SAFETY: the caller vouches for the segment.
        let id: Tile<i32, { [1, B] }> =
            unsafe { gather_block(ids, block_offsets(row, V, at), mask, after) };
        let id: Tile<i32, { [B] }> = select(exists, id.reshape(const_shape![B]), all::<B>(0i32));
        // SAFETY: ids are of the vocabulary.
        let logit: Tile<f32, { [B] }> =
            unsafe { read_chunk::<L, V, B>(logits, segment[0], id, after) };
        let relative: Tile<f32, { [B] }> = relative_of::<B>(logit, about);
        let rank: Tile<i64, { [B] }> = exti(rank_of::<B>(relative));
        let id: Tile<i64, { [B] }> = exti(id);
        let place: Tile<i64, { [B] }> = rank * wide::<B>(1048576i64) + id;
        let counts: Tile<bool, { [B] }> = exists & le_tile(place, wide::<B>(cut));
        let mut amount: Tile<i64, { [B] }> = units::<B>(relative, counts);
        if by_count == 1i32 {
            amount = select(counts, wide::<B>(1i64), wide::<B>(0i64));
        }
        (select(counts, place, wide::<B>(nowhere())), amount)
    }

    /// What the tokens of a segment amount to up to a place.
    unsafe fn amount_up_to<L: ElementType, const V: i32, const B: i32>(
        logits: *mut L,
        ids: *mut i32,
        segment: [i32; 3],
        about: [f32; 3],
        cut: i64,
        by_count: i32,
        after: Token,
    ) -> i64 {
        let mut sum: Tile<i64, { [B] }> = wide::<B>(0i64);
        for turn in 0i32..ceil_div(segment[2] - segment[1], B) {
            let part: [i32; 3] = [segment[0], segment[1] + turn * B, segment[2]];
            // SAFETY: as the caller's.
            let (_place, amount): (Tile<i64, { [B] }>, Tile<i64, { [B] }>) =
                unsafe { read_tokens::<L, V, B>(logits, ids, part, about, cut, by_count, after) };
            sum = sum + amount;
        }
        sum_of::<B>(sum)
    }

    /// Some counters, and when they have been read.
    unsafe fn take<E: ElementType>(
        counters: *mut E,
        at: Tile<i32, { [1024] }>,
        after: Token,
    ) -> (Tile<E, { [1024] }>, Token) {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(counters);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [1024] }> = pointer.broadcast(const_shape![1024]);
        let pointer: PointerTile<*mut E, { [1024] }> = pointer.offset_tile(at);
        // SAFETY: the caller vouches for every counter.
        unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                Some(after),
                Latency::<0>,
            )
        }
    }

    fn least_of<const B: i32>(values: Tile<i64, { [B] }>) -> i64 {
        let least: Tile<i64, { [] }> = reduce_min(values, 0i32);
        tile_to_scalar(least)
    }

    fn most_of<const B: i32>(values: Tile<i64, { [B] }>) -> i64 {
        let most: Tile<i64, { [] }> = reduce_max(values, 0i32);
        tile_to_scalar(most)
    }

    /// Of the places of a tile after `low` and up to `high`: the first and the last.
    fn bounds<const B: i32>(place: Tile<i64, { [B] }>, low: i64, high: i64) -> (i64, i64) {
        let inside: Tile<bool, { [B] }> =
            gt_tile(place, wide::<B>(low)) & le_tile(place, wide::<B>(high));
        let first: i64 = least_of::<B>(select(inside, place, wide::<B>(nowhere())));
        let last: i64 = most_of::<B>(select(inside, place, wide::<B>(-1i64)));
        (first, last)
    }

    /// The first place of a segment up to which its tokens amount to `wanted`: halves the range between
    /// the first and the last token that it can still be, until they are one.
    unsafe fn search<L: ElementType, const V: i32, const B: i32>(
        logits: *mut L,
        ids: *mut i32,
        segment: [i32; 3],
        about: [f32; 3],
        cut: i64,
        by_count: i32,
        wanted: i64,
        after: Token,
    ) -> i64 {
        // SAFETY: as the caller's.
        let (place, amount): (Tile<i64, { [B] }>, Tile<i64, { [B] }>) =
            unsafe { read_tokens::<L, V, B>(logits, ids, segment, about, cut, by_count, after) };
        let rest: [i32; 3] = [segment[0], segment[1] + B, segment[2]];
        let turns: i32 = max(ceil_div(rest[2] - rest[1], B), 0i32);
        let mut low: i64 = -1i64;
        let mut high: i64 = nowhere() - 1i64;
        let mut found: i64 = -1i64;
        while found < 0i64 {
            let (first, last): (i64, i64) = bounds::<B>(place, low, high);
            let mut first: i64 = first;
            let mut last: i64 = last;
            for turn in 0i32..turns {
                let part: [i32; 3] = [rest[0], rest[1] + turn * B, rest[2]];
                // SAFETY: as the caller's.
                let (place, _amount): (Tile<i64, { [B] }>, Tile<i64, { [B] }>) = unsafe {
                    read_tokens::<L, V, B>(logits, ids, part, about, cut, by_count, after)
                };
                let (earliest, latest): (i64, i64) = bounds::<B>(place, low, high);
                first = min(first, earliest);
                last = max(last, latest);
            }
            if first >= last {
                found = max(last, 0i64);
            } else {
                let middle: i64 = first + (last - first) / 2i64;
                let up_to: Tile<bool, { [B] }> = le_tile(place, wide::<B>(middle));
                let mut sum: i64 = sum_of::<B>(select(up_to, amount, wide::<B>(0i64)));
                if turns > 0i32 {
                    // SAFETY: as the caller's.
                    sum = sum
                        + unsafe {
                            amount_up_to::<L, V, B>(
                                logits,
                                ids,
                                rest,
                                about,
                                min(cut, middle),
                                by_count,
                                after,
                            )
                        };
                }
                if sum >= wanted {
                    high = middle;
                } else {
                    low = middle;
                }
            }
        }
        found
    }

    /// Sums of bins up to that of a cut, in which only `kept` is left, and nothing beyond.
    fn cut_off(sums: Tile<i64, { [1024] }>, last: i32, kept: i64) -> Tile<i64, { [1024] }> {
        let bin: Tile<i32, { [1024] }> = count_from::<1024>(0i32);
        let inside: Tile<i64, { [1024] }> = select(below(bin, last), sums, wide::<1024>(0i64));
        select(eq_tile(bin, all::<1024>(last)), wide::<1024>(kept), inside)
    }

    /// The first bin up to which all amount to `wanted`, and what is before it.
    fn bin_reached(amounts: Tile<i64, { [1024] }>, wanted: i64) -> (i32, i64) {
        let bin: Tile<i32, { [1024] }> = count_from::<1024>(0i32);
        let up_to: Tile<i64, { [1024] }> = scan_sum(amounts, 0i32, reverse::Forward, 0i64);
        let reached: Tile<bool, { [1024] }> = ge_tile(up_to, wide::<1024>(wanted));
        let first: Tile<i32, { [] }> = reduce_min(select(reached, bin, all::<1024>(1023i32)), 0i32);
        (tile_to_scalar(first), sum_of::<1024>(select(reached, wide::<1024>(0i64), amounts)))
    }

    /// Where the tokens of a bin lie: the row, their beginning, their end.
    fn segment_of(counts: Tile<i32, { [1024] }>, row: i32, bin: i32) -> [i32; 3] {
        let number: Tile<i32, { [1024] }> = count_from::<1024>(0i32);
        let none: Tile<i32, { [1024] }> = all::<1024>(0i32);
        let before: Tile<i32, { [] }> = reduce_sum(select(below(number, bin), counts, none), 0i32);
        let up_to: Tile<i32, { [] }> =
            reduce_sum(select(below(number, bin + 1i32), counts, none), 0i32);
        [row, tile_to_scalar(before), tile_to_scalar(up_to)]
    }

    /// One token of a row: where top-k ends, then where top-p ends among those, then the one that the
    /// random number means. `totals`: candidates; `left`: what they weigh.
    unsafe fn chosen<L: ElementType, const V: i32, const B: i32>(
        logits: *mut L,
        ids: *mut i32,
        uniforms: *mut f64,
        tables: (Tile<i32, { [1024] }>, Tile<i64, { [1024] }>),
        row: i32,
        about: [f32; 3],
        top_k: i32,
        top_p: f32,
        candidates: i32,
        weight: i64,
        after: Token,
    ) -> i64 {
        let (count, sums): (Tile<i32, { [1024] }>, Tile<i64, { [1024] }>) = tables;
        let many: Tile<i64, { [1024] }> = exti(count);
        let mut amounts: Tile<i64, { [1024] }> = sums;
        let mut left: i64 = weight;
        let mut cut: i64 = nowhere() - 1i64;
        // One after the other by the same code, which is long.
        for stage in 0i32..3i32 {
            let mut is_wanted: i32 = 1i32;
            let mut by_count: i32 = 0i32;
            // SAFETY: there is a random number for each row.
            let mut wanted: i64 = unsafe { units_of_draw(uniforms, row, left, after) };
            let mut searched: Tile<i64, { [1024] }> = amounts;
            if stage == 0i32 {
                is_wanted = cuts_by_count(top_k, candidates);
                by_count = 1i32;
                let count: Tile<i64, { [1] }> = exti(all::<1>(top_k));
                wanted = tile_to_scalar(count.reshape(const_shape![]));
                searched = many;
            }
            if stage == 1i32 {
                is_wanted = cuts_by_share(top_p);
                wanted = units_of_share(top_p, left);
            }
            if is_wanted == 1i32 {
                let (bin, before): (i32, i64) = bin_reached(searched, wanted);
                let segment: [i32; 3] = segment_of(count, row, bin);
                let wanted: i64 = wanted - before;
                // SAFETY: the tokens of the bin have been gathered.
                cut = unsafe {
                    search::<L, V, B>(logits, ids, segment, about, cut, by_count, wanted, after)
                };
                if stage < 2i32 {
                    // SAFETY: as above.
                    let kept: i64 = unsafe {
                        amount_up_to::<L, V, B>(logits, ids, segment, about, cut, 0i32, after)
                    };
                    amounts = cut_off(amounts, bin, kept);
                    left = sum_of::<1024>(amounts);
                }
            }
        }
        cut
    }

    /// Counts and weights of the bins of a row, which are zero from then on.
    unsafe fn take_bins(
        bins: *mut i32,
        bin_sums: *mut i64,
        row: i32,
        after: Token,
    ) -> (Tile<i32, { [1024] }>, Tile<i64, { [1024] }>) {
        let place: Tile<i32, { [1024] }> = count_from::<1024>(row * 1024i32);
        let always: Tile<bool, { [1024] }> = constant(true, const_shape![1024]);
        // SAFETY: each row has a counter for each bin.
        let (counts, counts_read): (Tile<i32, { [1024] }>, Token) =
            unsafe { take(bins, place, after) };
        // SAFETY: as above.
        let (sums, sums_read): (Tile<i64, { [1024] }>, Token) =
            unsafe { take(bin_sums, place, after) };
        // SAFETY: as above.
        unsafe { scatter(bins, place, always, all::<1024>(0i32), counts_read) };
        // SAFETY: as above.
        unsafe { scatter(bin_sums, place, always, wide::<1024>(0i64), sums_read) };
        (counts, sums)
    }

    /// One token for each row that is cut; clears bins.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn choose<
        L: ElementType,
        const V: i32,
        const B: i32,
        const CP: i32,
        const PDL: i32,
    >(
        logits: *mut L,
        largests: *mut f32,
        temperatures: *mut f32,
        least: *mut f32,
        top_ks: *mut i32,
        top_ps: *mut f32,
        uniforms: *mut f64,
        counts: *mut i32,
        sums: *mut i64,
        bins: *mut i32,
        bin_sums: *mut i64,
        limits: *mut i32,
        ids: *mut i32,
        tokens: *mut i32,
        chunks: i32,
    ) {
        let row: i32 = get_tile_block_id().0;
        // SAFETY: launched as its specification says, after the tokens were gathered.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a limit for each row.
        let limit: i32 = unsafe { load_i32(limits, row, ready) };
        // SAFETY: each row has a counter for each bin.
        let tables: (Tile<i32, { [1024] }>, Tile<i64, { [1024] }>) =
            unsafe { take_bins(bins, bin_sums, row, ready) };
        if limit >= 0i32 {
            // SAFETY: there is one of each for a row.
            let (_draws, about): (i32, [f32; 3]) =
                unsafe { row_numbers(temperatures, largests, least, row, ready) };
            // SAFETY: as above.
            let top_k: i32 = unsafe { load_i32(top_ks, row, ready) };
            // SAFETY: as above.
            let top_p: f32 = unsafe { load_f32(top_ps, row, ready) };
            // SAFETY: the chunks of the row have been weighed.
            let (found, total): ([i32; 2], [i64; 2]) =
                unsafe { totals::<CP>(counts, sums, row, chunks, ready) };
            // SAFETY: the tokens of the row have been gathered.
            let place: i64 = unsafe {
                chosen::<L, V, B>(
                    logits, ids, uniforms, tables, row, about, top_k, top_p, found[0], total[0],
                    ready,
                )
            };
            let id: Tile<i64, { [1] }> = wide::<1>(place) & wide::<1>(1048575i64);
            let token: Tile<i32, { [1] }> = trunci(id, overflow::NoSignedWrap);
            let token: i32 = tile_to_scalar(token.reshape(const_shape![]));
            // SAFETY: there is a token for each row.
            unsafe { store_i32(tokens, row, token, ready) };
        }
    }
}
