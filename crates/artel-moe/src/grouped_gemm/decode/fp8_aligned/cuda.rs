//! Products of the aligned form on FP8 weights.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// FP8 rows with a scale per 128 columns and FP8 weights with a scale per block, or rows with one scale
/// each and weights with scales that cover all columns.
#[cutile::module]
pub mod fp8_aligned {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::fp8_direct::cuda::fp8_direct::*;
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use cutile::core::*;

    /// First product of a block and `silu(gate) * up`: `out` `[positions, I]`. With `QUANTIZE` in FP8
    /// with `out_scales` `[I / HB, positions]`, for `HB = 128`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_first<
        O: ElementType,
        const BM: i32,
        const HB: i32,
        const BK: i32,
        const I: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
        const NE: i32,
        const TOP_K: i32,
        const QUANTIZE: i32,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut O,
        out_scales: *mut f32,
        x: *mut f8e4m3fn,
        x_scales: *mut f32,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pairs: i32,
        x_stride: i32,
        out_stride: i32,
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
            let place: [i32; 3] = [expert, column, x_stride];
            // SAFETY: expert, columns and scales are inside the weights.
            let (gate, up): (Tile<f32, { [HB, BM] }>, Tile<f32, { [HB, BM] }>) = unsafe {
                gathered_pair::<BM, HB, BK, I, K, SR, SC>(
                    w, x, x_scales, w_scales, rows, place, ready,
                )
            };
            let at: [i32; 3] = [expert, column, I];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_halves::<KIND, PA, PB, BIAS, HB, BM>(gate, up, biases, at, ready) };
            let mut scales: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
            if QUANTIZE == 1i32 {
                scales = column_scales::<HB, BM>(h, 0.0000043596542f32);
                let at: Tile<i32, { [BM] }> = kept + splat::<BM>(column * out_stride);
                let live: Tile<bool, { [BM] }> = ge_tile(kept, splat::<BM>(0i32));
                // SAFETY: every position has a scale for every `HB` columns.
                unsafe { scatter(out_scales, at, live, scales, ready) };
            }
            let h: Tile<O, { [HB, BM] }> = scaled_columns::<O, HB, BM>(h, scales);
            let h: Tile<O, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has a row for every position.
            let _written: Token = unsafe { store_rows::<O, BM, HB>(out, kept, column * HB, I, h) };
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
        const SR: i32,
        const SC: i32,
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
        x_stride: i32,
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
            let place: [i32; 3] = [expert, column, x_stride];
            // SAFETY: expert, columns and scales are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                gathered_one::<BM, BN, BK, N, K, SR, SC>(
                    w, x, x_scales, w_scales, rows, place, ready,
                )
            };
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
        const SR: i32,
        const SC: i32,
        const NE: i32,
        const PDL: i32,
    >(
        out: *mut A,
        x: &Tensor<f8e4m3fn, { [-1, -1] }>,
        x_scales: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
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
        // SAFETY: as above.
        unsafe { x_scales.set_token(ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, block * BM, pairs, early) };
            // SAFETY: the expert exists and the column tile begins inside its weights.
            let y: Tile<A, { [BM, BN] }> = unsafe {
                let place: [i32; 3] = [expert, column, block];
                down_tile::<A, BM, BN, BK, H, I, SR, SC>(w, x, x_scales, w_scales, place, early)
            };
            // SAFETY: `out` has a row for every position.
            let _written: Token = unsafe { store_rows::<A, BM, BN>(out, kept, column * BN, H, y) };
        }
    }

    /// Gate and up, each `[HB, BM]`, of rows of `x` anywhere. Both have `N` weight rows; `place` is
    /// expert, column tile and the stride of the scales of `x`. Scales of all `K` come last.
    pub unsafe fn gathered_pair<
        const BM: i32,
        const HB: i32,
        const BK: i32,
        const N: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
    >(
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        x: *mut f8e4m3fn,
        x_scales: *mut f32,
        w_scales: *mut f32,
        rows: Tile<i32, { [BM] }>,
        place: [i32; 3],
        after: Token,
    ) -> (Tile<f32, { [HB, BM] }>, Tile<f32, { [HB, BM] }>) {
        let weights: Partition<f8e4m3fn, { [1, 1, HB, BK] }> =
            w.partition(const_shape![1, 1, HB, BK]);
        let mut xp: PointerTile<*mut f8e4m3fn, { [BM, BK] }> =
            row_pointers::<f8e4m3fn, BM, BK>(x, rows, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let feature: i32 = place[1] * HB;
        let all: i32 = 2i32 * N;
        let scale_row: i32 = place[0] * ceil_div(all, SR);
        let gate_at: i32 = (scale_row + feature / SR) * ceil_div(K, SC);
        let up_at: i32 = (scale_row + (N + feature) / SR) * ceil_div(K, SC);
        let mut gate: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        let mut up: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        let from: [i32; 3] = [place[0], all, feature];
        // SAFETY: expert and rows have scales.
        let (sx_last, sg_last, su_last): (
            Tile<f32, { [BM] }>,
            Tile<f32, { [HB] }>,
            Tile<f32, { [HB] }>,
        ) = unsafe { last_of_pair::<BM, HB, N, K, SR, SC>(x_scales, w_scales, rows, from, after) };
        for k in 0i32..ceil_div(K, BK) {
            let wg: Tile<f8e4m3fn, { [1, 1, HB, BK] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let wu: Tile<f8e4m3fn, { [1, 1, HB, BK] }> =
                weights.load([place[0], 1i32, place[1], k]);
            // SAFETY: the rows exist and have K columns.
            let xk: Tile<f8e4m3fn, { [BM, BK] }> =
                unsafe { load_rows::<f8e4m3fn, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<f8e4m3fn, { [BK, BM] }> = xk.transpose();
            let wg: Tile<f32, { [HB, BM] }> = product_of_step::<BM, HB, BK>(wg, xk);
            let wu: Tile<f32, { [HB, BM] }> = product_of_step::<BM, HB, BK>(wu, xk);
            if SC >= K {
                gate = gate + wg;
                up = up + wu;
            } else {
                let at: Tile<i32, { [BM] }> = rows + splat::<BM>(k * BK / 128i32 * place[2]);
                // SAFETY: every row has a scale for every 128 columns.
                let sx: Tile<f32, { [BM] }> = unsafe { gather_all(x_scales, at, after) };
                let at: i32 = k * BK / SC;
                // SAFETY: no two numbers of a part's tile have different scales.
                let sg: f32 = unsafe { load_f32(w_scales, gate_at + at, after) };
                // SAFETY: as above.
                let su: f32 = unsafe { load_f32(w_scales, up_at + at, after) };
                gate = scaled_step::<BM, HB>(wg, sx, sg, gate);
                up = scaled_step::<BM, HB>(wu, sx, su, up);
            }
            xp = xp.offset_tile(step);
        }
        if SC >= K {
            gate = scaled_rows_and_columns::<HB, BM>(gate, sg_last, sx_last);
            up = scaled_rows_and_columns::<HB, BM>(up, su_last, sx_last);
        }
        (gate, up)
    }

    /// Scales of rows, gates and ups that come last. `from` is expert, its features and the first gate of the tile.
    pub unsafe fn last_of_pair<
        const BM: i32,
        const HB: i32,
        const N: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
    >(
        x_scales: *mut f32,
        w_scales: *mut f32,
        rows: Tile<i32, { [BM] }>,
        from: [i32; 3],
        after: Token,
    ) -> (Tile<f32, { [BM] }>, Tile<f32, { [HB] }>, Tile<f32, { [HB] }>) {
        // SAFETY: the caller vouches for the rows.
        let sx: Tile<f32, { [BM] }> = unsafe { last_of_rows::<BM, K, SC>(x_scales, rows, after) };
        // SAFETY: the caller vouches for the expert.
        let sg: Tile<f32, { [HB] }> =
            unsafe { last_of_features::<HB, K, SR, SC>(w_scales, from, after) };
        let of_up: [i32; 3] = [from[0], from[1], from[2] + N];
        // SAFETY: as above.
        let su: Tile<f32, { [HB] }> =
            unsafe { last_of_features::<HB, K, SR, SC>(w_scales, of_up, after) };
        (sx, sg, su)
    }

    /// Scales of rows that come last, where those of weights cover all `K`; ones elsewhere. They are asked for
    /// before the products.
    pub unsafe fn last_of_rows<const BM: i32, const K: i32, const SC: i32>(
        x_scales: *mut f32,
        rows: Tile<i32, { [BM] }>,
        after: Token,
    ) -> Tile<f32, { [BM] }> {
        let mut scales: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        if SC >= K {
            // SAFETY: the caller vouches for the rows.
            scales = unsafe { gather_all(x_scales, rows, after) };
        }
        scales
    }

    /// The same of features: `from` is expert, its features and the first one of the tile. They come from memory, as
    /// the weights do.
    pub unsafe fn last_of_features<const HB: i32, const K: i32, const SR: i32, const SC: i32>(
        w_scales: *mut f32,
        from: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [HB] }> {
        let mut scales: Tile<f32, { [HB] }> = constant(1.0f32, const_shape![HB]);
        if SC >= K {
            let features: Tile<i32, { [HB] }> = count_from::<HB>(from[2]);
            // SAFETY: the caller vouches for the expert.
            scales =
                unsafe { feature_scales::<HB, SR>(w_scales, from[0], from[1], features, after) };
        }
        scales
    }

    /// `wk . xk`.
    pub fn product_of_step<const BM: i32, const HB: i32, const BK: i32>(
        wk: Tile<f8e4m3fn, { [1, 1, HB, BK] }>,
        xk: Tile<f8e4m3fn, { [BK, BM] }>,
    ) -> Tile<f32, { [HB, BM] }> {
        let wk: Tile<f8e4m3fn, { [HB, BK] }> = wk.reshape(const_shape![HB, BK]);
        let zero: Tile<f32, { [HB, BM] }> = constant(0.0f32, const_shape![HB, BM]);
        // SAFETY: every step begins with a fresh accumulator and is added in float32.
        let product: Tile<f32, { [HB, BM] }> =
            unsafe { mmaf_with_fast_acc(wk, xk, zero, fast_acc::Enabled) };
        product
    }

    /// `sum + product * sx * sw`.
    pub fn scaled_step<const BM: i32, const HB: i32>(
        product: Tile<f32, { [HB, BM] }>,
        sx: Tile<f32, { [BM] }>,
        sw: f32,
        sum: Tile<f32, { [HB, BM] }>,
    ) -> Tile<f32, { [HB, BM] }> {
        let sw: Tile<f32, { [BM] }> = broadcast_scalar(sw, const_shape![BM]);
        let scales: Tile<f32, { [HB, BM] }> = under_each_other::<HB, BM>(sx * sw);
        fma(product, scales, sum, rounding::NearestEven, ftz::Disabled)
    }

    /// One product, `[BN, BM]`, of rows of `x` anywhere; see [`gathered_pair`].
    pub unsafe fn gathered_one<
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const N: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
    >(
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        x: *mut f8e4m3fn,
        x_scales: *mut f32,
        w_scales: *mut f32,
        rows: Tile<i32, { [BM] }>,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<f8e4m3fn, { [1, 1, BN, BK] }> =
            w.partition(const_shape![1, 1, BN, BK]);
        let mut xp: PointerTile<*mut f8e4m3fn, { [BM, BK] }> =
            row_pointers::<f8e4m3fn, BM, BK>(x, rows, K);
        let step: Tile<i32, { [BM, BK] }> = broadcast_scalar(BK, const_shape![BM, BK]);
        let scale_row: i32 = place[0] * ceil_div(N, SR) + place[1] * BN / SR;
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        // SAFETY: expert and rows have scales.
        let sx_last: Tile<f32, { [BM] }> =
            unsafe { last_of_rows::<BM, K, SC>(x_scales, rows, after) };
        let at: [i32; 3] = [place[0], N, place[1] * BN];
        // SAFETY: as above.
        let sw_last: Tile<f32, { [BN] }> =
            unsafe { last_of_features::<BN, K, SR, SC>(w_scales, at, after) };
        for k in 0i32..ceil_div(K, BK) {
            let wk: Tile<f8e4m3fn, { [1, 1, BN, BK] }> =
                weights.load([place[0], 0i32, place[1], k]);
            // SAFETY: the rows exist and have K columns.
            let xk: Tile<f8e4m3fn, { [BM, BK] }> =
                unsafe { load_rows::<f8e4m3fn, BM, BK, K>(xp, k * BK, after) };
            let xk: Tile<f8e4m3fn, { [BK, BM] }> = xk.transpose();
            let product: Tile<f32, { [BN, BM] }> = product_of_step::<BM, BN, BK>(wk, xk);
            if SC >= K {
                sum = sum + product;
            } else {
                let at: Tile<i32, { [BM] }> = rows + splat::<BM>(k * BK / 128i32 * place[2]);
                // SAFETY: every row has a scale for every 128 columns.
                let sx: Tile<f32, { [BM] }> = unsafe { gather_all(x_scales, at, after) };
                let at: i32 = scale_row * ceil_div(K, SC) + k * BK / SC;
                // SAFETY: no two numbers of a tile have different scales.
                let sw: f32 = unsafe { load_f32(w_scales, at, after) };
                sum = scaled_step::<BM, BN>(product, sx, sw, sum);
            }
            xp = xp.offset_tile(step);
        }
        if SC >= K {
            sum = scaled_rows_and_columns::<BN, BM>(sum, sw_last, sx_last);
        }
        sum
    }
}
