//! Products of the aligned form on FP8 with a scale per row and per output feature.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// FP8 rows with one scale each, FP8 weights with a scale per output feature or more of them.
#[cutile::module]
pub mod fp8_channel {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use cutile::core::*;

    /// One product of a block, `out` `[positions, N]`; with `TOP_K` the rows of `x` are tokens, with 0
    /// they are positions. `SR` features share a scale.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_product<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const N: i32,
        const K: i32,
        const SR: i32,
        const NE: i32,
        const TOP_K: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: *mut f8e4m3fn,
        x_scales: *mut f32,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
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
                unsafe { unscaled_product::<BM, BN, BK, K>(w, x, rows, [expert, column], ready) };
            // SAFETY: every row has a scale.
            let sx: Tile<f32, { [BM] }> = unsafe { gather_all(x_scales, rows, ready) };
            let feature: Tile<i32, { [BN] }> = count_from::<BN>(column * BN);
            let inside: Tile<bool, { [BN] }> = lt_tile(feature, splat::<BN>(N));
            let at: Tile<i32, { [BN] }> =
                feature / splat::<BN>(SR) + splat::<BN>(expert * ceil_div(N, SR));
            // SAFETY: features below N have a scale.
            let sw: Tile<f32, { [BN] }> = unsafe { gather(w_scales, at, inside, 0.0f32, ready) };
            let scales: Tile<f32, { [BN, BM] }> =
                beside_each_other::<BN, BM>(sw) * under_each_other::<BN, BM>(sx);
            let y: Tile<A, { [BN, BM] }> = convert_tile(sum * scales);
            let y: Tile<A, { [BM, BN] }> = y.transpose();
            // SAFETY: `out` has a row for every position.
            unsafe { store_block::<A, BM, BN>(out, [block, column, BM, N], y) };
        }
    }

    /// The product of the codes alone, `[BN, BM]`; `place` is expert and column tile.
    pub unsafe fn unscaled_product<const BM: i32, const BN: i32, const BK: i32, const K: i32>(
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        x: *mut f8e4m3fn,
        rows: Tile<i32, { [BM] }>,
        place: [i32; 2],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<f8e4m3fn, { [1, 1, BN, BK] }> =
            w.partition(const_shape![1, 1, BN, BK]);
        let mut xp: PointerTile<*mut f8e4m3fn, { [BM, BK] }> =
            row_pointers::<f8e4m3fn, BM, BK>(x, rows, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        let zero: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        for k in 0i32..ceil_div(K, BK) {
            let wk: Tile<f8e4m3fn, { [1, 1, BN, BK] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let wk: Tile<f8e4m3fn, { [BN, BK] }> = wk.reshape(const_shape![BN, BK]);
            // SAFETY: the rows exist and have K columns.
            let xk: Tile<f8e4m3fn, { [BM, BK] }> =
                unsafe { load_rows::<f8e4m3fn, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<f8e4m3fn, { [BK, BM] }> = xk.transpose();
            // SAFETY: every step begins with a fresh accumulator and is added in float32.
            let product: Tile<f32, { [BN, BM] }> =
                unsafe { mmaf_with_fast_acc(wk, xk, zero, fast_acc::Enabled) };
            sum = sum + product;
            xp = xp.offset_tile(step);
        }
        sum
    }
}
