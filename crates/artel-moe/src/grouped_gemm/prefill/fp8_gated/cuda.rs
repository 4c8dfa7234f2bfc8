//! Gate and up of FP8 rows with a scale per 128 columns and FP8 weights with a scale per block, and
//! `silu(gate) * up` of both.
//!
//! A tile is as many gates as ups beside each other. They have scales of their own, and so sums of
//! their own: a product is taken apart in registers. Otherwise as the products that store sums.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

#[cutile::module]
pub mod prefill_fp8_gated {
    use crate::activation::gate::cuda::gate_code::*;
    use crate::grouped_gemm::prefill::parts::cuda::prefill_parts::*;
    use cutile::core::*;

    /// `out` `[M, N]` = `silu(gate) * up` of `rows` `[M, K]` x `weights` `[E, 2, N, K]` of each row's
    /// expert, with `row_scales` `[ceil(K / 128), M]` and `w_scales` `[E, 2 * N / SR, ceil(K / SC)]`,
    /// one for `SR` output features, which divide `N`, and `SC` input features. `BOTH = 2 * BN`.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply_gated<
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
        const BOTH: i32,
        const PDL: i32,
    >(
        out: &Tensor<A, { [-1, -1] }>,
        rows: &Tensor<f8e4m3fn, { [-1, -1] }>,
        row_scales: &Tensor<f32, { [-1, -1] }>,
        weights: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
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
        let second: i32 = within(block + stride, tiles);
        // SAFETY: as above.
        let mut next_expert: i32 = unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, second) };
        // SAFETY: the weights of every expert have scales.
        let (mut gate_scale, mut up_scale): (Tile<f32, { [BM, 1] }>, Tile<f32, { [BM, 1] }>) = unsafe {
            first::<BM, BN, BK, COLUMNS, STEPS, SR, SC>(row_scales, w_scales, start, expert)
        };
        for turn in 0i32..turns(tiles, block, stride) {
            let tile: i32 = block + turn * stride;
            let later: i32 = within(tile + stride + stride, tiles);
            // SAFETY: as above.
            let later_expert: i32 = unsafe { expert_of::<NE, SPLIT, COLUMNS>(expert_ids, later) };
            let work: [i32; 5] = [tile, within(tile + stride, tiles), expert, next_expert, loops];
            // SAFETY: the row tiles are in use, expert and column are those of weights.
            let (value, next_gate, next_up): (
                Tile<A, { [BM, BN] }>,
                Tile<f32, { [BM, 1] }>,
                Tile<f32, { [BM, 1] }>,
            ) = unsafe {
                gated_product::<A, BM, BN, BK, IN, LATENCY, COLUMNS, STEPS, SR, SC, BOTH>(
                    rows, row_scales, weights, w_scales, work, gate_scale, up_scale,
                )
            };
            rows_out.store(value, [tile / COLUMNS, tile % COLUMNS]);
            gate_scale = next_gate;
            up_scale = next_up;
            expert = next_expert;
            next_expert = later_expert;
        }
    }

    /// `silu(gate) * up` of one tile, and the scales of the next tile's first step. `work`: the tile
    /// and the next, the experts of both, and turns of `IN` steps.
    unsafe fn gated_product<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const IN: i32,
        const LATENCY: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SR: i32,
        const SC: i32,
        const BOTH: i32,
    >(
        rows: &Tensor<f8e4m3fn, { [-1, -1] }>,
        row_scales: &Tensor<f32, { [-1, -1] }>,
        weights: &Tensor<f8e4m3fn, { [-1, -1, -1, -1] }>,
        w_scales: *mut f32,
        work: [i32; 5],
        gate_scale: Tile<f32, { [BM, 1] }>,
        up_scale: Tile<f32, { [BM, 1] }>,
    ) -> (Tile<A, { [BM, BN] }>, Tile<f32, { [BM, 1] }>, Tile<f32, { [BM, 1] }>) {
        let rows_in: Partition<f8e4m3fn, { [BM, BK] }> = rows.partition(const_shape![BM, BK]);
        let weights_in: Partition<f8e4m3fn, { [1, 2, BN, BK] }> =
            weights.partition(const_shape![1, 2, BN, BK]);
        let row: i32 = work[0] / COLUMNS;
        let column: i32 = work[0] % COLUMNS;
        let next_row: i32 = work[1] / COLUMNS;
        let expert: i32 = max(work[2], 0i32);
        let at: i32 = scales_at::<BN, BK, COLUMNS, STEPS, SR, SC>(work[2], work[0]);
        let next_at: i32 = scales_at::<BN, BK, COLUMNS, STEPS, SR, SC>(work[3], work[1]);
        let up_at: i32 = COLUMNS * BN / SR * ceil_div(STEPS * BK, SC);
        // A tile of no expert takes one turn, for the scales of the next.
        let loops: i32 = max(work[4] * exists(work[2]), 1i32);
        let mut gate_scale: Tile<f32, { [BM, 1] }> = gate_scale;
        let mut up_scale: Tile<f32, { [BM, 1] }> = up_scale;
        let mut gate: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        let mut up: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        let zero: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let one: Tile<i32, { [] }> = scalar_to_tile(1i32);
        for outer in 0i32..loops {
            for inner in 0i32..IN {
                let step: i32 = outer * IN + inner;
                let wrap: i32 = max(step + 2i32 - loops * IN, 0i32);
                let next: i32 = min(step + 1i32, STEPS - 1i32) * (1i32 - wrap) * BK;
                let from: i32 = at + (next_at - at) * wrap + next / SC;
                let place: [i32; 3] = [next / 128i32, row + (next_row - row) * wrap, from];
                // SAFETY: as above.
                let (next_gate, next_up): (Tile<f32, { [BM, 1] }>, Tile<f32, { [BM, 1] }>) =
                    unsafe { of_step::<BM>(row_scales, w_scales, place, up_at) };
                let left: Tile<f8e4m3fn, { [BM, BK] }> =
                    rows_in.load_pipelined::<LATENCY>([row, step]);
                let right: Tile<f8e4m3fn, { [1, 2, BN, BK] }> =
                    weights_in.load_pipelined::<LATENCY>([expert, 0i32, column, step]);
                let right: Tile<f8e4m3fn, { [1, BOTH, BK] }> =
                    right.reshape(const_shape![1, BOTH, BK]);
                let both: Tile<f32, { [BM, BOTH] }> = product::<BM, BOTH, BK>(left, right);
                let both: Tile<f32, { [BM, 2, BN] }> = both.reshape(const_shape![BM, 2, BN]);
                let of_gate: Tile<f32, { [BM, 1, BN] }> = extract(both, [zero, zero, zero]);
                let of_up: Tile<f32, { [BM, 1, BN] }> = extract(both, [zero, one, zero]);
                gate = promoted::<BM, BN>(gate, of_gate.reshape(const_shape![BM, BN]), gate_scale);
                up = promoted::<BM, BN>(up, of_up.reshape(const_shape![BM, BN]), up_scale);
                gate_scale = next_gate;
                up_scale = next_up;
            }
        }
        let value: Tile<f32, { [BM, BN] }> = kept::<BM, BN>(silu::<BM, BN>(gate) * up, work[2]);
        let rounded: Tile<A, { [BM, BN] }> = convert_tile(value);
        (rounded, gate_scale, up_scale)
    }

    /// Where the scales of a tile's gates begin.
    fn scales_at<
        const BN: i32,
        const BK: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SR: i32,
        const SC: i32,
    >(
        expert: i32,
        tile: i32,
    ) -> i32 {
        let row: i32 = max(expert, 0i32) * (2i32 * COLUMNS * BN / SR) + tile % COLUMNS * BN / SR;
        row * ceil_div(STEPS * BK, SC)
    }

    /// The scales of the first step of the first tile.
    unsafe fn first<
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const COLUMNS: i32,
        const STEPS: i32,
        const SR: i32,
        const SC: i32,
    >(
        row_scales: &Tensor<f32, { [-1, -1] }>,
        w_scales: *mut f32,
        tile: i32,
        expert: i32,
    ) -> (Tile<f32, { [BM, 1] }>, Tile<f32, { [BM, 1] }>) {
        let at: i32 = scales_at::<BN, BK, COLUMNS, STEPS, SR, SC>(expert, tile);
        let up_at: i32 = COLUMNS * BN / SR * ceil_div(STEPS * BK, SC);
        // SAFETY: the caller vouches for tile and expert.
        unsafe { of_step::<BM>(row_scales, w_scales, [0i32, tile / COLUMNS, at], up_at) }
    }

    /// The scales of gate and up of one step. `place`: group of columns, row tile, and where the scale
    /// of the gates stands; that of the ups stands `up_at` behind it.
    unsafe fn of_step<const BM: i32>(
        row_scales: &Tensor<f32, { [-1, -1] }>,
        w_scales: *mut f32,
        place: [i32; 3],
        up_at: i32,
    ) -> (Tile<f32, { [BM, 1] }>, Tile<f32, { [BM, 1] }>) {
        let scales_in: Partition<f32, { [1, BM] }> = row_scales.partition(const_shape![1, BM]);
        let rows: Tile<f32, { [1, BM] }> = scales_in.load([place[0], place[1]]);
        // SAFETY: the caller vouches for the offset.
        let gate: Tile<f32, { [BM, 1] }> = unsafe { joint::<BM>(rows, w_scales, place[2]) };
        // SAFETY: as above.
        let up: Tile<f32, { [BM, 1] }> = unsafe { joint::<BM>(rows, w_scales, place[2] + up_at) };
        (gate, up)
    }

    /// What the products of a step are multiplied by.
    unsafe fn joint<const BM: i32>(
        rows: Tile<f32, { [1, BM] }>,
        w_scales: *mut f32,
        at: i32,
    ) -> Tile<f32, { [BM, 1] }> {
        let rows: Tile<f32, { [BM, 1] }> = rows.reshape(const_shape![BM, 1]);
        // SAFETY: the caller vouches for the offset.
        let weight: f32 = unsafe { read_f32(w_scales, at) };
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
