//! Products of the direct form on float16 and bfloat16 weights.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Both products of the direct form: rows and weights of the same plain numbers.
#[cutile::module]
pub mod plain_direct {
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use crate::grouped_gemm::decode::sum::cuda::decode_sum::*;
    use cutile::core::*;

    /// `w[expert, .., columns] . x[rows of one block]`: `[BN, BM]`. A weight tile has `HB` rows of each
    /// of `PARTS` parts; `place` is expert, column tile and row block.
    pub fn plain_product<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
        const BK: i32,
        const K: i32,
    >(
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        x: &Tensor<A, { [-1, -1] }>,
        place: [i32; 3],
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<A, { [1, PARTS, HB, BK] }> =
            w.partition(const_shape![1, PARTS, HB, BK]);
        let rows: Partition<A, { [BM, BK] }> = x.partition(const_shape![BM, BK]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        for k in 0i32..ceil_div(K, BK) {
            let wk: Tile<A, { [1, PARTS, HB, BK] }> = weights.load([place[0], 0i32, place[1], k]);
            let wk: Tile<A, { [BN, BK] }> = wk.reshape(const_shape![BN, BK]);
            let xk: Tile<A, { [BM, BK] }> = rows.load([place[2], k]);
            let xk: Tile<A, { [BK, BM] }> = xk.transpose();
            sum = mmaf(wk, xk, sum);
        }
        sum
    }

    /// All tokens times the expert of one pair, then `silu(gate) * up`. Row `t` of block `p` of `out`
    /// is token `t` with the expert of pair `p`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn direct_first<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const HB: i32,
        const BK: i32,
        const I: i32,
        const K: i32,
        const NE: i32,
        const TOP_K: i32,
        const KP: i32,
        const SHARED: i32,
        const PACKED: i32,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: &Tensor<A, { [-1, -1] }>,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        ids: *mut i32,
        tokens: i32,
        biases: *mut f32,
    ) {
        let (pair, column, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: ids hold all pairs.
        let expert: i32 = unsafe {
            leading_expert::<BM, KP, NE, TOP_K, SHARED, PACKED>(ids, pair, tokens, ready)
        };
        if expert >= 0i32 {
            let place: [i32; 3] = [expert, column, 0i32];
            let sum: Tile<f32, { [BN, BM] }> =
                plain_product::<A, BM, BN, 2, HB, BK, K>(w, x, place);
            let at: [i32; 3] = [expert, column, I];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_product::<KIND, PA, PB, BIAS, BN, BM, HB>(sum, biases, at, ready) };
            let h: Tile<A, { [HB, BM] }> = convert_tile(h);
            let h: Tile<A, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has `BM` rows for every pair.
            unsafe { store_block::<A, BM, HB>(out, [pair, column, tokens, I], h) };
        }
    }

    /// The rows of one block times the second weights of its expert; every row goes to its pair. With
    /// `SUM` the pairs of each token are summed, too.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn direct_second<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const H: i32,
        const I: i32,
        const NE: i32,
        const TOP_K: i32,
        const KP: i32,
        const SHARED: i32,
        const PACKED: i32,
        const SUM: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut A,
        rows_out: *mut A,
        counters: *mut i32,
        x: &Tensor<A, { [-1, -1] }>,
        w: &Tensor<A, { [-1, -1, -1, -1] }>,
        ids: *mut i32,
        weights: *mut f32,
        tokens: i32,
        biases: *mut f32,
    ) {
        let (pair, column, _): (i32, i32, i32) = get_tile_block_id();
        let early: Token = new_token_unordered();
        // SAFETY: the kernel before let this one start when the ids were there; they hold all pairs.
        let expert: i32 = unsafe {
            leading_expert::<BM, KP, NE, TOP_K, SHARED, PACKED>(ids, pair, tokens, early)
        };
        // SAFETY: as above.
        let pairs: Tile<i32, { [BM] }> = unsafe {
            pairs_of_block::<BM, KP, TOP_K, SHARED, PACKED>(ids, pair, expert, tokens, early)
        };
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(early) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        let mut written: Token = ready;
        if expert >= 0i32 {
            let place: [i32; 3] = [expert, column, pair];
            let sum: Tile<f32, { [BN, BM] }> =
                plain_product::<A, BM, BN, 1, BN, BK, I>(w, x, place);
            // SAFETY: `rows_out` has a row for every pair.
            written = unsafe { store_columns::<A, BM, BN>(rows_out, pairs, column * BN, H, sum) };
        }
        if SUM == 1i32 {
            // SAFETY: every block of the column comes here once.
            unsafe {
                sum_pairs::<A, BN, H, NE, TOP_K, PACKED, BIAS>(
                    out, rows_out, counters, ids, weights, biases, tokens, column, written,
                )
            };
        }
    }
}
