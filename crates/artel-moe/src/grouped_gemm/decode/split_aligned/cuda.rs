//! Products of the aligned form for blocks whose rows are no power of two.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Rows and weights of the same plain numbers; a block has `BM` rows and then `BT` more. A weight is
/// read once for all of them, where two blocks would read it twice.
#[cutile::module]
pub mod split_aligned {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use cutile::core::*;

    /// First product of a block and `silu(gate) * up`, `out` `[positions, I]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn split_first<
        A: ElementType,
        const BM: i32,
        const BT: i32,
        const HB: i32,
        const BK: i32,
        const I: i32,
        const K: i32,
        const NE: i32,
        const TOP_K: i32,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: *mut A,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pairs: i32,
        biases: *mut f32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        let position: i32 = block * (BM + BT);
        // SAFETY: the assignment has an expert for every block in use.
        let expert: i32 =
            unsafe { expert_at::<NE>(expert_ids, num_tokens_post_padded, block, position, ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, position, pairs, ready) };
            // SAFETY: as above.
            let kept_tail: Tile<i32, { [BT] }> =
                unsafe { live_positions::<BT>(sorted_token_ids, position + BM, pairs, ready) };
            // SAFETY: the block is in use.
            let rows: Tile<i32, { [BM] }> =
                unsafe { rows_from::<BM, TOP_K>(sorted_token_ids, position, pairs, ready) };
            // SAFETY: as above.
            let tail: Tile<i32, { [BT] }> =
                unsafe { rows_from::<BT, TOP_K>(sorted_token_ids, position + BM, pairs, ready) };
            // SAFETY: expert and columns are inside the weights, and the rows exist.
            let (gate, up, tail_gate, tail_up): (
                Tile<f32, { [HB, BM] }>,
                Tile<f32, { [HB, BM] }>,
                Tile<f32, { [HB, BT] }>,
                Tile<f32, { [HB, BT] }>,
            ) = unsafe {
                gathered_pairs::<A, BM, BT, HB, BK, K>(w, x, rows, tail, [expert, column], ready)
            };
            let at: [i32; 3] = [expert, column, I];
            // SAFETY: `out` has a row for every position, and experts have biases where there are any.
            unsafe {
                store_gated::<A, KIND, PA, PB, BIAS, BM, HB>(out, kept, gate, up, biases, at, ready)
            };
            // SAFETY: as above.
            unsafe {
                store_gated::<A, KIND, PA, PB, BIAS, BT, HB>(
                    out, kept_tail, tail_gate, tail_up, biases, at, ready,
                )
            };
        }
    }

    /// Second product of a block, whose rows lie at their positions.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn split_second<
        A: ElementType,
        const BM: i32,
        const BT: i32,
        const BN: i32,
        const BK: i32,
        const H: i32,
        const I: i32,
        const NE: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: *mut A,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        sorted_token_ids: *mut i32,
        pairs: i32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        let early: Token = new_token_unordered();
        let position: i32 = block * (BM + BT);
        // SAFETY: the kernel before let this one start when the assignment was there.
        let expert: i32 =
            unsafe { expert_at::<NE>(expert_ids, num_tokens_post_padded, block, position, early) };
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(early) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, position, pairs, early) };
            // SAFETY: as above.
            let kept_tail: Tile<i32, { [BT] }> =
                unsafe { live_positions::<BT>(sorted_token_ids, position + BM, pairs, early) };
            let weights: Partition<A, { [1, 1, BN, BK] }> = w.partition(const_shape![1, 1, BN, BK]);
            let rows: Tile<i32, { [BM] }> = count_from::<BM>(position);
            let tail: Tile<i32, { [BT] }> = count_from::<BT>(position + BM);
            let mut xp: PointerTile<*mut A, { [BM, BK] }> = row_pointers::<A, BM, BK>(x, rows, I);
            let mut tp: PointerTile<*mut A, { [BT, BK] }> = row_pointers::<A, BT, BK>(x, tail, I);
            let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
            let tail_step: Tile<i32, { [BT, BK] }> = broadcast_scalar(BK, const_shape![BT, BK]);
            let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
            let mut tail_sum: Tile<f32, { [BN, BT] }> = constant(0.0f32, const_shape![BN, BT]);
            for k in 0i32..ceil_div(I, BK) {
                let wk: Tile<A, { [1, 1, BN, BK] }> = weights.load([expert, 0i32, column, k]);
                let wk: Tile<A, { [BN, BK] }> = wk.reshape(const_shape![BN, BK]);
                // SAFETY: positions have rows of I columns.
                let xk: Tile<A, { [BM, BK] }> =
                    unsafe { load_rows::<A, BM, BK, I>(xp, k * BK, ready) };
                let xk: Tile<A, { [BK, BM] }> = xk.transpose();
                // SAFETY: as above.
                let tk: Tile<A, { [BT, BK] }> =
                    unsafe { load_rows::<A, BT, BK, I>(tp, k * BK, ready) };
                let tk: Tile<A, { [BK, BT] }> = tk.transpose();
                sum = mmaf(wk, xk, sum);
                tail_sum = mmaf(wk, tk, tail_sum);
                xp = xp.offset_tile(step);
                tp = tp.offset_tile(tail_step);
            }
            // SAFETY: `out` has a row for every position.
            unsafe { store_from::<A, BM, BN>(out, kept, [column * BN, H], sum) };
            // SAFETY: as above.
            unsafe { store_from::<A, BT, BN>(out, kept_tail, [column * BN, H], tail_sum) };
        }
    }

    /// Expert of the block whose first position is given; -1 behind the end and for one that does not
    /// exist.
    unsafe fn expert_at<const NE: i32>(
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        block: i32,
        position: i32,
        after: Token,
    ) -> i32 {
        // SAFETY: it holds one number.
        let end: i32 = unsafe { load_i32(num_tokens_post_padded, 0i32, after) };
        let mut id: i32 = -1i32;
        if position < end {
            // SAFETY: every block in use has an expert.
            id = unsafe { load_i32(expert_ids, block, after) };
        }
        existing::<NE>(id)
    }

    /// The tokens of the pairs at `B` positions, token 0 for padding.
    unsafe fn rows_from<const B: i32, const TOP_K: i32>(
        sorted_token_ids: *mut i32,
        position: i32,
        pairs: i32,
        after: Token,
    ) -> Tile<i32, { [B] }> {
        // SAFETY: a block in use has an entry for each of its positions.
        let pair: Tile<i32, { [B] }> =
            unsafe { gather_all(sorted_token_ids, count_from::<B>(position), after) };
        let live: Tile<bool, { [B] }> = lt_tile(pair, splat::<B>(pairs));
        select(live, pair / splat::<B>(TOP_K), splat::<B>(0i32))
    }

    /// Gate and up of the rows of a block, `[HB, BM]`, and of those that it has more, `[HB, BT]`;
    /// `place` is expert and column tile.
    unsafe fn gathered_pairs<
        A: ElementType,
        const BM: i32,
        const BT: i32,
        const HB: i32,
        const BK: i32,
        const K: i32,
    >(
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        x: *mut A,
        rows: Tile<i32, { [BM] }>,
        tail: Tile<i32, { [BT] }>,
        place: [i32; 2],
        after: Token,
    ) -> (
        Tile<f32, { [HB, BM] }>,
        Tile<f32, { [HB, BM] }>,
        Tile<f32, { [HB, BT] }>,
        Tile<f32, { [HB, BT] }>,
    ) {
        let weights: Partition<A, { [1, 1, HB, BK] }> = w.partition(const_shape![1, 1, HB, BK]);
        let mut xp: PointerTile<*mut A, { [BM, BK] }> = row_pointers::<A, BM, BK>(x, rows, K);
        let mut tp: PointerTile<*mut A, { [BT, BK] }> = row_pointers::<A, BT, BK>(x, tail, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let tail_step: Tile<i32, { [BT, BK] }> = broadcast_scalar(BK, const_shape![BT, BK]);
        let mut gate: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        let mut up: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        let mut tail_gate: Tile<f32, { [HB, BT] }> = constant(0.0f32, const_shape![HB, BT]);
        let mut tail_up: Tile<f32, { [HB, BT] }> = constant(0.0f32, const_shape![HB, BT]);
        for k in 0i32..ceil_div(K, BK) {
            let wg: Tile<A, { [1, 1, HB, BK] }> = weights.load([place[0], 0i32, place[1], k]);
            let wg: Tile<A, { [HB, BK] }> = wg.reshape(const_shape![HB, BK]);
            let wu: Tile<A, { [1, 1, HB, BK] }> = weights.load([place[0], 1i32, place[1], k]);
            let wu: Tile<A, { [HB, BK] }> = wu.reshape(const_shape![HB, BK]);
            // SAFETY: the caller vouches for the rows, which have K columns.
            let xk: Tile<A, { [BM, BK] }> = unsafe { load_rows::<A, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<A, { [BK, BM] }> = xk.transpose();
            // SAFETY: as above.
            let tk: Tile<A, { [BT, BK] }> = unsafe { load_rows::<A, BT, BK, K>(tp, k * BK, after) };
            let tk: Tile<A, { [BK, BT] }> = tk.transpose();
            gate = mmaf(wg, xk, gate);
            up = mmaf(wu, xk, up);
            tail_gate = mmaf(wg, tk, tail_gate);
            tail_up = mmaf(wu, tk, tail_up);
            xp = xp.offset_tile(step);
            tp = tp.offset_tile(tail_step);
        }
        (gate, up, tail_gate, tail_up)
    }

    /// Writes what becomes of gate and up to `rows`, nothing where they are negative; `at` is expert, column tile and
    /// the size of a row.
    unsafe fn store_gated<
        A: ElementType,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const B: i32,
        const HB: i32,
    >(
        out: *mut A,
        rows: Tile<i32, { [B] }>,
        gate: Tile<f32, { [HB, B] }>,
        up: Tile<f32, { [HB, B] }>,
        biases: *mut f32,
        at: [i32; 3],
        after: Token,
    ) {
        // SAFETY: the caller vouches for the biases.
        let h: Tile<f32, { [HB, B] }> =
            unsafe { gated_halves::<KIND, PA, PB, BIAS, HB, B>(gate, up, biases, at, after) };
        // SAFETY: and for the rows.
        unsafe { store_from::<A, B, HB>(out, rows, [at[1] * HB, at[2]], h) };
    }

    /// Writes the columns of `value` to `rows`, nothing where they are negative; `place` is the first column and the
    /// size of a row.
    unsafe fn store_from<A: ElementType, const B: i32, const BN: i32>(
        out: *mut A,
        rows: Tile<i32, { [B] }>,
        place: [i32; 2],
        value: Tile<f32, { [BN, B] }>,
    ) {
        let value: Tile<A, { [BN, B] }> = convert_tile(value);
        let value: Tile<A, { [B, BN] }> = value.transpose();
        // SAFETY: the caller vouches for the rows.
        let _written: Token =
            unsafe { store_rows::<A, B, BN>(out, rows, place[0], place[1], value) };
    }
}
