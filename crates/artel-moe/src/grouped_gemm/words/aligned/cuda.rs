//! Products over sorted pairs on weights in words.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Rows of both products are positions.
#[cutile::module]
pub mod word_aligned {
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use crate::grouped_gemm::words::product::cuda::word_product::*;
    use cutile::core::*;

    /// First product of a block and `silu(gate) * up`, `out` `[positions, N]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_first<
        W: ElementType,
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
        w: &Tensor<W, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        sorted_token_ids: *mut i32,
        pairs: i32,
        biases: *mut f32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(new_token_unordered()) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_sums.set_token(ready) };
        // SAFETY: the assignment has an expert for every block in use.
        let expert: i32 =
            unsafe { expert_of_block::<BM, NE>(expert_ids, num_tokens_post_padded, block, ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, block * BM, pairs, ready) };
            let place: [i32; 3] = [expert, column, block];
            // SAFETY: expert and columns are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                word_product::<W, F, BM, BN, 2, HB, S, XP, XM, WK, WX, KX, NW, NB, GW, KW>(
                    x, x_scales, x_sums, w, w_scales, w_globals, place, ready,
                )
            };
            let at: [i32; 3] = [expert, column, N];
            // SAFETY: experts have biases where there are any.
            let h: Tile<f32, { [HB, BM] }> =
                unsafe { gated_product::<KIND, PA, PB, BIAS, BN, BM, HB>(sum, biases, at, ready) };
            let h: Tile<f32, { [BM, HB] }> = h.transpose();
            // SAFETY: `out` has a row for every position.
            let _written: Token =
                unsafe { store_rows::<f32, BM, HB>(out, kept, column * HB, N, h) };
        }
    }

    /// Second product of a block, `out` `[positions, N]`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_second<
        A: ElementType,
        W: ElementType,
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
        const PDL: i32,
    >(
        out: *mut A,
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        x_scales: *mut f32,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<W, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        sorted_token_ids: *mut i32,
        pairs: i32,
    ) {
        let (column, block, _): (i32, i32, i32) = get_tile_block_id();
        let early: Token = new_token_unordered();
        // SAFETY: the assignment ended before the kernel before this one began.
        let expert: i32 =
            unsafe { expert_of_block::<BM, NE>(expert_ids, num_tokens_post_padded, block, early) };
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { wait_then_release::<PDL>(early) };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        // SAFETY: as above.
        unsafe { x_sums.set_token(ready) };
        if expert >= 0i32 {
            // SAFETY: the block is in use.
            let kept: Tile<i32, { [BM] }> =
                unsafe { live_positions::<BM>(sorted_token_ids, block * BM, pairs, early) };
            let place: [i32; 3] = [expert, column, block];
            // SAFETY: expert and columns are inside the weights.
            let sum: Tile<f32, { [BN, BM] }> = unsafe {
                word_product::<W, F, BM, BN, 1, BN, S, XP, XM, WK, WX, KX, NW, NB, GW, KW>(
                    x, x_scales, x_sums, w, w_scales, w_globals, place, ready,
                )
            };
            let y: Tile<A, { [BN, BM] }> = convert_tile(sum);
            let y: Tile<A, { [BM, BN] }> = y.transpose();
            // SAFETY: `out` has a row for every position.
            let _written: Token = unsafe { store_rows::<A, BM, BN>(out, kept, column * BN, N, y) };
        }
    }
}
