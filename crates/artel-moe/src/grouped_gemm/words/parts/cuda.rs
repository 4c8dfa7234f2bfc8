//! Device functions of products on weights in words.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// From words to sums. `F` says what words hold: 0 INT4, 1 MXFP4, 2 NVFP4, 3 INT8 in groups, 4 INT8 in
/// rows. `S` products make a plane of 128 columns. One has `WK` words of a row and `KX` columns of
/// activations, of which each of `BM` rows has `XP` copies.
#[cutile::module]
pub mod word_parts {
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use cutile::core::*;

    /// The codes of the lower plane, a byte each.
    pub fn lower_plane<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        let mut codes: Tile<i32, { [BN, 32] }> = x;
        if F == 0i32 {
            let low: Tile<i32, { [BN, 32] }> = constant(252645135i32, const_shape![BN, 32]);
            codes = andi(x, low);
        }
        if F == 1i32 || F == 2i32 {
            let bits: Tile<i32, { [BN, 32] }> = constant(-1667457892i32, const_shape![BN, 32]);
            codes = andi(x, bits);
        }
        codes
    }

    /// The codes of the upper plane, a byte each.
    pub fn upper_plane<const F: i32, const BN: i32>(
        x: Tile<i32, { [BN, 32] }>,
    ) -> Tile<i32, { [BN, 32] }> {
        // Of e2m1, sign and low bits go up by two places, the first bit of the exponent comes down.
        let most: Tile<i32, { [BN, 32] }> = constant(589505315i32, const_shape![BN, 32]);
        let first: Tile<i32, { [BN, 32] }> = constant(269488144i32, const_shape![BN, 32]);
        let two: Tile<i32, { [BN, 32] }> = constant(2i32, const_shape![BN, 32]);
        let up: Tile<i32, { [BN, 32] }> = shli(andi(x, most), two, overflow::NoUnsignedWrap);
        let mut codes: Tile<i32, { [BN, 32] }> = ori(up, andi(shri(x, two), first));
        if F == 0i32 {
            let low: Tile<i32, { [BN, 32] }> = constant(252645135i32, const_shape![BN, 32]);
            let four: Tile<i32, { [BN, 32] }> = constant(4i32, const_shape![BN, 32]);
            codes = andi(shri(x, four), low);
        }
        codes
    }

    /// Words as the bytes that they consist of.
    pub fn bytes_of<const BN: i32, const WK: i32, const KX: i32, const NW: i32, const NB: i32>(
        words: Tile<i32, { [BN, WK] }>,
    ) -> Tile<u8, { [BN, KX] }> {
        let words: Tile<i32, { [NW] }> = words.reshape(const_shape![NW]);
        let bytes: Tile<u8, { [NB] }> = pack(words);
        bytes.reshape(const_shape![BN, KX])
    }

    /// The sums `[BN, XM]` of group `group` of a product.
    pub fn sums_of_group<E: ElementType, const BN: i32, const BM: i32, const XM: i32>(
        product: Tile<E, { [BN, XM] }>,
        group: i32,
    ) -> Tile<E, { [BN, BM] }> {
        let all: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let group: Tile<i32, { [] }> = scalar_to_tile(group);
        let sums: Tile<E, { [BN, BM] }> = extract(product, [all, group]);
        sums
    }

    /// Product `step` of a plane: its weights stand twice, for both parts of the activations.
    pub fn float_product<
        const BN: i32,
        const BM: i32,
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
        step: i32,
    ) -> Tile<f32, { [BN, XM] }> {
        let once: Tile<i32, { [BN, WK] }> = words_of_step::<BN, WK>(words, step);
        let twice: Tile<i32, { [BN, WX] }> = cat(once, once, 1i32);
        let w: Tile<u8, { [BN, KX] }> = bytes_of::<BN, WX, KX, NW, NB>(twice);
        let w: Tile<f8e4m3fn, { [BN, KX] }> = bitcast(w);
        let x: Tile<i8, { [XM, KX] }> = rows_of_step::<BM, KX, S, XP, XM>(x, step);
        let x: Tile<f8e4m3fn, { [XM, KX] }> = bitcast(x);
        let x: Tile<f8e4m3fn, { [KX, XM] }> = x.transpose();
        let zero: Tile<f32, { [BN, XM] }> = constant(0.0f32, const_shape![BN, XM]);
        // SAFETY: every product begins with a fresh accumulator and is added in float32.
        let product: Tile<f32, { [BN, XM] }> =
            unsafe { mmaf_with_fast_acc(w, x, zero, fast_acc::Enabled) };
        product
    }

    /// The words of product `step` of a plane.
    pub fn words_of_step<const BN: i32, const WK: i32>(
        words: Tile<i32, { [BN, 32] }>,
        step: i32,
    ) -> Tile<i32, { [BN, WK] }> {
        let all: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let step: Tile<i32, { [] }> = scalar_to_tile(step);
        let words: Tile<i32, { [BN, WK] }> = extract(words, [all, step]);
        words
    }

    /// The activations of product `step` of a plane.
    pub fn rows_of_step<
        const BM: i32,
        const KX: i32,
        const S: i32,
        const XP: i32,
        const XM: i32,
    >(
        x: Tile<i8, { [S, XP, BM, KX] }>,
        step: i32,
    ) -> Tile<i8, { [XM, KX] }> {
        let all: Tile<i32, { [] }> = scalar_to_tile(0i32);
        let step: Tile<i32, { [] }> = scalar_to_tile(step);
        let x: Tile<i8, { [1, XP, BM, KX] }> = extract(x, [step, all, all, all]);
        x.reshape(const_shape![XM, KX])
    }

    /// Byte `place` of a word as the bits of a float32 number from bit `UP` on.
    pub fn byte_scale<const BN: i32, const UP: i32, const MASK: i32>(
        word: Tile<i32, { [BN] }>,
        place: i32,
    ) -> Tile<f32, { [BN] }> {
        let byte: Tile<i32, { [BN] }> =
            andi(shri(word, splat::<BN>(8i32 * place)), splat::<BN>(MASK));
        let bits: Tile<i32, { [BN] }> = shli(byte, splat::<BN>(UP), overflow::NoUnsignedWrap);
        let scale: Tile<f32, { [BN] }> = bitcast(bits);
        scale
    }

    /// `before` and group `group` of an FP4 product times its scale, byte `place` of a word.
    pub fn with_group<const F: i32, const BN: i32, const BM: i32, const XM: i32>(
        product: Tile<f32, { [BN, XM] }>,
        group: i32,
        word: Tile<i32, { [BN] }>,
        place: i32,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let sum: Tile<f32, { [BN, BM] }> = sums_of_group::<f32, BN, BM, XM>(product, group);
        // A power of two is the exponent itself; e4m3 bits are the number over 2^120.
        let mut scale: Tile<f32, { [BN] }> = byte_scale::<BN, 23, 255>(word, place);
        if F == 2i32 {
            scale = byte_scale::<BN, 20, 127>(word, place);
        }
        let scale: Tile<f32, { [BN, BM] }> = beside_each_other::<BN, BM>(scale);
        fma(sum, scale, before, rounding::NearestEven, ftz::Disabled)
    }

    /// `before` and an INT4 product times its scale, less its zero point times the activations' sums.
    pub fn with_zero_point<const BN: i32, const BM: i32, const XM: i32>(
        product: Tile<f32, { [BN, XM] }>,
        sums: Tile<f32, { [1, BM] }>,
        word: Tile<i32, { [BN] }>,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let sum: Tile<f32, { [BN, BM] }> = sums_of_group::<f32, BN, BM, XM>(product, 0i32);
        // 2^23 + n has the bits of n below those of 2^23.
        let low: Tile<i32, { [BN] }> =
            ori(andi(word, splat::<BN>(255i32)), splat::<BN>(1258291200i32));
        let above: Tile<f32, { [BN] }> = bitcast(low);
        let base: Tile<f32, { [BN] }> = constant(8388608.0f32, const_shape![BN]);
        let minus: Tile<f32, { [BN, BM] }> = beside_each_other::<BN, BM>(base - above);
        let sums: Tile<f32, { [BN, BM] }> = sums.broadcast(const_shape![BN, BM]);
        let sum: Tile<f32, { [BN, BM] }> =
            fma(minus, sums, sum, rounding::NearestEven, ftz::Disabled);
        // The zero point in its lowest byte changes a scale by less than its rounding to 16 bits.
        let scale: Tile<f32, { [BN] }> = bitcast(word);
        let scale: Tile<f32, { [BN, BM] }> = beside_each_other::<BN, BM>(scale);
        fma(sum, scale, before, rounding::NearestEven, ftz::Disabled)
    }

    /// `before` and the product of INT8 weights and both parts of activations, times its scale.
    pub fn with_integers<const BN: i32, const BM: i32, const XM: i32>(
        product: Tile<i32, { [BN, XM] }>,
        word: Tile<i32, { [BN] }>,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let first: Tile<i32, { [BN, BM] }> = sums_of_group::<i32, BN, BM, XM>(product, 0i32);
        let second: Tile<i32, { [BN, BM] }> = sums_of_group::<i32, BN, BM, XM>(product, 1i32);
        let steps: Tile<f32, { [BN, BM] }> = constant(256.0f32, const_shape![BN, BM]);
        let sum: Tile<f32, { [BN, BM] }> = fma(
            small_number::<BN, BM>(first),
            steps,
            small_number::<BN, BM>(second),
            rounding::NearestEven,
            ftz::Disabled,
        );
        let scale: Tile<f32, { [BN] }> = bitcast(word);
        let scale: Tile<f32, { [BN, BM] }> = beside_each_other::<BN, BM>(scale);
        fma(sum, scale, before, rounding::NearestEven, ftz::Disabled)
    }

    /// Integers below 2^22, which sums of 128 products of INT8 are, as floats: those of 3 * 2^22 with
    /// theirs added to the bits, less that. A conversion takes four times as long.
    pub fn small_number<const BN: i32, const BM: i32>(
        x: Tile<i32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let bits: Tile<i32, { [BN, BM] }> = constant(1262485504i32, const_shape![BN, BM]);
        let base: Tile<f32, { [BN, BM] }> = constant(12582912.0f32, const_shape![BN, BM]);
        let above: Tile<f32, { [BN, BM] }> = bitcast(x + bits);
        above - base
    }
}
