//! Device functions of a draw: places, weights as whole numbers, and what a row asks for.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// What all kernels of a draw share.
#[cutile::module]
pub mod draw_code {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    pub fn all<const B: i32>(value: i32) -> Tile<i32, { [B] }> {
        let tile: Tile<i32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    pub fn number<const B: i32>(value: f32) -> Tile<f32, { [B] }> {
        let tile: Tile<f32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    pub fn wide<const B: i32>(value: i64) -> Tile<i64, { [B] }> {
        let tile: Tile<i64, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    pub fn sum_of<const B: i32>(values: Tile<i64, { [B] }>) -> i64 {
        let sum: Tile<i64, { [] }> = reduce_sum(values, 0i32);
        tile_to_scalar(sum)
    }

    pub fn count_of<const B: i32>(is: Tile<bool, { [B] }>) -> i32 {
        let count: Tile<i32, { [] }> = reduce_sum(select(is, all::<B>(1i32), all::<B>(0i32)), 0i32);
        tile_to_scalar(count)
    }

    fn product<const B: i32>(a: Tile<f32, { [B] }>, b: f32) -> Tile<f32, { [B] }> {
        mulf(a, number::<B>(b), rounding::NearestEven, ftz::Disabled)
    }

    fn step<const B: i32>(
        series: Tile<f32, { [B] }>,
        r: Tile<f32, { [B] }>,
        coefficient: f32,
    ) -> Tile<f32, { [B] }> {
        let scaled: Tile<f32, { [B] }> = mulf(series, r, rounding::NearestEven, ftz::Disabled);
        addf(scaled, number::<B>(coefficient), rounding::NearestEven, ftz::Disabled)
    }

    /// `e^x` for `x <= 0`, to the last bit what the CPU has: each product is rounded before it is
    /// added.
    fn weight_of<const B: i32>(x: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        let bounded: Tile<f32, { [B] }> = max_tile(x, number::<B>(-87.33655f32));
        let shifted: Tile<f32, { [B] }> = addf(
            product::<B>(bounded, 1.442695f32),
            number::<B>(12582912.0f32),
            rounding::NearestEven,
            ftz::Disabled,
        );
        let n: Tile<f32, { [B] }> =
            subf(shifted, number::<B>(12582912.0f32), rounding::NearestEven, ftz::Disabled);
        let high: Tile<f32, { [B] }> = product::<B>(n, 0.6933594f32);
        let low: Tile<f32, { [B] }> = product::<B>(n, -0.00021219444f32);
        let r: Tile<f32, { [B] }> = subf(bounded, high, rounding::NearestEven, ftz::Disabled);
        let r: Tile<f32, { [B] }> = subf(r, low, rounding::NearestEven, ftz::Disabled);
        let series: Tile<f32, { [B] }> = number::<B>(0.0001984127f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 0.0013888889f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 0.008333334f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 0.041666668f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 0.16666667f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 0.5f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 1.0f32);
        let series: Tile<f32, { [B] }> = step::<B>(series, r, 1.0f32);
        // The integer sits in the low bits of `shifted`; 1262485504 are the bits of 1.5 * 2^23.
        let bits: Tile<i32, { [B] }> = bitcast(shifted);
        let exponent: Tile<i32, { [B] }> = bits - all::<B>(1262485504i32 - 127i32);
        let power: Tile<f32, { [B] }> = bitcast(exponent << all::<B>(23i32));
        let weight: Tile<f32, { [B] }> = mulf(series, power, rounding::NearestEven, ftz::Disabled);
        select(lt_tile(x, number::<B>(-87.33655f32)), number::<B>(0.0f32), weight)
    }

    /// The weights of some tokens in units of 2^-42, zero for those that do not count.
    pub fn units<const B: i32>(
        relative: Tile<f32, { [B] }>,
        counts: Tile<bool, { [B] }>,
    ) -> Tile<i64, { [B] }> {
        let scaled: Tile<f32, { [B] }> = product::<B>(weight_of::<B>(relative), 4398046511104.0f32);
        let scaled: Tile<f32, { [B] }> = select(counts, scaled, number::<B>(0.0f32));
        ftoi(scaled, rounding::NearestIntToZero)
    }

    pub fn minus_infinity<const B: i32>() -> Tile<f32, { [B] }> {
        let bits: Tile<i32, { [B] }> = all::<B>(-8388608i32);
        bitcast(bits)
    }

    /// `(logit - largest) / temperature`, zero for the largest itself even where it is infinite.
    /// `about`: the largest logit, the temperature and `ln(min_p)`.
    pub fn relative_of<const B: i32>(
        logit: Tile<f32, { [B] }>,
        about: [f32; 3],
    ) -> Tile<f32, { [B] }> {
        let largest: Tile<f32, { [B] }> = number::<B>(about[0]);
        let temperature: Tile<f32, { [B] }> = number::<B>(about[1]);
        let mut relative: Tile<f32, { [B] }> = logit - largest;
        // The commonest temperature needs no division, which is most of the work.
        if about[1] != 1.0f32 {
            relative = divf(relative, temperature, rounding::NearestEven, ftz::Disabled);
        }
        select(eq_tile(logit, largest), number::<B>(0.0f32), relative)
    }

    /// Whether a token can be chosen at all. NaN compares as false, so it is dropped with the improbable.
    pub fn is_candidate<const B: i32>(
        relative: Tile<f32, { [B] }>,
        about: [f32; 3],
    ) -> Tile<bool, { [B] }> {
        gt_tile(relative, minus_infinity::<B>()) & ge_tile(relative, number::<B>(about[2]))
    }

    /// How much less probable than the largest a token is, as a number that orders as it does.
    pub fn rank_of<const B: i32>(relative: Tile<f32, { [B] }>) -> Tile<i32, { [B] }> {
        let bits: Tile<i32, { [B] }> = bitcast(relative);
        bits & all::<B>(2147483647i32)
    }

    /// The bin of a rank: 64 for each power of two from 2^-9 on.
    pub fn bin_of<const B: i32>(rank: Tile<i32, { [B] }>) -> Tile<i32, { [B] }> {
        let bin: Tile<i32, { [B] }> = (rank >> all::<B>(17i32)) - all::<B>(7552i32);
        max_tile(min_tile(bin, all::<B>(1023i32)), all::<B>(0i32))
    }

    /// The least probable rank of a bin.
    pub fn end_of_bin(bin: i32) -> i32 {
        let mut end: i32 = 2147483647i32;
        if bin < 1023i32 {
            end = (bin + 7553i32) * 131072i32 - 1i32;
        }
        end
    }

    /// The rank of one logit.
    pub fn rank_of_one(logit: f32, about: [f32; 3]) -> i32 {
        let rank: Tile<i32, { [1] }> = rank_of::<1>(relative_of::<1>(number::<1>(logit), about));
        tile_to_scalar(rank.reshape(const_shape![]))
    }

    /// Adds to some counters; what they were before.
    pub unsafe fn add_to<E: ElementType, const B: i32>(
        counters: *mut E,
        at: Tile<i32, { [B] }>,
        amount: Tile<E, { [B] }>,
        mask: Tile<bool, { [B] }>,
        after: Token,
    ) -> Tile<E, { [B] }> {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(counters);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.offset_tile(at);
        // SAFETY: the caller vouches for every unmasked counter.
        let (before, _added): (Tile<E, { [B] }>, Token) = unsafe {
            atomic_rmw_tko(
                pointer,
                amount,
                atomic::Add,
                ordering::Relaxed,
                scope::Device,
                Some(mask),
                Some(after),
            )
        };
        before
    }

    /// Counts and weighs some tokens of a row in its bins.
    pub unsafe fn add_to_bins<const B: i32>(
        bins: *mut i32,
        bin_sums: *mut i64,
        row: i32,
        rank: Tile<i32, { [B] }>,
        amount: Tile<i64, { [B] }>,
        mask: Tile<bool, { [B] }>,
        after: Token,
    ) {
        let bin: Tile<i32, { [B] }> = bin_of::<B>(rank) + all::<B>(row * 1024i32);
        // SAFETY: each row has a counter for each bin.
        let _before: Tile<i32, { [B] }> =
            unsafe { add_to::<i32, B>(bins, bin, all::<B>(1i32), mask, after) };
        // SAFETY: as above.
        let _before: Tile<i64, { [B] }> =
            unsafe { add_to::<i64, B>(bin_sums, bin, amount, mask, after) };
    }

    /// Some neighbouring logits of a row, negative infinity beyond the vocabulary.
    pub unsafe fn read_chunk<L: ElementType, const V: i32, const C: i32>(
        logits: *mut L,
        row: i32,
        id: Tile<i32, { [C] }>,
        after: Token,
    ) -> Tile<f32, { [C] }> {
        let is_id: Tile<bool, { [C] }> = below(id, V);
        let offsets: Tile<i64, { [1, C] }> = block_offsets(count_from::<1>(row), V, id);
        let mask: Tile<bool, { [1, C] }> = is_id.reshape(const_shape![1, C]);
        // SAFETY: logits is `[rows, V]`.
        let logit: Tile<L, { [1, C] }> = unsafe { gather_block(logits, offsets, mask, after) };
        let logit: Tile<f32, { [1, C] }> = convert_tile(logit);
        select(is_id, logit.reshape(const_shape![C]), minus_infinity::<C>())
    }

    pub unsafe fn load_f32(base: *mut f32, at: i32, after: Token) -> f32 {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        let value: Tile<f32, { [1] }> =
            unsafe { gather(base, count_from::<1>(at), always, 0.0f32, after) };
        tile_to_scalar(value.reshape(const_shape![]))
    }

    pub unsafe fn store_i32(base: *mut i32, at: i32, value: i32, after: Token) {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        unsafe { scatter(base, count_from::<1>(at), always, all::<1>(value), after) };
    }

    pub unsafe fn store_i64(base: *mut i64, at: i32, value: i64, after: Token) {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        unsafe { scatter(base, count_from::<1>(at), always, wide::<1>(value), after) };
    }

    /// 1 for a row with a temperature and a token to choose; and its largest logit, its temperature and
    /// `ln(min_p)`.
    pub unsafe fn row_numbers(
        temperatures: *mut f32,
        largests: *mut f32,
        least: *mut f32,
        row: i32,
        after: Token,
    ) -> (i32, [f32; 3]) {
        // SAFETY: the caller vouches for the row.
        let temperature: f32 = unsafe { load_f32(temperatures, row, after) };
        // SAFETY: as above.
        let largest: f32 = unsafe { load_f32(largests, row, after) };
        // SAFETY: as above.
        let least: f32 = unsafe { load_f32(least, row, after) };
        let mut draws: i32 = 0i32;
        if temperature > 0.0f32 {
            if largest >= -3.4028235e38f32 {
                draws = 1i32;
            }
        }
        (draws, [largest, temperature, least])
    }

    /// Candidates of a row and their weight; and of those no less probable than the floor.
    pub unsafe fn totals<const CP: i32>(
        counts: *mut i32,
        sums: *mut i64,
        row: i32,
        chunks: i32,
        after: Token,
    ) -> ([i32; 2], [i64; 2]) {
        let chunk: Tile<i32, { [CP] }> = count_from::<CP>(0i32);
        let is_chunk: Tile<bool, { [CP] }> = below(chunk, chunks);
        let place: Tile<i32, { [CP] }> = count_from::<CP>(2i32 * row * chunks);
        let further: Tile<i32, { [CP] }> = place + all::<CP>(chunks);
        // SAFETY: there is a place for each chunk, twice.
        let count: Tile<i32, { [CP] }> = unsafe { gather(counts, place, is_chunk, 0i32, after) };
        // SAFETY: as above.
        let near: Tile<i32, { [CP] }> = unsafe { gather(counts, further, is_chunk, 0i32, after) };
        // SAFETY: as above.
        let sum: Tile<i64, { [CP] }> = unsafe { gather(sums, place, is_chunk, 0i64, after) };
        // SAFETY: as above.
        let near_sum: Tile<i64, { [CP] }> = unsafe { gather(sums, further, is_chunk, 0i64, after) };
        let count: Tile<i32, { [] }> = reduce_sum(count, 0i32);
        let near: Tile<i32, { [] }> = reduce_sum(near, 0i32);
        let (count, near): (i32, i32) = (tile_to_scalar(count), tile_to_scalar(near));
        ([count, near], [sum_of::<CP>(sum), sum_of::<CP>(near_sum)])
    }

    /// Units that the most probable tokens of `total` units have to reach for a share `p` of them.
    pub fn units_of_share(share: f32, total: i64) -> i64 {
        let total: Tile<i64, { [1] }> = wide::<1>(total);
        let all_units: Tile<f64, { [1] }> = itof(total, rounding::NearestEven);
        let share: Tile<f64, { [1] }> = convert_tile(number::<1>(share));
        let wanted: Tile<i64, { [1] }> = ftoi(ceil(share * all_units), rounding::NearestIntToZero);
        let wanted: Tile<i64, { [1] }> = max_tile(min_tile(wanted, total), wide::<1>(1i64));
        tile_to_scalar(wanted.reshape(const_shape![]))
    }

    /// Units that are to be reached by the token that a random number means, of `total`.
    pub unsafe fn units_of_draw(uniforms: *mut f64, row: i32, total: i64, after: Token) -> i64 {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the row.
        let uniform: Tile<f64, { [1] }> =
            unsafe { gather(uniforms, count_from::<1>(row), always, 0.0f64, after) };
        let total: Tile<i64, { [1] }> = wide::<1>(total);
        let all_units: Tile<f64, { [1] }> = itof(total, rounding::NearestEven);
        let passed: Tile<i64, { [1] }> =
            ftoi(floor(uniform * all_units), rounding::NearestIntToZero);
        let wanted: Tile<i64, { [1] }> = min_tile(passed + wide::<1>(1i64), total);
        tile_to_scalar(wanted.reshape(const_shape![]))
    }

    /// Whether top-k leaves out some of the candidates.
    pub fn cuts_by_count(top_k: i32, candidates: i32) -> i32 {
        let mut cuts: i32 = 0i32;
        if top_k > 0i32 {
            if top_k < candidates {
                cuts = 1i32;
            }
        }
        cuts
    }

    /// Whether top-p may leave out some.
    pub fn cuts_by_share(top_p: f32) -> i32 {
        let mut cuts: i32 = 0i32;
        if top_p < 1.0f32 {
            cuts = 1i32;
        }
        cuts
    }

    /// The least probable rank that has to be in bins: that of the floor if there are enough tokens
    /// from there on, else the last of all; -1 for a row that is not cut.
    pub fn limit_of(found: [i32; 2], sum: [i64; 2], top_k: i32, top_p: f32, floor: i32) -> i32 {
        let mut limit: i32 = -1i32;
        let mut suffices: i32 = 0i32;
        if cuts_by_count(top_k, found[0]) == 1i32 {
            limit = 2147483647i32;
            if found[1] >= top_k {
                suffices = 1i32;
            }
        } else {
            if cuts_by_share(top_p) == 1i32 {
                limit = 2147483647i32;
                if sum[1] >= units_of_share(top_p, sum[0]) {
                    suffices = 1i32;
                }
            }
        }
        if suffices == 1i32 {
            limit = floor;
        }
        limit
    }
}
