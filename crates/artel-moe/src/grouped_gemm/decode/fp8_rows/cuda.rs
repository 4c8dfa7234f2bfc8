//! The first product of the aligned form where activated rows share one scale each.
//!
//! The largest number of a row is known when all column tiles of its block are there. So the last block
//! of threads that ends one of them makes the codes of these rows: a launch in between would keep the
//! second product from starting while the first one ends.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Rows with one scale each and weights with scales that cover all columns.
#[cutile::module]
pub mod fp8_rows {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::fp8_aligned::cuda::fp8_aligned::*;
    use crate::grouped_gemm::decode::gating::cuda::decode_gating::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use crate::grouped_gemm::decode::sum::cuda::decode_sum::*;
    use cutile::core::*;

    /// First product of a block and its activation, `rows` `[positions, I]`, then `codes` of the same
    /// places with `scales` `[positions]` from `least` to `most`. Every block has a counter, which is 0
    /// before and after the launch. Codes are made of `R` rows at once; `W` columns hold a row.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn aligned_first_to_rows<
        const BM: i32,
        const HB: i32,
        const BK: i32,
        const I: i32,
        const K: i32,
        const SR: i32,
        const SC: i32,
        const NE: i32,
        const TOP_K: i32,
        const R: i32,
        const W: i32,
        const KIND: i32,
        const PA: i32,
        const PB: i32,
        const BIAS: i32,
        const PDL: i32,
    >(
        out: *mut f8e4m3fn,
        out_scales: *mut f32,
        rows_out: *mut f32,
        counters: *mut i32,
        x: *mut f8e4m3fn,
        x_scales: *mut f32,
        w: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
        sorted_token_ids: *mut i32,
        expert_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        pairs: i32,
        x_stride: i32,
        least: f32,
        most: f32,
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
            let h: Tile<f32, { [BM, HB] }> = h.transpose();
            // SAFETY: `rows_out` has a row for every position.
            let written: Token =
                unsafe { store_rows::<f32, BM, HB>(rows_out, kept, column * HB, I, h) };
            // SAFETY: every block has a counter, codes and scales; its tiles come here once each.
            unsafe {
                let known: *mut i32 = sorted_token_ids;
                let range: [f32; 2] = [least, most];
                finish_block::<BM, R, W, I>(
                    out, out_scales, rows_out, counters, known, block, range, written,
                )
            };
        }
    }

    /// Makes the codes of a block of `BM` rows when `written` was the last of its tiles. `known` is as
    /// for `count_arrival`, `BM` numbers.
    pub unsafe fn finish_block<const BM: i32, const R: i32, const W: i32, const I: i32>(
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        rows: *mut f32,
        counters: *mut i32,
        known: *mut i32,
        block: i32,
        range: [f32; 2],
        written: Token,
    ) {
        let arrivals: [i32; 2] = [block, get_num_tile_blocks().0];
        // SAFETY: the caller vouches for the counter and the numbers.
        let (is_last, seen): (bool, Token) =
            unsafe { count_arrival(counters, arrivals, known, BM, written) };
        if is_last {
            for part in 0i32..BM / R {
                let first: i32 = block * BM + part * R;
                // SAFETY: all tiles of the block are written.
                unsafe {
                    quantize_positions::<R, W, I>(
                        codes, scales, rows, first, range[0], range[1], seen,
                    )
                };
            }
        }
    }

    /// Codes and scales of `R` positions from `first` on.
    pub unsafe fn quantize_positions<const R: i32, const W: i32, const I: i32>(
        codes: *mut f8e4m3fn,
        scales: *mut f32,
        rows: *mut f32,
        first: i32,
        least: f32,
        most: f32,
        after: Token,
    ) {
        let row: Tile<i32, { [R] }> = count_from::<R>(first);
        let all: Tile<bool, { [R] }> = constant(true, const_shape![R]);
        let column: Tile<i32, { [W] }> = iota(const_shape![W]);
        let mask: Tile<bool, { [R, W] }> = block_mask(all, below(column, I));
        let offsets: Tile<i64, { [R, W] }> = block_offsets(row, I, column);
        // SAFETY: the caller vouches for the rows.
        let values: Tile<f32, { [R, W] }> = unsafe { gather_block(rows, offsets, mask, after) };
        let nothing: Tile<f32, { [R, W] }> = constant(0.0f32, const_shape![R, W]);
        let values: Tile<f32, { [R, W] }> = select(mask, values, nothing);
        let scale: Tile<f32, { [R] }> = row_scales::<R, W>(values, least, most);
        let code: Tile<f8e4m3fn, { [R, W] }> = to_e4m3::<R, W>(values, scale);
        // SAFETY: the caller vouches for as many codes and scales.
        unsafe { scatter_block(codes, offsets, mask, code, after) };
        // SAFETY: as above.
        unsafe { scatter(scales, row, all, scale, after) };
    }
}
