//! Products of the direct form on FP8 weights.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Both products of the direct form: FP8 rows with a scale per 128 columns and FP8 weights with a scale
/// per block, or rows with one scale each and weights with scales that cover all columns.
#[cutile::module]
pub mod fp8_direct {
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use crate::grouped_gemm::decode::sum::cuda::decode_sum::*;
    use cutile::core::*;

    /// `w[expert, .., columns] . x[rows of one block]`, scaled: `[BN, BM]`. A weight tile has `HB` rows
    /// of each of `PARTS` parts, which have `N` rows each; `SR` rows and `SC` columns share a scale. `place` is
    /// expert, column tile and row block. Scales of all `K` come last.
    pub unsafe fn scaled_product<
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
        const BK: i32,
        const N: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
    >(
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w_scales: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<f8e4m3fn, { [1, PARTS, HB, BK] }> =
            w.partition(const_shape![1, PARTS, HB, BK]);
        let rows: Partition<f8e4m3fn, { [BM, BK] }> = x.partition(const_shape![BM, BK]);
        let scales: Partition<f32, { [1, BM] }> = x_scales.partition(const_shape![1, BM]);
        let row: i32 = place[0] * ceil_div(PARTS * N, SR);
        let feature: i32 = place[1] * HB;
        let first_at: i32 = (row + feature / SR) * ceil_div(K, SC);
        let last_at: i32 = (row + ((PARTS - 1i32) * N + feature) / SR) * ceil_div(K, SC);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        let zero: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        // Scales that come last are asked for first: they come from memory, as the weights do.
        let mut sw_last: Tile<f32, { [BN] }> = constant(1.0f32, const_shape![BN]);
        if SC >= K {
            let features: Tile<i32, { [BN] }> = features_of_tile::<BN, HB>(place[1], N);
            // SAFETY: the expert has scales.
            sw_last =
                unsafe { feature_scales::<BN, SR>(w_scales, place[0], PARTS * N, features, after) };
        }
        for k in 0i32..ceil_div(K, BK) {
            let wk: Tile<f8e4m3fn, { [1, PARTS, HB, BK] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let wk: Tile<f8e4m3fn, { [BN, BK] }> = wk.reshape(const_shape![BN, BK]);
            let xk: Tile<f8e4m3fn, { [BM, BK] }> = rows.load([place[2], k]);
            let xk: Tile<f8e4m3fn, { [BK, BM] }> = xk.transpose();
            // SAFETY: every step begins with a fresh accumulator and is added in float32.
            let product: Tile<f32, { [BN, BM] }> =
                unsafe { mmaf_with_fast_acc(wk, xk, zero, fast_acc::Enabled) };
            if SC >= K {
                sum = sum + product;
            } else {
                let sx: Tile<f32, { [1, BM] }> = scales.load([k * BK / 128i32, place[2]]);
                let sx: Tile<f32, { [BN, BM] }> = sx.broadcast(const_shape![BN, BM]);
                let at: i32 = k * BK / SC;
                // SAFETY: no two numbers of a part's tile have different scales.
                let first: f32 = unsafe { load_f32(w_scales, first_at + at, after) };
                // SAFETY: as above.
                let last: f32 = unsafe { load_f32(w_scales, last_at + at, after) };
                let sw: Tile<f32, { [BN, BM] }> = weight_scales::<BN, BM, HB>(first, last);
                sum = fma(product, sw * sx, sum, rounding::NearestEven, ftz::Disabled);
            }
        }
        if SC >= K {
            let sx: Tile<f32, { [1, BM] }> = scales.load([0i32, place[2]]);
            let sx: Tile<f32, { [BM] }> = sx.reshape(const_shape![BM]);
            sum = scaled_rows_and_columns::<BN, BM>(sum, sw_last, sx);
        }
        sum
    }

    /// All tokens times the expert of one pair, then `silu(gate) * up` in float32. Row `t` of block `p`
    /// of `out` is token `t` with the expert of pair `p`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn direct_first<
        const BM: i32,
        const BN: i32,
        const HB: i32,
        const BK: i32,
        const I: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
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
        out: *mut f32,
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
        ids: *mut i32,
        tokens: i32,
        biases: *mut f32,
    ) {
        let (pair, column, _): (i32, i32, i32) = get_tile_block_id();
        let early: Token = new_token_unordered();
        // SAFETY: the kernel before let this one start when the ids were there; they hold all pairs.
        let expert: i32 = unsafe {
            leading_expert::<BM, KP, NE, TOP_K, SHARED, PACKED>(ids, pair, tokens, early)
        };
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(early) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_scales.set_token(ready) };
        if expert >= 0i32 {
            let place: [i32; 3] = [expert, column, 0i32];
            // SAFETY: expert, columns and scales are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                scaled_product::<BM, BN, 2, HB, BK, I, K, SR, SC>(
                    w, x, x_scales, w_scales, place, early,
                )
            };
            let at: [i32; 3] = [expert, column, I];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_product::<KIND, PA, PB, BIAS, BN, BM, HB>(sum, biases, at, early) };
            let h: Tile<f32, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has `BM` rows for every pair.
            unsafe { store_block::<f32, BM, HB>(out, [pair, column, tokens, I], h) };
        }
    }

    /// Rows of one block times some columns of the second weights; `place` is expert, column tile and
    /// row block.
    pub unsafe fn down_tile<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const H: i32,
        const I: i32,
        const SR: i32,
        const SC: i32,
    >(
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w_scales: *mut f32,
        place: [i32; 3],
        early: Token,
    ) -> Tile<A, { [BM, BN] }> {
        // SAFETY: the caller vouches for the place.
        let sum: Tile<f32, { [BN, BM] }> = unsafe {
            scaled_product::<BM, BN, 1, BN, BK, H, I, SR, SC>(
                w, x, x_scales, w_scales, place, early,
            )
        };
        let y: Tile<A, { [BN, BM] }> = convert_tile(sum);
        y.transpose()
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
        const SR: i32,
        const SC: i32,
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
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
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
        // SAFETY: as above.
        unsafe { x_scales.set_token(ready) };
        let mut written: Token = ready;
        if expert >= 0i32 {
            // SAFETY: the expert exists and the column tile begins inside its weights.
            let y: Tile<A, { [BM, BN] }> = unsafe {
                let place: [i32; 3] = [expert, column, pair];
                down_tile::<A, BM, BN, BK, H, I, SR, SC>(w, x, x_scales, w_scales, place, early)
            };
            // SAFETY: `rows_out` has a row for every pair.
            written = unsafe { store_rows::<A, BM, BN>(rows_out, pairs, column * BN, H, y) };
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
