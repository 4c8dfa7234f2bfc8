//! The kernels of such products.
//!
//! Weights do not depend on what ran before: the steps of a part whose weights fit the shared memory are
//! under way when the rows arrive, so that the memory is busy while small kernels before this one are not.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Products of parts of at least four steps.
#[cutile::module]
pub mod ahead {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// `out[part, t, n]` = the sum over the columns of a part of `x[t, k] * w[n, k]`. The weights of four
    /// steps are under way while the kernels before end.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn multiply_ahead<
        A: ElementType,
        const BM: i32,
        const BN: i32,
        const BK: i32,
        const STEPS: i32,
        const PDL: i32,
    >(
        out: *mut f32,
        x: &Tensor<A, { [-1, -1] }>,
        w: &Tensor<A, { [-1, -1] }>,
        tokens: i32,
        row_tiles: i32,
        outputs: i32,
    ) {
        let (column, row, part): (i32, i32, i32) = get_tile_block_id();
        let weights: Partition<A, { [BN, BK] }> = w.partition(const_shape![BN, BK]);
        let k: i32 = part * STEPS;
        let w_0: Tile<A, { [BN, BK] }> = weights.load([column, k]);
        let w_1: Tile<A, { [BN, BK] }> = weights.load([column, k + 1i32]);
        let w_2: Tile<A, { [BN, BK] }> = weights.load([column, k + 2i32]);
        let w_3: Tile<A, { [BN, BK] }> = weights.load([column, k + 3i32]);
        // SAFETY: launched as its specification says, after whatever wrote the rows.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: the token stands for the end of the kernel before.
        unsafe { x.set_token(ready) };
        let rows: Partition<A, { [BM, BK] }> = x.partition(const_shape![BM, BK]);
        let sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        let x_0: Tile<A, { [BM, BK] }> = rows.load([row, k]);
        let x_1: Tile<A, { [BM, BK] }> = rows.load([row, k + 1i32]);
        let x_2: Tile<A, { [BM, BK] }> = rows.load([row, k + 2i32]);
        let x_3: Tile<A, { [BM, BK] }> = rows.load([row, k + 3i32]);
        let sum: Tile<f32, { [BN, BM] }> = mmaf(w_0, x_0.transpose(), sum);
        let sum: Tile<f32, { [BN, BM] }> = mmaf(w_1, x_1.transpose(), sum);
        let sum: Tile<f32, { [BN, BM] }> = mmaf(w_2, x_2.transpose(), sum);
        let mut sum: Tile<f32, { [BN, BM] }> = mmaf(w_3, x_3.transpose(), sum);
        if STEPS > 4i32 {
            for step in 4i32..STEPS {
                let left: Tile<A, { [BN, BK] }> = weights.load([column, k + step]);
                let right: Tile<A, { [BM, BK] }> = rows.load([row, k + step]);
                sum = mmaf(left, right.transpose(), sum);
            }
        }
        let first_row: i32 = (part * row_tiles + row) * BM;
        // SAFETY: `out` has whole tiles of rows for every part; no two blocks store the same tile.
        unsafe {
            store_rows::<BM, BN>(out, sum, [first_row, tokens - row * BM], column * BN, outputs)
        };
    }

    /// Stores the rows of a tile that exist, `place`: the first of them, and how many there are.
    unsafe fn store_rows<const BM: i32, const BN: i32>(
        out: *mut f32,
        sum: Tile<f32, { [BN, BM] }>,
        place: [i32; 2],
        first: i32,
        outputs: i32,
    ) {
        let output: Tile<i32, { [BN] }> = count_from::<BN>(first);
        let row: Tile<i32, { [BM] }> = count_from::<BM>(0i32);
        let mask: Tile<bool, { [BN, BM] }> =
            block_mask(below(output, outputs), below(row, place[1]));
        let width: Tile<i32, { [BM] }> = broadcast_scalar(outputs, const_shape![BM]);
        let start: Tile<i32, { [BM] }> = count_from::<BM>(place[0]) * width;
        let offsets: Tile<i64, { [BN, BM] }> = block_offsets(output, 1i32, start);
        // SAFETY: the caller vouches for the rows.
        unsafe { scatter_block(out, offsets, mask, sum, new_token_unordered()) };
    }
}
