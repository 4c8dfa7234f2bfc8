//! FP8 rows with a scale each times FP8 weights with a scale per output feature or for several.
//!
//! All products of a row and a feature share their scales, so the scales come last. The matrix
//! units add up one step in their own short accumulators, the sums of steps are float32: over
//! thousands of columns short ones lose 1 %.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod prefill_fp8_channel {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::prefill::parts::cuda::prefill_parts::*;
    use cutile::core::*;

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]` of each row's expert, times
    /// `row_scales` `[1, M]` and `weight_scales` `[E, SCALE_ROWS]`, one for `SR` of `N` features.
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
        const N: i32,
        const SR: i32,
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
        let rows_in: Partition<f8e4m3fn, { [BM, BK] }> = rows.partition(const_shape![BM, BK]);
        let row_scales_in: Partition<f32, { [1, BM] }> = row_scales.partition(const_shape![1, BM]);
        let weights_in: Partition<f8e4m3fn, { [1, BN, BK] }> =
            weights.partition(const_shape![1, BN, BK]);
        // SAFETY: no two blocks store the same tile.
        let mut rows_out: PartitionMut<A, { [BM, BN] }> =
            unsafe { out.partition_full_mut(const_shape![BM, BN]) };
        // SAFETY: it is one number.
        let tiles: i32 = unsafe { tiles_in_use::<BM, COLUMNS, PDL>(rows_padded) };
        let first: i32 = get_tile_block_id().0;
        let stride: i32 = get_num_tile_blocks().0;
        for turn in 0i32..turns(tiles, first, stride) {
            let tile: i32 = first + turn * stride;
            let row: i32 = tile / COLUMNS;
            let column: i32 = tile - row * COLUMNS;
            // SAFETY: the tile is in use.
            let expert: i32 = unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, tile) };
            let mut sum: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
            for outer in 0i32..(loops * exists(expert)) {
                for inner in 0i32..IN {
                    let step: i32 = outer * IN + inner;
                    let left: Tile<f8e4m3fn, { [BM, BK] }> =
                        rows_in.load_pipelined::<LATENCY>([row, step]);
                    let right: Tile<f8e4m3fn, { [1, BN, BK] }> =
                        weights_in.load_pipelined::<LATENCY>([max(expert, 0i32), column, step]);
                    sum = sum + product::<BM, BN, BK>(left, right);
                }
            }
            let of_rows: Tile<f32, { [1, BM] }> = row_scales_in.load([0i32, row]);
            let of_rows: Tile<f32, { [BM, 1] }> = of_rows.reshape(const_shape![BM, 1]);
            let of_rows: Tile<f32, { [BM, BN] }> = of_rows.broadcast(const_shape![BM, BN]);
            // SAFETY: the weights of every expert have scales.
            let of_columns: Tile<f32, { [BN] }> = unsafe {
                feature_scales::<BN, N, SR>(weight_scales, max(expert, 0i32) * SCALE_ROWS, column)
            };
            let of_columns: Tile<f32, { [1, BN] }> = of_columns.reshape(const_shape![1, BN]);
            let of_columns: Tile<f32, { [BM, BN] }> = of_columns.broadcast(const_shape![BM, BN]);
            let sum: Tile<f32, { [BM, BN] }> = kept::<BM, BN>(sum * of_columns * of_rows, expert);
            let rounded: Tile<A, { [BM, BN] }> = convert_tile(sum);
            rows_out.store(rounded, [row, column]);
        }
    }

    /// The scales of a tile's output features; those of an expert begin at `base`.
    unsafe fn feature_scales<const BN: i32, const N: i32, const SR: i32>(
        weight_scales: *mut f32,
        base: i32,
        column: i32,
    ) -> Tile<f32, { [BN] }> {
        let feature: Tile<i32, { [BN] }> = count_from::<BN>(column * BN);
        let end: Tile<i32, { [BN] }> = broadcast_scalar(N, const_shape![BN]);
        let mask: Tile<bool, { [BN] }> = lt_tile(feature, end);
        let shared: Tile<i32, { [BN] }> = broadcast_scalar(SR, const_shape![BN]);
        let base: Tile<i32, { [BN] }> = broadcast_scalar(base, const_shape![BN]);
        let offsets: Tile<i32, { [BN] }> = feature / shared + base;
        // SAFETY: the mask keeps inside the scales of the expert.
        unsafe { gather(weight_scales, offsets, mask, 0.0f32, new_token_unordered()) }
    }
}
