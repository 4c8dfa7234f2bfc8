//! One product of weights in words.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Weights of an expert times the rows of a block.
#[cutile::module]
pub mod word_product {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::words::parts::cuda::word_parts::*;
    use cutile::core::*;

    /// `w[expert, .., columns] . x[rows of one block]`, scaled: `[BN, BM]`. A weight tile has `HB` rows
    /// of each of `PARTS` parts; `place` is expert, column tile and row block. Rows of weights are `KW`
    /// words, or bytes where a word holds nothing but four of them.
    pub unsafe fn word_product<
        W: ElementType,
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
        w: &Tensor<W, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        if F < 3i32 {
            let weights: Partition<W, { [1, PARTS, HB, 32] }> =
                w.partition(const_shape![1, PARTS, HB, 32]);
            for k in 0i32..(KW / 32i32) {
                let words: Tile<W, { [1, PARTS, HB, 32] }> =
                    weights.load([place[0], 0i32, place[1], k]);
                let words: Tile<i32, { [1, PARTS, HB, 32] }> = convert_tile(words);
                let words: Tile<i32, { [BN, 32] }> = words.reshape(const_shape![BN, 32]);
                sum = plane::<F, BM, BN, PARTS, HB, S, XP, XM, WK, WX, KX, NW, NB, GW>(
                    lower_plane::<F, BN>(words),
                    x,
                    x_sums,
                    w_scales,
                    place,
                    2i32 * k,
                    sum,
                );
                sum = plane::<F, BM, BN, PARTS, HB, S, XP, XM, WK, WX, KX, NW, NB, GW>(
                    upper_plane::<F, BN>(words),
                    x,
                    x_sums,
                    w_scales,
                    place,
                    2i32 * k + 1i32,
                    sum,
                );
            }
        } else {
            sum = byte_product::<W, F, BM, BN, PARTS, HB, XP, XM, KX, KW>(x, w, w_scales, place);
        }
        // SAFETY: the caller vouches for the rows of the block and the expert.
        unsafe { scaled::<F, BM, BN, PARTS, HB>(sum, x_scales, w_scales, w_globals, place, after) }
    }

    /// The sums of INT8 weights: with the scales of their groups, or integers to the end.
    pub fn byte_product<
        W: ElementType,
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
        const XP: i32,
        const XM: i32,
        const KX: i32,
        const KW: i32,
    >(
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        w: &Tensor<W, { [-1, -1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        place: [i32; 3],
    ) -> Tile<f32, { [BN, BM] }> {
        let weights: Partition<W, { [1, PARTS, HB, KX] }> =
            w.partition(const_shape![1, PARTS, HB, KX]);
        let rows: Partition<i8, { [1, XP, BM, KX] }> = x.partition(const_shape![1, XP, BM, KX]);
        let mut sum: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
        let mut total: Tile<i32, { [BN, XM] }> = constant(0i32, const_shape![BN, XM]);
        for k in 0i32..(KW / KX) {
            let bytes: Tile<W, { [1, PARTS, HB, KX] }> =
                weights.load([place[0], 0i32, place[1], k]);
            let bytes: Tile<i8, { [1, PARTS, HB, KX] }> = convert_tile(bytes);
            let bytes: Tile<i8, { [BN, KX] }> = bytes.reshape(const_shape![BN, KX]);
            let xk: Tile<i8, { [1, XP, BM, KX] }> = rows.load([k, 0i32, place[2], 0i32]);
            let xk: Tile<i8, { [XM, KX] }> = xk.reshape(const_shape![XM, KX]);
            let xk: Tile<i8, { [KX, XM] }> = xk.transpose();
            if F == 3i32 {
                let zero: Tile<i32, { [BN, XM] }> = constant(0i32, const_shape![BN, XM]);
                let product: Tile<i32, { [BN, XM] }> =
                    mmai(bytes, xk, zero, signedness::Signed, signedness::Signed);
                let word: Tile<i32, { [BN] }> = scale_words::<BN, PARTS, HB>(w_scales, place, k);
                sum = with_integers::<BN, BM, XM>(product, word, sum);
            } else {
                total = mmai(bytes, xk, total, signedness::Signed, signedness::Signed);
            }
        }
        if F == 4i32 {
            sum = itof(sums_of_group::<i32, BN, BM, XM>(total, 0i32), rounding::NearestEven);
        }
        sum
    }

    /// `before` and plane `k` of 128 columns.
    pub fn plane<
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
    >(
        words: Tile<i32, { [BN, 32] }>,
        x: &Tensor<i8, { [-1, -1, -1, -1] }>,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        place: [i32; 3],
        k: i32,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let rows: Partition<i8, { [S, XP, BM, KX] }> = x.partition(const_shape![S, XP, BM, KX]);
        let x: Tile<i8, { [S, XP, BM, KX] }> = rows.load([k, 0i32, place[2], 0i32]);
        let mut sum: Tile<f32, { [BN, BM] }> = before;
        let at: i32 = k * GW;
        let mut word: Tile<i32, { [BN] }> = scale_words::<BN, PARTS, HB>(w_scales, place, at);
        sum = step::<F, BM, BN, S, XP, XM, WK, WX, KX, NW, NB>(
            words, x, x_sums, word, place[2], k, 0i32, sum,
        );
        if S >= 2i32 {
            if F == 0i32 {
                word = scale_words::<BN, PARTS, HB>(w_scales, place, at + 1i32);
            }
            sum = step::<F, BM, BN, S, XP, XM, WK, WX, KX, NW, NB>(
                words, x, x_sums, word, place[2], k, 1i32, sum,
            );
        }
        if S >= 4i32 {
            if F == 2i32 {
                word = scale_words::<BN, PARTS, HB>(w_scales, place, at + 1i32);
            }
            if F == 0i32 {
                word = scale_words::<BN, PARTS, HB>(w_scales, place, at + 2i32);
            }
            sum = step::<F, BM, BN, S, XP, XM, WK, WX, KX, NW, NB>(
                words, x, x_sums, word, place[2], k, 2i32, sum,
            );
            if F == 0i32 {
                word = scale_words::<BN, PARTS, HB>(w_scales, place, at + 3i32);
            }
            sum = step::<F, BM, BN, S, XP, XM, WK, WX, KX, NW, NB>(
                words, x, x_sums, word, place[2], k, 3i32, sum,
            );
        }
        sum
    }

    /// `before` and product `step` of plane `k`.
    pub fn step<
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
    >(
        words: Tile<i32, { [BN, 32] }>,
        x: Tile<i8, { [S, XP, BM, KX] }>,
        x_sums: &Tensor<f32, { [-1, -1] }>,
        word: Tile<i32, { [BN] }>,
        block: i32,
        k: i32,
        step: i32,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let mut sum: Tile<f32, { [BN, BM] }> = before;
        let product: Tile<f32, { [BN, XM] }> =
            float_product::<BN, BM, S, XP, XM, WK, WX, KX, NW, NB>(words, x, step);
        if F == 0i32 {
            let all: Partition<f32, { [1, BM] }> = x_sums.partition(const_shape![1, BM]);
            let sums: Tile<f32, { [1, BM] }> = all.load([k * S + step, block]);
            sum = with_zero_point::<BN, BM, XM>(product, sums, word, sum);
        }
        if F == 1i32 {
            sum = with_group::<F, BN, BM, XM>(product, 0i32, word, step, sum);
        }
        if F == 2i32 {
            // Two groups a product, four scales a word.
            let byte: i32 = 2i32 * (step - step / 2i32 * 2i32);
            sum = with_group::<F, BN, BM, XM>(product, 0i32, word, byte, sum);
            sum = with_group::<F, BN, BM, XM>(product, 1i32, word, byte + 1i32, sum);
        }
        sum
    }

    /// Words `at` of the scales of a tile's weight rows.
    pub fn scale_words<const BN: i32, const PARTS: i32, const HB: i32>(
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        place: [i32; 3],
        at: i32,
    ) -> Tile<i32, { [BN] }> {
        let all: Partition<i32, { [1, PARTS, 1, HB] }> =
            w_scales.partition(const_shape![1, PARTS, 1, HB]);
        let words: Tile<i32, { [1, PARTS, 1, HB] }> = all.load([place[0], 0i32, at, place[1]]);
        words.reshape(const_shape![BN])
    }

    /// Sums times the scales of activations and parts, and what codes are multiples of.
    pub unsafe fn scaled<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
    >(
        sum: Tile<f32, { [BN, BM] }>,
        x_scales: *mut f32,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        w_globals: *mut f32,
        place: [i32; 3],
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let rows: Tile<i32, { [BM] }> = count_from::<BM>(place[2] * BM);
        // SAFETY: the caller vouches for the rows of the block.
        let sx: Tile<f32, { [BM] }> = unsafe { gather_all(x_scales, rows, after) };
        let sx: Tile<f32, { [BN, BM] }> = under_each_other::<BN, BM>(sx);
        let mut unit: f32 = 1.0f32;
        if F == 0i32 {
            unit = 512.0f32;
        }
        if F == 1i32 {
            unit = 64.0f32;
        }
        if F == 2i32 {
            // 64 and the 2^120 of the scales.
            unit = 85070591730234615865843651857942052864.0f32;
        }
        let unit: Tile<f32, { [BN, BM] }> = broadcast_scalar(unit, const_shape![BN, BM]);
        let mut scaled: Tile<f32, { [BN, BM] }> = sum * unit * sx;
        if F == 2i32 {
            // SAFETY: every part of every expert has a scale.
            let first: f32 = unsafe { load_f32(w_globals, place[0] * PARTS, after) };
            // SAFETY: as above.
            let last: f32 = unsafe { load_f32(w_globals, place[0] * PARTS + PARTS - 1i32, after) };
            scaled = scaled * weight_scales::<BN, BM, HB>(first, last);
        }
        if F == 4i32 {
            let sw: Tile<f32, { [BN] }> =
                bitcast(scale_words::<BN, PARTS, HB>(w_scales, place, 0i32));
            scaled = scaled * beside_each_other::<BN, BM>(sw);
        }
        scaled
    }
}
