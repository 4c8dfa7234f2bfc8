//! Products of the aligned form on float16 and bfloat16 weights.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Rows and weights of the same plain numbers.
#[cutile::module]
pub mod plain_aligned {
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::plain_direct::cuda::plain_direct::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use cutile::core::*;

    /// First product of a block and `silu(gate) * up`, `out` `[positions, I]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_first<
        A: ElementType,
        const BM: i32,
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
        // SAFETY: the assignment has an expert for every block in use.
        let expert: i32 =
            unsafe { expert_of_block::<BM, NE>(expert_ids, num_tokens_post_padded, block, ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let (rows, kept): (Tile<i32, { [BM] }>, Tile<i32, { [BM] }>) =
                unsafe { rows_and_places::<BM, TOP_K>(sorted_token_ids, block, pairs, ready) };
            // SAFETY: expert and columns are inside the weights.
            let (gate, up): (Tile<f32, { [HB, BM] }>, Tile<f32, { [HB, BM] }>) =
                unsafe { gathered_pair::<A, BM, HB, BK, K>(w, x, rows, [expert, column], ready) };
            let at: [i32; 3] = [expert, column, I];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_halves::<KIND, PA, PB, BIAS, HB, BM>(gate, up, biases, at, ready) };
            let h: Tile<A, { [HB, BM] }> = convert_tile(h);
            let h: Tile<A, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has a row for every position.
            let _written: Token = unsafe { store_rows::<A, BM, HB>(out, kept, column * HB, I, h) };
        }
    }

    /// One product of a block, `out` `[positions, N]`; with `TOP_K` the rows of `x` are tokens, with 0
    /// they are positions.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_product<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const N: i32,
        const K: i32,
        const NE: i32,
        const TOP_K: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: *mut A,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pairs: i32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        // SAFETY: the assignment has an expert for every block in use.
        let expert: i32 =
            unsafe { expert_of_block::<BM, NE>(expert_ids, num_tokens_post_padded, block, ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let rows: Tile<i32, { [BM] }> =
                unsafe { rows_of_block::<BM, TOP_K>(sorted_token_ids, block, pairs, ready) };
            // SAFETY: expert and columns are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> =
                unsafe { gathered_one::<A, BM, BN, BK, K>(w, x, rows, [expert, column], ready) };
            let y: Tile<A, { [BN, BM] }> = convert_tile(sum);
            let y: Tile<A, { [BM, BN] }> = y.transpose();
            // SAFETY: `out` has a row for every position.
            unsafe { store_block::<A, BM, BN>(out, [block, column, BM, N], y) };
        }
    }

    /// Second product of a block, whose rows lie at their positions.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_second<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const H: i32,
        const I: i32,
        const NE: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: &Tensor<A, { [-1, -1] }>,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        sorted_token_ids: *mut i32,
        pairs: i32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        let early: Token = new_token_unordered();
        // SAFETY: the kernel before let this one start when the assignment was there.
        let expert: i32 =
            unsafe { expert_of_block::<BM, NE>(expert_ids, num_tokens_post_padded, block, early) };
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(early) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, block * BM, pairs, early) };
            let place: [i32; 3] = [expert, column, block];
            let sum: Tile<f32, { [BN, BM] }> =
                plain_product::<A, BM, BN, 1, BN, BK, I>(w, x, place);
            let y: Tile<A, { [BN, BM] }> = convert_tile(sum);
            let y: Tile<A, { [BM, BN] }> = y.transpose();
            // SAFETY: `out` has a row for every position.
            let _written: Token = unsafe { store_rows::<A, BM, BN>(out, kept, column * BN, H, y) };
        }
    }

    /// Gate and up, each `[HB, BM]`, of rows of `x` anywhere; `place` is expert and column tile.
    pub unsafe fn gathered_pair<
        A: ElementType,
        const BM: i32,
        const HB: i32,
        const BK: i32,
        const K: i32,
    >(
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        x: *mut A,
        rows: Tile<i32, { [BM] }>,
        place: [i32; 2],
        after: Token,
    ) -> (Tile<f32, { [HB, BM] }>, Tile<f32, { [HB, BM] }>) {
        let weights: Partition<A, { [1, 1, HB, BK] }> = w.partition(const_shape![1, 1, HB, BK]);
        let mut xp: PointerTile<*mut A, { [BM, BK] }> = row_pointers::<A, BM, BK>(x, rows, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let mut gate: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        let mut up: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        for k in 0i32..ceil_div(K, BK) {
            let wg: Tile<A, { [1, 1, HB, BK] }> = weights.load([place[0], 0i32, place[1], k]);
            let wg: Tile<A, { [HB, BK] }> = wg.reshape(const_shape![HB, BK]);
            let wu: Tile<A, { [1, 1, HB, BK] }> = weights.load([place[0], 1i32, place[1], k]);
            let wu: Tile<A, { [HB, BK] }> = wu.reshape(const_shape![HB, BK]);
            // SAFETY: the rows exist and have K columns.
            let xk: Tile<A, { [BM, BK] }> = unsafe { load_rows::<A, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<A, { [BK, BM] }> = xk.transpose();
            gate = mmaf(wg, xk, gate);
            up = mmaf(wu, xk, up);
            xp = xp.offset_tile(step);
        }
        (gate, up)
    }

    /// One product, `[BN, BM]`, of rows of `x` anywhere; see [`gathered_pair`].
    pub unsafe fn gathered_one<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const K: i32,
    >(
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        x: *mut A,
        rows: Tile<i32, { [BM] }>,
        place: [i32; 2],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<A, { [1, 1, BN, BK] }> = w.partition(const_shape![1, 1, BN, BK]);
        let mut xp: PointerTile<*mut A, { [BM, BK] }> = row_pointers::<A, BM, BK>(x, rows, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        for k in 0i32..ceil_div(K, BK) {
            let wk: Tile<A, { [1, 1, BN, BK] }> = weights.load([place[0], 0i32, place[1], k]);
            let wk: Tile<A, { [BN, BK] }> = wk.reshape(const_shape![BN, BK]);
            // SAFETY: the rows exist and have K columns.
            let xk: Tile<A, { [BM, BK] }> = unsafe { load_rows::<A, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<A, { [BK, BM] }> = xk.transpose();
            sum = mmaf(wk, xk, sum);
            xp = xp.offset_tile(step);
        }
        sum
    }
}
