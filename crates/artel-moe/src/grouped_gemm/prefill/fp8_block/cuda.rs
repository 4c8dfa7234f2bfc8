//! FP8 rows with a scale per 128 columns times FP8 weights with a scale per block.
//!
//! The matrix units add up 128 columns at most in their own short accumulators; each such product
//! is then scaled and added in float32, while the products of other warps run. The scales of a step
//! are loaded one step ahead, over the end of a tile into the next.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod prefill_fp8_block {
    use crate::grouped_gemm::prefill::parts::cuda::prefill_parts::*;
    use cutile::core::*;

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]` of each row's expert, with
    /// `row_scales` `[ceil(K / 128), M]` and `weight_scales` `[E, SCALE_ROWS, ceil(K / SC)]`, one for
    /// `SR` output features and `SC` input features.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const IN: i32,
        const LATENCY: i32,
        const NE: i32,
        const SPLIT: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SR: i32,
        const SC: i32,
        const SCALE_ROWS: i32,
        const PDL: i32,
    >(
        out: &Tensor<A, { [-1, -1] }>,
        rows: &Tensor<f8e4m3fn, { [-1, -1] }>,
        row_scales: &Tensor<f32, { [-1, -1] }>,
        weights: &Tensor<f8e4m3fn, { [-1, -1, -1] }>,
        weight_scales: *mut f32,
        expert_ids: *mut i32,
        rows_padded: *mut i32,
        loops: i32,
    ) {
        // SAFETY: no two blocks store the same tile.
        let mut rows_out: PartitionMut<A, { [BM, BN] }> =
            unsafe { out.partition_full_mut(const_shape![BM, BN]) };
        // SAFETY: it is one number.
        let tiles: i32 = unsafe { tiles_in_use::<BM, COLUMNS, PDL>(rows_padded) };
        let block: i32 = get_tile_block_id().0;
        let stride: i32 = get_num_tile_blocks().0;
        let start: i32 = within(block, tiles);
        // SAFETY: the tile is in use, or there is none and this is the first of all.
        let mut expert: i32 = unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, start) };
        // SAFETY: as above.
        let mut next_expert: i32 =
            unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, within(block + stride, tiles)) };
        let mut at: i32 = scales_at::<BN, BK, COLUMNS, STEPS, SR, SC, SCALE_ROWS>(expert, start);
        // SAFETY: the weights of every expert have scales.
        let mut scale: Tile<f32, { [BM, 1] }> =
            unsafe { first::<BM>(row_scales, start / COLUMNS, weight_scales, at) };
        for turn in 0i32..turns(tiles, block, stride) {
            let tile: i32 = block + turn * stride;
            let next: i32 = within(tile + stride, tiles);
            let later: i32 = within(tile + stride + stride, tiles);
            // SAFETY: as above.
            let later_expert: i32 = unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, later) };
            let next_at: i32 =
                scales_at::<BN, BK, COLUMNS, STEPS, SR, SC, SCALE_ROWS>(next_expert, next);
            let work: [i32; 6] = [tile, next, expert, at, next_at, loops];
            // SAFETY: the row tiles are in use, expert and column are those of weights.
            let (sum, next_scale): (Tile<f32, { [BM, BN] }>, Tile<f32, { [BM, 1] }>) = unsafe {
                scaled_product::<BM, BN, BK, IN, LATENCY, COLUMNS, STEPS, SC>(
                    rows,
                    row_scales,
                    weights,
                    weight_scales,
                    work,
                    scale,
                )
            };
            let rounded: Tile<A, { [BM, BN] }> = convert_tile(kept::<BM, BN>(sum, expert));
            rows_out.store(rounded, [tile / COLUMNS, tile % COLUMNS]);
            scale = next_scale;
            at = next_at;
            expert = next_expert;
            next_expert = later_expert;
        }
    }

    /// The sum of one tile over all steps, and the scales of the next tile's first step.
    /// `work`: the tile and the next, its expert, where the weight scales of both begin, and turns of
    /// `IN` steps.
    unsafe fn scaled_product<
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const IN: i32,
        const LATENCY: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SC: i32,
    >(
        rows: &Tensor<f8e4m3fn, { [-1, -1] }>,
        row_scales: &Tensor<f32, { [-1, -1] }>,
        weights: &Tensor<f8e4m3fn, { [-1, -1, -1] }>,
        weight_scales: *mut f32,
        work: [i32; 6],
        scale: Tile<f32, { [BM, 1] }>,
    ) -> (Tile<f32, { [BM, BN] }>, Tile<f32, { [BM, 1] }>) {
        let rows_in: Partition<f8e4m3fn, { [BM, BK] }> = rows.partition(const_shape![BM, BK]);
        let scales_in: Partition<f32, { [1, BM] }> = row_scales.partition(const_shape![1, BM]);
        let weights_in: Partition<f8e4m3fn, { [1, BN, BK] }> =
            weights.partition(const_shape![1, BN, BK]);
        let row: i32 = work[0] / COLUMNS;
        let column: i32 = work[0] % COLUMNS;
        let next_row: i32 = work[1] / COLUMNS;
        let expert: i32 = max(work[2], 0i32);
        let at: i32 = work[3];
        let next_at: i32 = work[4];
        // A tile of no expert takes one turn, for the scales of the next.
        let loops: i32 = max(work[5] * exists(work[2]), 1i32);
        let mut scale: Tile<f32, { [BM, 1] }> = scale;
        let mut sum: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        for outer in 0i32..loops {
            for inner in 0i32..IN {
                let step: i32 = outer * IN + inner;
                let wrap: i32 = max(step + 2i32 - loops * IN, 0i32);
                let next: i32 = min(step + 1i32, STEPS - 1i32) * (1i32 - wrap) * BK;
                let next_scale: Tile<f32, { [1, BM] }> =
                    scales_in.load([next / 128i32, row + (next_row - row) * wrap]);
                // SAFETY: as above.
                let next_scale: Tile<f32, { [BM, 1] }> = unsafe {
                    joint::<BM>(next_scale, weight_scales, at + (next_at - at) * wrap + next / SC)
                };
                let left: Tile<f8e4m3fn, { [BM, BK] }> =
                    rows_in.load_pipelined::<LATENCY>([row, step]);
                let right: Tile<f8e4m3fn, { [1, BN, BK] }> =
                    weights_in.load_pipelined::<LATENCY>([expert, column, step]);
                sum = promoted::<BM, BN>(sum, product::<BM, BN, BK>(left, right), scale);
                scale = next_scale;
            }
        }
        (sum, scale)
    }

    /// Where the scales of a tile's output features begin.
    fn scales_at<
        const BN: i32,
        const BK: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SR: i32,
        const SC: i32,
        const SCALE_ROWS: i32,
    >(
        expert: i32,
        tile: i32,
    ) -> i32 {
        let row: i32 = max(expert, 0i32) * SCALE_ROWS + tile % COLUMNS * BN / SR;
        row * ceil_div(STEPS * BK, SC)
    }

    /// The scales of the first step of the first tile.
    unsafe fn first<const BM: i32>(
        row_scales: &Tensor<f32, { [-1, -1] }>,
        row: i32,
        weight_scales: *mut f32,
        at: i32,
    ) -> Tile<f32, { [BM, 1] }> {
        let scales_in: Partition<f32, { [1, BM] }> = row_scales.partition(const_shape![1, BM]);
        let rows: Tile<f32, { [1, BM] }> = scales_in.load([0i32, row]);
        // SAFETY: the caller vouches for the offset.
        unsafe { joint::<BM>(rows, weight_scales, at) }
    }

    /// What the products of a step are multiplied by.
    unsafe fn joint<const BM: i32>(
        rows: Tile<f32, { [1, BM] }>,
        weight_scales: *mut f32,
        at: i32,
    ) -> Tile<f32, { [BM, 1] }> {
        let rows: Tile<f32, { [BM, 1] }> = rows.reshape(const_shape![BM, 1]);
        // SAFETY: the caller vouches for the offset.
        let weight: f32 = unsafe { read_f32(weight_scales, at) };
        let weight: Tile<f32, { [BM, 1] }> = broadcast_scalar(weight, const_shape![BM, 1]);
        rows * weight
    }

    /// `sum + product * scale`, one scale a row.
    fn promoted<const BM: i32, const BN: i32>(
        sum: Tile<f32, { [BM, BN] }>,
        product: Tile<f32, { [BM, BN] }>,
        scale: Tile<f32, { [BM, 1] }>,
    ) -> Tile<f32, { [BM, BN] }> {
        let scale: Tile<f32, { [BM, BN] }> = scale.broadcast(const_shape![BM, BN]);
        fma(product, scale, sum, rounding::NearestEven, ftz::Disabled)
    }
}
