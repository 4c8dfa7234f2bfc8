//! Rows and weights in the same 16 bits.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod prefill_plain {
    use crate::grouped_gemm::prefill::parts::cuda::prefill_parts::*;
    use cutile::core::*;

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]` of each row's expert.
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
        const PDL: i32,
    >(
        out: &Tensor<A, { [-1, -1] }>,
        rows: &Tensor<A, { [-1, -1] }>,
        weights: &Tensor<A, { [-1, -1, -1] }>,
        expert_ids: *mut i32,
        rows_padded: *mut i32,
        loops: i32,
    ) {
        let rows_in: Partition<A, { [BM, BK] }> = rows.partition(const_shape![BM, BK]);
        let weights_in: Partition<A, { [1, BN, BK] }> = weights.partition(const_shape![1, BN, BK]);
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
                    let left: Tile<A, { [BM, BK] }> =
                        rows_in.load_pipelined::<LATENCY>([row, step]);
                    let right: Tile<A, { [1, BN, BK] }> =
                        weights_in.load_pipelined::<LATENCY>([max(expert, 0i32), column, step]);
                    let right: Tile<A, { [BN, BK] }> = right.reshape(const_shape![BN, BK]);
                    let right: Tile<A, { [BK, BN] }> = right.transpose();
                    sum = mmaf(left, right, sum);
                }
            }
            let rounded: Tile<A, { [BM, BN] }> = convert_tile(sum);
            rows_out.store(rounded, [row, column]);
        }
    }
}
