//! The sum over a token's pairs inside the second product.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Summing where the last block of a column has written.
#[cutile::module]
pub mod decode_sum {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use crate::grouped_gemm::decode::routes::cuda::decode_routes::*;
    use cutile::core::*;

    /// The last block of a column to come here sums the pairs of every token, slot by slot, and
    /// leaves the column's counter at 0. With `BIAS`, `biases` `[NE, H]` are added to rows first. `tile`
    /// is the column tile.
    pub unsafe fn sum_pairs<
        A: ElementType,
        const BN: i32,
        const H: i32,
        const NE: i32,
        const TOP_K: i32,
        const PACKED: i32,
        const BIAS: i32,
    >(
        out: *mut A,
        rows: *mut A,
        counters: *mut i32,
        ids: *mut i32,
        weights: *mut f32,
        biases: *mut f32,
        tokens: i32,
        tile: i32,
        written: Token,
    ) {
        let arrivals: [i32; 2] = [tile, get_num_tile_blocks().0];
        // SAFETY: every column has a counter, to which all of its blocks come; ids hold all pairs.
        let (is_last, counted): (bool, Token) =
            unsafe { count_arrival(counters, arrivals, ids, tokens * TOP_K, written) };
        if is_last {
            for token in 0i32..tokens {
                // SAFETY: the rows of all pairs have been written.
                unsafe {
                    sum_token::<A, BN, H, NE, TOP_K, PACKED, BIAS>(
                        out,
                        rows,
                        ids,
                        weights,
                        biases,
                        token,
                        tile * BN,
                        counted,
                    )
                };
            }
        }
    }

    /// Counts an arrival at one of `counters`; whether it was the last, for which everything that was
    /// written before the others is there behind the token, and which leaves the counter at 0. `arrivals`
    /// is the counter and how many come to it; `known` are `count` numbers that the block has read before.
    pub unsafe fn count_arrival(
        counters: *mut i32,
        arrivals: [i32; 2],
        known: *mut i32,
        count: i32,
        written: Token,
    ) -> (bool, Token) {
        let place: PointerTile<*mut i32, { [] }> = pointer_to_tile(counters);
        let at: Tile<i32, { [] }> = scalar_to_tile(arrivals[0]);
        let place: PointerTile<*mut i32, { [] }> = place.offset_tile(at);
        // SAFETY: the caller vouches for the numbers.
        let one: i32 = unsafe { one_of_all(known, count, written) };
        let one: Tile<i32, { [] }> = scalar_to_tile(one);
        // SAFETY: the caller vouches for the counter. The order makes all that was written visible to the last.
        let (arrived, counted): (Tile<i32, { [] }>, Token) = unsafe {
            atomic_rmw_tko(
                place,
                one,
                atomic::Add,
                ordering::AcqRel,
                scope::Device,
                None,
                Some(written),
            )
        };
        let arrived: i32 = tile_to_scalar(arrived);
        let is_last: bool = arrived == arrivals[1] - 1i32;
        if is_last {
            // SAFETY: nobody else comes to this counter any more.
            unsafe { store_i32(counters, arrivals[0], 0i32, counted) };
        }
        (is_last, counted)
    }

    /// The number 1, which one thread has only when every thread of the block has written what stands before the
    /// token. One thread adds to a counter for all of them, and the compiler does not make it wait for
    /// the others; a maximum over more numbers than there are threads does. The numbers `known` are
    /// at hand, and fewer than are compared, so that -1 is always among them.
    unsafe fn one_of_all(known: *mut i32, count: i32, written: Token) -> i32 {
        let at: Tile<i32, { [1024] }> = iota(const_shape![1024]);
        let inside: Tile<bool, { [1024] }> = lt_tile(at, splat::<1024>(count));
        let inside: Tile<bool, { [1024] }> = inside & lt_tile(at, splat::<1024>(1023i32));
        // SAFETY: the mask keeps inside the numbers.
        let known: Tile<i32, { [1024] }> = unsafe { gather(known, at, inside, -1i32, written) };
        let most: i32 = tile_to_scalar(reduce_max(known, 0i32));
        let mut one: i32 = 1i32;
        if most < -1i32 {
            one = 0i32;
        }
        one
    }

    /// Weight of one pair: a number, or the bfloat16 in the low half of a packed pair.
    pub unsafe fn weight_of<const PACKED: i32>(weights: *mut f32, pair: i32, after: Token) -> f32 {
        // SAFETY: the caller vouches for the pair.
        let mut weight: f32 = unsafe { load_f32(weights, pair, after) };
        if PACKED == 1i32 {
            let packed: Tile<f32, { [] }> = scalar_to_tile(weight);
            let packed: Tile<i32, { [] }> = bitcast(packed);
            let sixteen: Tile<i32, { [] }> = scalar_to_tile(16i32);
            let wide: Tile<f32, { [] }> = bitcast(packed << sixteen);
            weight = tile_to_scalar(wide);
        }
        weight
    }

    /// `BN` columns of one token.
    pub unsafe fn sum_token<
        A: ElementType,
        const BN: i32,
        const H: i32,
        const NE: i32,
        const TOP_K: i32,
        const PACKED: i32,
        const BIAS: i32,
    >(
        out: *mut A,
        rows: *mut A,
        ids: *mut i32,
        weights: *mut f32,
        biases: *mut f32,
        token: i32,
        first: i32,
        after: Token,
    ) {
        let columns: Tile<i32, { [BN] }> = count_from::<BN>(first);
        let inside: Tile<bool, { [BN] }> = lt_tile(columns, splat::<BN>(H));
        let mut sum: Tile<f32, { [BN] }> = constant(0.0f32, const_shape![BN]);
        for slot in 0i32..TOP_K {
            let pair: i32 = token * TOP_K + slot;
            // SAFETY: ids and weights hold all pairs.
            let expert: i32 = unsafe { expert_of::<NE, PACKED>(ids, pair, after) };
            // SAFETY: as above.
            let weight: f32 = unsafe { weight_of::<PACKED>(weights, pair, after) };
            let weight: Tile<f32, { [BN] }> = broadcast_scalar(weight, const_shape![BN]);
            let computed: Tile<bool, { [BN] }> = ge_tile(splat::<BN>(expert), splat::<BN>(0i32));
            let computed: Tile<bool, { [BN] }> = computed & inside;
            let at: Tile<i32, { [BN] }> = columns + splat::<BN>(pair * H);
            // SAFETY: every pair has a row; one without an expert is not read.
            let y: Tile<A, { [BN] }> = unsafe { gather_known(rows, at, computed, after) };
            let mut y: Tile<f32, { [BN] }> = convert_tile(y);
            if BIAS == 1i32 {
                let at: Tile<i32, { [BN] }> = columns + splat::<BN>(expert * H);
                // SAFETY: every expert has `H` biases; of no expert none are read.
                let bias: Tile<f32, { [BN] }> =
                    unsafe { gather(biases, at, computed, 0.0f32, after) };
                y = y + bias;
            }
            let with: Tile<f32, { [BN] }> =
                fma(y, weight, sum, rounding::NearestEven, ftz::Disabled);
            sum = select(computed, with, sum);
        }
        let sum: Tile<A, { [BN] }> = convert_tile(sum);
        // SAFETY: `out` has a row for every token.
        unsafe { scatter(out, columns + splat::<BN>(token * H), inside, sum, after) };
    }
}
