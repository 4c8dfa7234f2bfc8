//! Device functions that find out what a block of threads has to do.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Experts, pairs and rows of a block.
#[cutile::module]
pub mod decode_routes {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use cutile::core::*;

    /// Expert of one pair, from ids or from packed pairs; -1 for one that does not exist.
    pub unsafe fn expert_of<const NE: i32, const PACKED: i32>(
        ids: *mut i32,
        pair: i32,
        after: Token,
    ) -> i32 {
        // SAFETY: the caller vouches for the pair.
        let mut id: i32 = unsafe { load_i32(ids, pair, after) };
        if PACKED == 1i32 {
            id = id >> 16i32;
        }
        existing::<NE>(id)
    }

    /// The expert that the block of a pair leads, and the pairs that it serves.
    pub unsafe fn leading_pairs<
        const BM: i32,
        const KP: i32,
        const NE: i32,
        const TOP_K: i32,
        const SHARED: i32,
        const PACKED: i32,
    >(
        ids: *mut i32,
        pair: i32,
        tokens: i32,
        after: Token,
    ) -> (i32, Tile<i32, { [BM] }>) {
        // SAFETY: the caller vouches for all pairs.
        let expert: i32 = unsafe {
            leading_expert::<BM, KP, NE, TOP_K, SHARED, PACKED>(ids, pair, tokens, after)
        };
        // SAFETY: as above.
        let pairs: Tile<i32, { [BM] }> = unsafe {
            pairs_of_block::<BM, KP, TOP_K, SHARED, PACKED>(ids, pair, expert, tokens, after)
        };
        (expert, pairs)
    }

    /// Expert of one block of the aligned form; -1 behind the end and for one that does not exist.
    pub unsafe fn expert_of_block<const BM: i32, const NE: i32>(
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        block: i32,
        after: Token,
    ) -> i32 {
        // SAFETY: it holds one number.
        let end: i32 = unsafe { load_i32(num_tokens_post_padded, 0i32, after) };
        let mut id: i32 = -1i32;
        if block * BM < end {
            // SAFETY: every block in use has an expert.
            id = unsafe { load_i32(expert_ids, block, after) };
        }
        existing::<NE>(id)
    }

    /// The expert of this id, -1 for none.
    pub fn existing<const NE: i32>(id: i32) -> i32 {
        let mut expert: i32 = -1i32;
        if id >= 0i32 {
            if id < NE {
                expert = id;
            }
        }
        expert
    }

    /// The rows of `x` `[BM]` that a block of the aligned form multiplies, row 0 for padding: of its
    /// pairs' tokens, or with `TOP_K = 0` the positions themselves.
    pub unsafe fn rows_of_block<const BM: i32, const TOP_K: i32>(
        sorted_token_ids: *mut i32,
        block: i32,
        pairs: i32,
        after: Token,
    ) -> Tile<i32, { [BM] }> {
        let mut rows: Tile<i32, { [BM] }> = count_from::<BM>(block * BM);
        if TOP_K > 0i32 {
            // SAFETY: a block in use has `BM` entries.
            let pair: Tile<i32, { [BM] }> = unsafe { gather_all(sorted_token_ids, rows, after) };
            let live: Tile<bool, { [BM] }> = lt_tile(pair, splat::<BM>(pairs));
            rows = select(live, pair / splat::<BM>(TOP_K), splat::<BM>(0i32));
        }
        rows
    }

    /// The rows of `x` that a block multiplies, as [`rows_of_block`], and where results go, as [`live_positions`].
    pub unsafe fn rows_and_places<const BM: i32, const TOP_K: i32>(
        sorted_token_ids: *mut i32,
        block: i32,
        pairs: i32,
        after: Token,
    ) -> (Tile<i32, { [BM] }>, Tile<i32, { [BM] }>) {
        // SAFETY: the caller vouches for the block.
        let rows: Tile<i32, { [BM] }> =
            unsafe { rows_of_block::<BM, TOP_K>(sorted_token_ids, block, pairs, after) };
        // SAFETY: as above.
        let places: Tile<i32, { [BM] }> =
            unsafe { live_positions::<BM>(sorted_token_ids, block * BM, pairs, after) };
        (rows, places)
    }

    /// Positions from `first` on `[BM]`, -1 where no pair stands. What becomes of such rows nobody reads, so it is not
    /// stored: the memory would have to write it.
    pub unsafe fn live_positions<const BM: i32>(
        sorted_token_ids: *mut i32,
        first: i32,
        pairs: i32,
        after: Token,
    ) -> Tile<i32, { [BM] }> {
        let positions: Tile<i32, { [BM] }> = count_from::<BM>(first);
        // SAFETY: the caller vouches for `BM` entries.
        let pair: Tile<i32, { [BM] }> = unsafe { gather_all(sorted_token_ids, positions, after) };
        let live: Tile<bool, { [BM] }> = lt_tile(pair, splat::<BM>(pairs));
        select(live, positions, splat::<BM>(-1i32))
    }

    /// The expert whose weights the block of `pair` multiplies, -1 for none. With `SHARED` the first
    /// block of those that serve the same pairs does the work of all.
    pub unsafe fn leading_expert<
        const BM: i32,
        const KP: i32,
        const NE: i32,
        const TOP_K: i32,
        const SHARED: i32,
        const PACKED: i32,
    >(
        ids: *mut i32,
        pair: i32,
        tokens: i32,
        after: Token,
    ) -> i32 {
        // SAFETY: the caller vouches for ids of all pairs.
        let mut expert: i32 = unsafe { expert_of::<NE, PACKED>(ids, pair, after) };
        if SHARED == 1i32 {
            // SAFETY: as above.
            let served: Tile<i32, { [BM, KP] }> =
                unsafe { served_pairs::<BM, KP, TOP_K, PACKED>(ids, pair, expert, tokens, after) };
            if first_pair::<BM, KP>(served) != pair {
                expert = -1i32;
            }
        }
        expert
    }

    /// The pair of each token `[BM]` that the block of `pair` computes, -1 for none.
    pub unsafe fn pairs_of_block<
        const BM: i32,
        const KP: i32,
        const TOP_K: i32,
        const SHARED: i32,
        const PACKED: i32,
    >(
        ids: *mut i32,
        pair: i32,
        expert: i32,
        tokens: i32,
        after: Token,
    ) -> Tile<i32, { [BM] }> {
        let token: Tile<i32, { [BM] }> = iota(const_shape![BM]);
        let mine: Tile<bool, { [BM] }> = eq_tile(token, splat::<BM>(pair / TOP_K));
        let mut pairs: Tile<i32, { [BM] }> = select(mine, splat::<BM>(pair), splat::<BM>(-1i32));
        if SHARED == 1i32 {
            // SAFETY: the caller vouches for ids of all pairs.
            let served: Tile<i32, { [BM, KP] }> =
                unsafe { served_pairs::<BM, KP, TOP_K, PACKED>(ids, pair, expert, tokens, after) };
            pairs = pair_of_token::<BM, KP>(served);
        }
        pairs
    }

    /// The pairs `[BM, KP]` that the block of `pair` serves, -1 elsewhere: of each token the pair
    /// with the same expert. A token that lists the expert again is served again, by the block of
    /// that pair.
    pub unsafe fn served_pairs<
        const BM: i32,
        const KP: i32,
        const TOP_K: i32,
        const PACKED: i32,
    >(
        ids: *mut i32,
        pair: i32,
        expert: i32,
        tokens: i32,
        after: Token,
    ) -> Tile<i32, { [BM, KP] }> {
        // SAFETY: as the caller says of `ids`.
        let experts: Tile<i32, { [BM, KP] }> =
            unsafe { experts_of::<BM, KP, TOP_K, PACKED>(ids, tokens, after) };
        let expert: Tile<i32, { [BM, KP] }> = broadcast_scalar(expert, const_shape![BM, KP]);
        let same: Tile<bool, { [BM, KP] }> = eq_tile(experts, expert);
        let zeros: Tile<i32, { [BM, KP] }> = constant(0i32, const_shape![BM, KP]);
        let ones: Tile<i32, { [BM, KP] }> = constant(1i32, const_shape![BM, KP]);
        let none: Tile<i32, { [BM, KP] }> = constant(-1i32, const_shape![BM, KP]);
        // Which time the token lists the expert: 1, and more for repeated ids.
        let hits: Tile<i32, { [BM, KP] }> = select(same, ones, zeros);
        let times: Tile<i32, { [BM, KP] }> = counts_up_to::<BM, KP>(hits);
        let pairs: Tile<i32, { [BM, KP] }> = pairs_of::<BM, KP, TOP_K>();
        let mine: Tile<i32, { [BM, KP] }> = broadcast_scalar(pair, const_shape![BM, KP]);
        let time: Tile<i32, { [BM, KP] }> = select(same & eq_tile(pairs, mine), times, zeros);
        let time: Tile<i32, { [BM] }> = reduce_sum(time, 1i32);
        let time: Tile<i32, { [] }> = reduce_sum(time, 0i32);
        let time: i32 = tile_to_scalar(time);
        let time: Tile<i32, { [BM, KP] }> = broadcast_scalar(time, const_shape![BM, KP]);
        select(same & eq_tile(times, time), pairs, none)
    }

    /// Sums of every row from its first number to each.
    pub fn counts_up_to<const BM: i32, const KP: i32>(
        hits: Tile<i32, { [BM, KP] }>,
    ) -> Tile<i32, { [BM, KP] }> {
        let slots: Tile<i32, { [KP] }> = iota(const_shape![KP]);
        let here: Tile<i32, { [1, KP, 1] }> = slots.reshape(const_shape![1, KP, 1]);
        let here: Tile<i32, { [BM, KP, KP] }> = here.broadcast(const_shape![BM, KP, KP]);
        let other: Tile<i32, { [1, 1, KP] }> = slots.reshape(const_shape![1, 1, KP]);
        let other: Tile<i32, { [BM, KP, KP] }> = other.broadcast(const_shape![BM, KP, KP]);
        let hits: Tile<i32, { [BM, 1, KP] }> = hits.reshape(const_shape![BM, 1, KP]);
        let hits: Tile<i32, { [BM, KP, KP] }> = hits.broadcast(const_shape![BM, KP, KP]);
        let zeros: Tile<i32, { [BM, KP, KP] }> = constant(0i32, const_shape![BM, KP, KP]);
        let counted: Tile<i32, { [BM, KP, KP] }> = select(le_tile(other, here), hits, zeros);
        let counts: Tile<i32, { [BM, KP] }> = reduce_sum(counted, 2i32);
        counts
    }

    /// Experts of the slots of `BM` tokens `[BM, KP]`, -1 where there is no token or slot. `KP` is
    /// the power of two that holds the `TOP_K` slots.
    pub unsafe fn experts_of<const BM: i32, const KP: i32, const TOP_K: i32, const PACKED: i32>(
        ids: *mut i32,
        tokens: i32,
        after: Token,
    ) -> Tile<i32, { [BM, KP] }> {
        let pairs: Tile<i32, { [BM, KP] }> = pairs_of::<BM, KP, TOP_K>();
        let slots: Tile<i32, { [KP] }> = iota(const_shape![KP]);
        let slots: Tile<i32, { [1, KP] }> = slots.reshape(const_shape![1, KP]);
        let slots: Tile<i32, { [BM, KP] }> = slots.broadcast(const_shape![BM, KP]);
        let slot_end: Tile<i32, { [BM, KP] }> = broadcast_scalar(TOP_K, const_shape![BM, KP]);
        let end: Tile<i32, { [BM, KP] }> = broadcast_scalar(tokens * TOP_K, const_shape![BM, KP]);
        let mask: Tile<bool, { [BM, KP] }> = lt_tile(slots, slot_end) & lt_tile(pairs, end);
        let pointer: PointerTile<*mut i32, { [] }> = pointer_to_tile(ids);
        let pointer: PointerTile<*mut i32, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut i32, { [BM, KP] }> = pointer.broadcast(const_shape![BM, KP]);
        let pointer: PointerTile<*mut i32, { [BM, KP] }> = pointer.offset_tile(pairs);
        // SAFETY: the mask keeps inside `tokens * TOP_K` ids.
        let (experts, _read): (Tile<i32, { [BM, KP] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Some(after),
                Latency::<0>,
            )
        };
        let mut known: Tile<i32, { [BM, KP] }> = experts;
        if PACKED == 1i32 {
            let sixteen: Tile<i32, { [BM, KP] }> = constant(16i32, const_shape![BM, KP]);
            known = shri(experts, sixteen);
        }
        let none: Tile<i32, { [BM, KP] }> = constant(-1i32, const_shape![BM, KP]);
        select(mask, known, none)
    }

    /// Numbers of the pairs of `BM` tokens `[BM, KP]`.
    pub fn pairs_of<const BM: i32, const KP: i32, const TOP_K: i32>() -> Tile<i32, { [BM, KP] }> {
        let tokens: Tile<i32, { [BM] }> = iota(const_shape![BM]);
        let first: Tile<i32, { [BM, 1] }> =
            (tokens * splat::<BM>(TOP_K)).reshape(const_shape![BM, 1]);
        let first: Tile<i32, { [BM, KP] }> = first.broadcast(const_shape![BM, KP]);
        let slots: Tile<i32, { [KP] }> = iota(const_shape![KP]);
        let slots: Tile<i32, { [1, KP] }> = slots.reshape(const_shape![1, KP]);
        let slots: Tile<i32, { [BM, KP] }> = slots.broadcast(const_shape![BM, KP]);
        first + slots
    }

    /// The pair of each token `[BM]` among those that a block serves, -1 for none.
    pub fn pair_of_token<const BM: i32, const KP: i32>(
        served: Tile<i32, { [BM, KP] }>,
    ) -> Tile<i32, { [BM] }> {
        let pairs: Tile<i32, { [BM] }> = reduce_max(served, 1i32);
        pairs
    }

    /// The first pair that a block serves; the block of that pair does the work.
    pub fn first_pair<const BM: i32, const KP: i32>(served: Tile<i32, { [BM, KP] }>) -> i32 {
        let none: Tile<i32, { [BM, KP] }> = constant(-1i32, const_shape![BM, KP]);
        let last: Tile<i32, { [BM, KP] }> = constant(2147483647i32, const_shape![BM, KP]);
        let pairs: Tile<i32, { [BM, KP] }> = select(gt_tile(served, none), served, last);
        let pairs: Tile<i32, { [BM] }> = reduce_min(pairs, 1i32);
        let first: Tile<i32, { [] }> = reduce_min(pairs, 0i32);
        tile_to_scalar(first)
    }
}
