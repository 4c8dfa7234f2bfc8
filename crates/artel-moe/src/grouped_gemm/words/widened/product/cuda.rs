//! One product of weights in words that are widened to bfloat16.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Weights of an expert times the rows of a block.
#[cutile::module]
pub mod widened_product {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::words::halves::cuda::word_halves::*;
    use crate::grouped_gemm::words::product::cuda::word_product::*;
    use cutile::core::*;

    /// `w[expert, .., columns] . x[rows of one block]`: `[BN, BM]`. A weight tile has `HB` rows of each of
    /// `PARTS` parts; `place` is expert, column tile and row block.
    pub unsafe fn product_of_halves<
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
            let mut even: Tile<bf16, { [BN, 64] }> =
                halves_of::<BN, NW, NB, NH>(lower_even::<F, BN>(words));
            let mut odd: Tile<bf16, { [BN, 64] }> =
                halves_of::<BN, NW, NB, NH>(lower_odd::<F, BN>(words));
            if F == 3i32 {
                even = even - halves_of::<BN, NW, NB, NH>(too_much::<BN, 0>(words));
                odd = odd - halves_of::<BN, NW, NB, NH>(too_much::<BN, 1>(words));
                sum = with_plane::<F, BM, BN, PARTS, HB, SW, SB>(
                    even, odd, x, w_scales, place, k, sum,
                );
            } else {
                sum = with_plane::<F, BM, BN, PARTS, HB, SW, SB>(
                    even,
                    odd,
                    x,
                    w_scales,
                    place,
                    2i32 * k,
                    sum,
                );
                even = halves_of::<BN, NW, NB, NH>(upper_even::<F, BN>(words));
                odd = halves_of::<BN, NW, NB, NH>(upper_odd::<F, BN>(words));
                sum = with_plane::<F, BM, BN, PARTS, HB, SW, SB>(
                    even,
                    odd,
                    x,
                    w_scales,
                    place,
                    2i32 * k + 1i32,
                    sum,
                );
            }
        }
        // SAFETY: the caller vouches for the expert.
        unsafe { in_units::<F, BM, BN, PARTS, HB>(sum, w_globals, place[0], after) }
    }

    /// `before` and plane `plane` of 128 columns. Scales of FP4 become part of weights; those that
    /// bfloat16 would round come after the product of the plane.
    pub fn with_plane<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
        const SW: i32,
        const SB: i32,
    >(
        even: Tile<bf16, { [BN, 64] }>,
        odd: Tile<bf16, { [BN, 64] }>,
        x: &Tensor<bf16, { [-1, -1, -1] }>,
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        place: [i32; 3],
        plane: i32,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let mut sum: Tile<f32, { [BN, BM] }> = before;
        if F == 1i32 {
            let words: Tile<i32, { [BN] }> = scale_words::<BN, PARTS, HB>(w_scales, place, plane);
            let factors: Tile<bf16, { [BN, 4] }> = exponent_factors::<BN, SB>(words);
            let even: Tile<bf16, { [BN, 64] }> = times::<BN, 4, 16>(even, factors);
            let odd: Tile<bf16, { [BN, 64] }> = times::<BN, 4, 16>(odd, factors);
            sum = both_halves::<BM, BN>(even, odd, x, plane, place[2], sum);
        }
        if F == 2i32 {
            let words: Tile<i32, { [BN, 2] }> =
                scale_pairs::<BN, PARTS, HB>(w_scales, place, plane);
            let factors: Tile<bf16, { [BN, 8] }> = e4m3_factors::<BN, SW, SB>(words);
            let even: Tile<bf16, { [BN, 64] }> = times::<BN, 8, 8>(even, factors);
            let odd: Tile<bf16, { [BN, 64] }> = times::<BN, 8, 8>(odd, factors);
            sum = both_halves::<BM, BN>(even, odd, x, plane, place[2], sum);
        }
        if F == 0i32 || F == 3i32 {
            let word: Tile<i32, { [BN] }> = scale_words::<BN, PARTS, HB>(w_scales, place, plane);
            let mut first: Tile<bf16, { [BN, 64] }> = even;
            let mut second: Tile<bf16, { [BN, 64] }> = odd;
            if F == 0i32 {
                let base: Tile<f32, { [BN] }> = constant(128.0f32, const_shape![BN]);
                let less_by: Tile<f32, { [BN] }> = low_bytes::<BN>(word) + base;
                first = less::<BN>(even, less_by);
                second = less::<BN>(odd, less_by);
            }
            let zero: Tile<f32, { [BN, BM] }> = constant(0.0f32, const_shape![BN, BM]);
            let product: Tile<f32, { [BN, BM] }> =
                both_halves::<BM, BN>(first, second, x, plane, place[2], zero);
            // A zero point in its lowest byte changes a scale by less than its rounding to 16 bits.
            let scale: Tile<f32, { [BN] }> = bitcast(word);
            let scale: Tile<f32, { [BN, BM] }> = beside_each_other::<BN, BM>(scale);
            sum = fma(product, scale, sum, rounding::NearestEven, ftz::Disabled);
        }
        sum
    }

    /// `before` and both products of a plane.
    pub fn both_halves<const BM: i32, const BN: i32>(
        even: Tile<bf16, { [BN, 64] }>,
        odd: Tile<bf16, { [BN, 64] }>,
        x: &Tensor<bf16, { [-1, -1, -1] }>,
        plane: i32,
        block: i32,
        before: Tile<f32, { [BN, BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let first: Tile<f32, { [BN, BM] }> =
            mmaf(even, columns_of_rows::<BM>(x, 2i32 * plane, block), before);
        mmaf(odd, columns_of_rows::<BM>(x, 2i32 * plane + 1i32, block), first)
    }

    /// Product `product` of the rows of a block, as columns.
    pub fn columns_of_rows<const BM: i32>(
        x: &Tensor<bf16, { [-1, -1, -1] }>,
        product: i32,
        block: i32,
    ) -> Tile<bf16, { [64, BM] }> {
        let rows: Partition<bf16, { [1, BM, 64] }> = x.partition(const_shape![1, BM, 64]);
        let rows: Tile<bf16, { [1, BM, 64] }> = rows.load([product, block, 0i32]);
        let rows: Tile<bf16, { [BM, 64] }> = rows.reshape(const_shape![BM, 64]);
        rows.transpose()
    }

    /// Both words of the scales of a plane, for the weight rows of a tile.
    pub fn scale_pairs<const BN: i32, const PARTS: i32, const HB: i32>(
        w_scales: &Tensor<i32, { [-1, -1, -1, -1] }>,
        place: [i32; 3],
        plane: i32,
    ) -> Tile<i32, { [BN, 2] }> {
        let all: Partition<i32, { [1, PARTS, 2, HB] }> =
            w_scales.partition(const_shape![1, PARTS, 2, HB]);
        let words: Tile<i32, { [1, PARTS, 2, HB] }> = all.load([place[0], 0i32, plane, place[1]]);
        let order: Array<{ [0, 1, 3, 2] }> = const_array![0, 1, 3, 2];
        let words: Tile<i32, { [1, PARTS, HB, 2] }> = permute(words, order);
        words.reshape(const_shape![BN, 2])
    }

    /// Sums times what widened weights are multiples of, and the scales of parts.
    pub unsafe fn in_units<
        const F: i32,
        const BM: i32,
        const BN: i32,
        const PARTS: i32,
        const HB: i32,
    >(
        sum: Tile<f32, { [BN, BM] }>,
        w_globals: *mut f32,
        expert: i32,
        after: Token,
    ) -> Tile<f32, { [BN, BM] }> {
        let mut scaled: Tile<f32, { [BN, BM] }> = sum;
        if F == 1i32 {
            let unit: Tile<f32, { [BN, BM] }> =
                constant(18446744073709551616.0f32, const_shape![BN, BM]);
            scaled = sum * unit;
        }
        if F == 2i32 {
            // SAFETY: every part of every expert has a scale.
            let first: f32 = unsafe { load_f32(w_globals, expert * PARTS, after) };
            // SAFETY: as above.
            let last: f32 = unsafe { load_f32(w_globals, expert * PARTS + PARTS - 1i32, after) };
            scaled = sum * weight_scales::<BN, BM, HB>(first * 256.0f32, last * 256.0f32);
        }
        scaled
    }

    /// Stores a tile `[BM, HB]` of some columns as the rows of a product of its own: `out`
    /// `[products, capacity, 64]`, see the rows of the first product. `at`: row block, column tile,
    /// columns in all, and capacity. `HQ` and `HH` are a quarter and a half of `HB`.
    pub unsafe fn store_halves_of_block<
        const BM: i32,
        const HB: i32,
        const HQ: i32,
        const HH: i32,
    >(
        out: *mut bf16,
        at: [i32; 4],
        values: Tile<f32, { [BM, HB] }>,
    ) {
        let values: Tile<bf16, { [BM, HB] }> = convert_tile(values);
        let values: Tile<bf16, { [BM, HQ, 2, 2] }> = values.reshape(const_shape![BM, HQ, 2, 2]);
        let order: Array<{ [0, 3, 1, 2] }> = const_array![0, 3, 1, 2];
        let values: Tile<bf16, { [BM, 2, HQ, 2] }> = permute(values, order);
        let values: Tile<bf16, { [BM, 2, HH] }> = values.reshape(const_shape![BM, 2, HH]);
        let first: i32 = at[1] * HB;
        let plane: i32 = first / 128i32;
        let within: i32 = (first - plane * 128i32) / 2i32;
        let row: Tile<i32, { [BM] }> = count_from::<BM>(at[0] * BM);
        let row: Tile<i32, { [BM, 1, 1] }> =
            (row * splat::<BM>(64i32)).reshape(const_shape![BM, 1, 1]);
        let product: Tile<i32, { [2] }> = count_from::<2>(2i32 * plane);
        let product: Tile<i32, { [1, 2, 1] }> =
            (product * splat::<2>(64i32 * at[3])).reshape(const_shape![1, 2, 1]);
        let column: Tile<i32, { [HH] }> = count_from::<HH>(within);
        let column: Tile<i32, { [1, 1, HH] }> = column.reshape(const_shape![1, 1, HH]);
        let places: Tile<i32, { [BM, 2, HH] }> = row.broadcast(const_shape![BM, 2, HH])
            + product.broadcast(const_shape![BM, 2, HH])
            + column.broadcast(const_shape![BM, 2, HH]);
        // Two columns of a word lie in each product; of the last word, all are columns or none.
        let word: Tile<i32, { [HH] }> = count_from::<HH>(0i32) / splat::<HH>(2i32);
        let inside: Tile<bool, { [HH] }> =
            lt_tile(word * splat::<HH>(4i32) + splat::<HH>(first), splat::<HH>(at[2]));
        let inside: Tile<bool, { [1, 1, HH] }> = inside.reshape(const_shape![1, 1, HH]);
        let inside: Tile<bool, { [BM, 2, HH] }> = inside.broadcast(const_shape![BM, 2, HH]);
        let pointer: PointerTile<*mut bf16, { [] }> = pointer_to_tile(out);
        let pointer: PointerTile<*mut bf16, { [1, 1, 1] }> = pointer.reshape(const_shape![1, 1, 1]);
        let pointer: PointerTile<*mut bf16, { [BM, 2, HH] }> =
            pointer.broadcast(const_shape![BM, 2, HH]);
        let pointer: PointerTile<*mut bf16, { [BM, 2, HH] }> = pointer.offset_tile(places);
        // SAFETY: the caller vouches for the rows of the block in every product.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                values,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(inside),
                None,
                Latency::<0>,
            )
        };
    }
}
