//! One product of e4m3 weights in words.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Weights of an expert times the rows of a block. `F` is that of MXFP4, whose parts of rows and scales
/// they have, too: a power of two for each 32 columns of a row.
#[cutile::module]
pub mod float_words_product {
    use crate::grouped_gemm::words::halves::cuda::word_halves::*;
    use crate::grouped_gemm::words::product::cuda::word_product::*;
    use crate::grouped_gemm::words::widened::product::cuda::widened_product::*;
    use cutile::core::*;

    /// `w[expert, .., columns] . x[rows of one block]`, scaled: `[BN, BM]`. The constants and `place` are those
    /// of the product of words; rows of weights are `KW` words, of which 32 are a plane of 128 columns.
    pub unsafe fn float_words<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
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
    >(
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        x_scales: *mut f32,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        w: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<i32, { [1, PARTS, HB, 32] }> =
            w.partition(const_shape![1, PARTS, HB, 32]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        for k in 0i32..(KW / 32i32) {
            let words: Tile<i32, { [1, PARTS, HB, 32] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let words: Tile<i32, { [BN, 32] }> = words.reshape(const_shape![BN, 32]);
            sum = plane::<F, BM, BN, PARTS, HB, S, XP, XM, WK, WX, KX, NW, NB, GW>(
                words, x, x_sums, w_scales, place, k, sum,
            );
        }
        // Sums are of the numbers themselves, as those of integers are.
        // SAFETY: the caller vouches for the rows of the block and the expert.
        unsafe { scaled::<3, BM, BN, PARTS, HB>(sum, x_scales, w_scales, w_globals, place, after) }
    }

    /// Bytes 0 and 2 of words of e4m3 numbers as bfloat16 numbers over 2^120: four bits of exponent and three of
    /// mantissa are bfloat16's lowest and first ones.
    pub fn even_floats<const BN: i32>(x: Tile<i32, { [BN, 32] }>) -> Tile<i32, { [BN, 32] }> {
        ori(up::<BN>(x, 256i32, -2147450880i32), up::<BN>(x, 16i32, 133171184i32))
    }

    /// Bytes 1 and 3.
    pub fn odd_floats<const BN: i32>(x: Tile<i32, { [BN, 32] }>) -> Tile<i32, { [BN, 32] }> {
        ori(andi(x, all::<BN>(-2147450880i32)), down::<BN>(x, 4i32, 133171184i32))
    }

    /// The same product of bfloat16 rows. Powers of two over 2^65 are multiplied into the weights, which is exact.
    pub unsafe fn product_of_float_halves<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
        const NW: i32,
        const NB: i32,
        const NH: i32,
        const SW: i32,
        const SB: i32,
        const KW: i32,
    >(
        x: &Tensor<bf16, { [-1, -1, -1] }>,
        w: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<i32, { [1, PARTS, HB, 32] }> =
            w.partition(const_shape![1, PARTS, HB, 32]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        for k in 0i32..(KW / 32i32) {
            let words: Tile<i32, { [1, PARTS, HB, 32] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let words: Tile<i32, { [BN, 32] }> = words.reshape(const_shape![BN, 32]);
            let even: Tile<bf16, { [BN, 64] }> =
                halves_of::<BN, NW, NB, NH>(even_floats::<BN>(words));
            let odd: Tile<bf16, { [BN, 64] }> =
                halves_of::<BN, NW, NB, NH>(odd_floats::<BN>(words));
            sum = with_plane::<F, BM, BN, PARTS, HB, SW, SB>(even, odd, x, w_scales, place, k, sum);
        }
        // Numbers are over 2^120, those of MXFP4 over 2^126.
        let less: Tile<f32, { [BN, BM] }> = constant(0.015625f32, const_shape![BN, BM]);
        // SAFETY: the caller vouches for the expert.
        unsafe { in_units::<F, BM, BN, PARTS, HB>(sum * less, w_globals, place[0], after) }
    }
}
