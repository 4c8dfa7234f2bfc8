//! Products without sorting on e4m3 weights in words.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// A block multiplies the tokens of one pair's expert.
#[cutile::module]
pub mod float_direct {
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use crate::grouped_gemm::decode::sum::cuda::decode_sum::*;
    use crate::grouped_gemm::words::floats::product::cuda::float_words_product::*;
    use cutile::core::*;

    /// All tokens times the expert of one pair, then `silu(gate) * up`. Row `t` of block `p` of `out`
    /// is token `t` with the expert of pair `p`. With `IP` ids are packed with their weights.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn float_direct_first<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const HB: i32,
        const S: i32,
        const XP: i32,
        const XM: i32,
        const WK: i32,
        const WX: i32,
        const KX: i32,
        const NW: i32,
        const NB: i32,
        const GW: i32,
        const KW: i32,
        const N: i32,
        const NE: i32,
        const TOP_K: i32,
        const KP: i32,
        const SHARED: i32,
        const IP: i32,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut f32,
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        x_scales: *mut f32,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        ids: *mut i32,
        tokens: i32,
        biases: *mut f32,
    ) {
        let (pair, column, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_sums.set_token(ready) };
        // SAFETY: ids hold all pairs.
        let expert: i32 =
            unsafe { leading_expert::<BM, KP, NE, TOP_K, SHARED, IP>(ids, pair, tokens, ready) };
        if expert >= 0i32 {
            let place: [i32; 3] = [expert, column, 0i32];
            // SAFETY: expert and columns are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                float_words::<F, BM, BN, 2, HB, S, XP, XM, WK, WX, KX, NW, NB, GW, KW>(
                    x, x_scales, x_sums, w, w_scales, w_globals, place, ready,
                )
            };
            let at: [i32; 3] = [expert, column, N];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_product::<KIND, PA, PB, BIAS, BN, BM, HB>(sum, biases, at, ready) };
            let h: Tile<f32, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has `BM` rows for every pair.
            unsafe { store_block::<f32, BM, HB>(out, [pair, column, tokens, N], h) };
        }
    }

    /// The rows of one block times the second weights of its expert; every row goes to its pair, and
    /// the pairs of each token are summed.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn float_direct_second<
        A: ElementType,
        const F: i32,
        const BM: i32,
        const BN: i32,
        const S: i32,
        const XP: i32,
        const XM: i32,
        const WK: i32,
        const WX: i32,
        const KX: i32,
        const NW: i32,
        const NB: i32,
        const GW: i32,
        const KW: i32,
        const N: i32,
        const NE: i32,
        const TOP_K: i32,
        const KP: i32,
        const SHARED: i32,
        const IP: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut A,
        rows_out: *mut A,
        counters: *mut i32,
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        x_scales: *mut f32,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        ids: *mut i32,
        weights: *mut f32,
        tokens: i32,
        biases: *mut f32,
    ) {
        let (pair, column, _): (i32, i32, i32) = get_tile_block_id();
        let now: Token = new_token_unordered();
        // SAFETY: the kernel before let this one start when the ids were there; they hold all pairs.
        let (expert, pairs): (i32, Tile<i32, { [BM] }>) =
            unsafe { leading_pairs::<BM, KP, NE, TOP_K, SHARED, IP>(ids, pair, tokens, now) };
        // SAFETY: nothing is written before the wait.
        let mut ready: Token = unsafe { wait_then_release::<PDL>(now) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_sums.set_token(ready) };
        if expert >= 0i32 {
            let place: [i32; 3] = [expert, column, pair];
            // SAFETY: expert and columns are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                float_words::<F, BM, BN, 1, BN, S, XP, XM, WK, WX, KX, NW, NB, GW, KW>(
                    x, x_scales, x_sums, w, w_scales, w_globals, place, ready,
                )
            };
            // SAFETY: `rows_out` has a row for every pair.
            ready = unsafe { store_columns::<A, BM, BN>(rows_out, pairs, column * BN, N, sum) };
        }
        // SAFETY: every block of the column comes here once.
        unsafe {
            sum_pairs::<A, BN, N, NE, TOP_K, IP, BIAS>(
                out, rows_out, counters, ids, weights, biases, tokens, column, ready,
            )
        };
    }
}
