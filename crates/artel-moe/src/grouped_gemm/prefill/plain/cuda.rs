//! Rows and weights in the same 16 bits.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod prefill_plain {
    use crate::activation::gate::cuda::gate_code::*;
    use crate::grouped_gemm::prefill::parts::cuda::prefill_parts::*;
    use cutile::core::*;

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, PARTS, N, K]` of each row's expert. Two parts
    /// are gate and up, `out` is `silu(gate) * up`. `BOTH = PARTS * BN`.
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
        const PARTS: i32,
        const BOTH: i32,
        const PDL: i32,
    >(
        out: &Tensor<A, { [-1, -1] }>,
        rows: &Tensor<A, { [-1, -1] }>,
        weights: &Tensor<A, { [-1, -1, -1, -1] }>,
        expert_ids: *mut i32,
        rows_padded: *mut i32,
        loops: i32,
    ) {
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
            let work: [i32; 4] = [row, column, max(expert, 0i32), loops * exists(expert)];
            let sum: Tile<f32, { [BM, BOTH] }> =
                product::<A, BM, BN, BK, IN, LATENCY, PARTS, BOTH>(rows, weights, work);
            let rounded: Tile<A, { [BM, BN] }> = finished::<A, BM, BN, PARTS, BOTH>(sum);
            rows_out.store(rounded, [row, column]);
        }
    }

    /// The sums of a tile, those of its parts beside each other. `work`: row tile, column tile,
    /// expert, and turns of `IN` steps.
    fn product<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const IN: i32,
        const LATENCY: i32,
        const PARTS: i32,
        const BOTH: i32,
    >(
        rows: &Tensor<A, { [-1, -1] }>,
        weights: &Tensor<A, { [-1, -1, -1, -1] }>,
        work: [i32; 4],
    ) -> Tile<f32, { [BM, BOTH] }> {
        let rows_in: Partition<A, { [BM, BK] }> = rows.partition(const_shape![BM, BK]);
        let weights_in: Partition<A, { [1, PARTS, BN, BK] }> =
            weights.partition(const_shape![1, PARTS, BN, BK]);
        let row: i32 = work[0];
        let column: i32 = work[1];
        let expert: i32 = work[2];
        let mut sum: Tile<f32, { [BM, BOTH] }> = constant(0.0f32, const_shape![BM, BOTH]);
        for outer in 0i32..work[3] {
            for inner in 0i32..IN {
                let step: i32 = outer * IN + inner;
                let left: Tile<A, { [BM, BK] }> = rows_in.load_pipelined::<LATENCY>([row, step]);
                let right: Tile<A, { [1, PARTS, BN, BK] }> =
                    weights_in.load_pipelined::<LATENCY>([expert, 0i32, column, step]);
                let right: Tile<A, { [BOTH, BK] }> = right.reshape(const_shape![BOTH, BK]);
                let right: Tile<A, { [BK, BOTH] }> = right.transpose();
                sum = mmaf(left, right, sum);
            }
        }
        sum
    }

    /// What is stored of the sums, rounded once.
    fn finished<A: ElementType, const BM: i32, const BN: i32, const PARTS: i32, const BOTH: i32>(
        sum: Tile<f32, { [BM, BOTH] }>,
    ) -> Tile<A, { [BM, BN] }> {
        let parts: Tile<f32, { [BM, PARTS, BN] }> = sum.reshape(const_shape![BM, PARTS, BN]);
        let zero: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let gate: Tile<f32, { [BM, 1, BN] }> = extract(parts, [zero, zero, zero]);
        let mut value: Tile<f32, { [BM, BN] }> = gate.reshape(const_shape![BM, BN]);
        if PARTS == 2i32 {
            let one: Tile<i32, { [] }> = scalar_to_tile(1i32);
            let up: Tile<f32, { [BM, 1, BN] }> = extract(parts, [zero, one, zero]);
            let up: Tile<f32, { [BM, BN] }> = up.reshape(const_shape![BM, BN]);
            value = silu::<BM, BN>(value) * up;
        }
        let rounded: Tile<A, { [BM, BN] }> = convert_tile(value);
        rounded
    }
}
