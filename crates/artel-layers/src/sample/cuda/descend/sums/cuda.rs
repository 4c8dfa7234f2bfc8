//! Device functions of a descent: sums over ranges of places, and what they say.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Weights, ranges and the state of a row.
#[cutile::module]
pub mod descend_code {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    fn all<const B: i32>(value: i32) -> Tile<i32, { [B] }> {
        let tile: Tile<i32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    fn number<const B: i32>(value: f32) -> Tile<f32, { [B] }> {
        let tile: Tile<f32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
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

    unsafe fn load_f32(base: *mut f32, at: i32, after: Token) -> f32 {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        let value: Tile<f32, { [1] }> =
            unsafe { gather(base, count_from::<1>(at), always, 0.0f32, after) };
        tile_to_scalar(value.reshape(const_shape![]))
    }

    unsafe fn load_f64(base: *mut f64, at: i32, after: Token) -> Tile<f64, { [1] }> {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        unsafe { gather(base, count_from::<1>(at), always, 0.0f64, after) }
    }

    unsafe fn store_word(base: *mut i32, at: i32, value: i32, after: Token) {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        let value: Tile<i32, { [1] }> = count_from::<1>(value);
        // SAFETY: the caller vouches for the place.
        unsafe { scatter(base, count_from::<1>(at), always, value, after) };
    }

    unsafe fn store_number(base: *mut f64, at: i32, value: Tile<f64, { [1] }>, after: Token) {
        let always: Tile<bool, { [1] }> = constant(true, const_shape![1]);
        // SAFETY: the caller vouches for the place.
        unsafe { scatter(base, count_from::<1>(at), always, value, after) };
    }

    /// Tokens of 16 ranges before, added up over the chunks in order.
    unsafe fn sums_of_ranges<const CP: i32>(
        partials: *mut f64,
        first: i32,
        chunks: i32,
        after: Token,
    ) -> Tile<f64, { [16] }> {
        let chunk: Tile<i32, { [CP] }> = count_from::<CP>(0i32);
        let range: Tile<i32, { [16] }> = count_from::<16>(0i32);
        let always: Tile<bool, { [16] }> = constant(true, const_shape![16]);
        let mask: Tile<bool, { [CP, 16] }> = block_mask(below(chunk, chunks), always);
        let offsets: Tile<i64, { [CP, 16] }> = block_offsets(count_from::<CP>(first), 16i32, range);
        // SAFETY: the caller vouches for the row.
        let sums: Tile<f64, { [CP, 16] }> = unsafe { gather_block(partials, offsets, mask, after) };
        let nothing: Tile<f64, { [CP, 16] }> = constant(0.0f64, const_shape![CP, 16]);
        reduce_sum(select(mask, sums, nothing), 0i32)
    }

    /// The range in which `base` and the sums up to there reach the target, else the last range with
    /// anything; and `base` with the sums of the ranges before.
    fn reached(
        sums: Tile<f64, { [16] }>,
        base: Tile<f64, { [1] }>,
        target: Tile<f64, { [1] }>,
        strict: i32,
    ) -> (i32, Tile<f64, { [1] }>) {
        let range: Tile<i32, { [16] }> = count_from::<16>(0i32);
        let nothing: Tile<f64, { [16] }> = constant(0.0f64, const_shape![16]);
        let up_to: Tile<f64, { [16] }> = scan_sum(sums, 0i32, reverse::Forward, 0.0f64);
        let up_to: Tile<f64, { [16] }> = up_to + base.broadcast(const_shape![16]);
        let target: Tile<f64, { [16] }> = target.broadcast(const_shape![16]);
        let above: Tile<bool, { [16] }> = gt_tile(up_to, target);
        let level: Tile<bool, { [16] }> = eq_tile(up_to, target);
        let loose: Tile<bool, { [16] }> = lt_tile(all::<16>(strict), all::<16>(1i32));
        let is_reached: Tile<bool, { [16] }> = above | (level & loose);
        let has_any: Tile<bool, { [16] }> = gt_tile(sums, nothing);
        let first: Tile<i32, { [16] }> = select(is_reached & has_any, range, all::<16>(16i32));
        let first: Tile<i32, { [] }> = reduce_min(first, 0i32);
        let first: i32 = tile_to_scalar(first);
        let last: Tile<i32, { [] }> = reduce_max(select(has_any, range, all::<16>(0i32)), 0i32);
        let last: i32 = tile_to_scalar(last);
        let mut chosen: i32 = first;
        if first > 15i32 {
            chosen = last;
        }
        let before: Tile<bool, { [16] }> = lt_tile(range, all::<16>(chosen));
        let passed: Tile<f64, { [1, 16] }> =
            select(before, sums, nothing).reshape(const_shape![1, 16]);
        let passed: Tile<f64, { [1] }> = reduce_sum(passed, 1i32);
        (chosen, base + passed)
    }
    /// What the ranges of the launch before say: `words` are the place so far, the place up to which a
    /// row is cut and whether it is; `numbers` the sum before the place, the target and the total of the
    /// stage. `before`: stage, whether its first level, its part of a place, the shift, whether its last.
    unsafe fn resolve<const CP: i32>(
        partials: *mut f64,
        words: [i32; 5],
        numbers: [Tile<f64, { [1] }>; 3],
        wanted: [Tile<f64, { [1] }>; 3],
        before: [i32; 5],
        place: [i32; 2],
        after: Token,
    ) -> ([i32; 5], [Tile<f64, { [1] }>; 3], i32) {
        // SAFETY: the launch before wrote the partial sums of this row.
        let sums: Tile<f64, { [16] }> =
            unsafe { sums_of_ranges::<CP>(partials, place[0], place[1], after) };
        let mut base: Tile<f64, { [1] }> = numbers[0];
        let mut target: Tile<f64, { [1] }> = numbers[1];
        let mut total: Tile<f64, { [1] }> = numbers[2];
        if before[1] == 1i32 {
            total = reduce_sum(sums.reshape(const_shape![1, 16]), 1i32);
            base = constant(0.0f64, const_shape![1]);
            target = wanted[2] * total;
            if before[0] == 0i32 {
                target = wanted[0];
            }
            if before[0] == 1i32 {
                target = wanted[1] * total;
            }
        }
        let strict: i32 = max(before[0] - 1i32, 0i32);
        let (range, base): (i32, Tile<f64, { [1] }>) = reached(sums, base, target, strict);
        let mut high: i32 = words[0];
        let mut low: i32 = words[1];
        if before[2] == 0i32 {
            high = high + range * before[3];
        } else {
            low = low + range * before[3];
        }
        let mut cut_high: i32 = words[2];
        let mut cut_low: i32 = words[3];
        let mut is_cut: i32 = words[4];
        let token: i32 = low;
        if before[4] == 1i32 {
            let one: Tile<f64, { [1] }> = constant(1.0f64, const_shape![1]);
            let nothing: Tile<f64, { [1] }> = constant(0.0f64, const_shape![1]);
            // The row is cut if top-k is less than all candidates, or top-p less than 1.
            let mut cuts: Tile<bool, { [1] }> = lt_tile(wanted[1], one);
            if before[0] == 0i32 {
                cuts = gt_tile(wanted[0], nothing) & lt_tile(wanted[0], total);
            }
            let cuts: Tile<i32, { [1] }> = select(cuts, all::<1>(1i32), all::<1>(0i32));
            let cuts: i32 = tile_to_scalar(cuts.reshape(const_shape![]));
            if cuts == 1i32 {
                cut_high = high;
                cut_low = low;
                is_cut = 1i32;
            }
            high = 0i32;
            low = 0i32;
        }
        ([high, low, cut_high, cut_low, is_cut], [base, target, total], token)
    }

    fn minus_infinity<const B: i32>() -> Tile<f32, { [B] }> {
        let bits: Tile<i32, { [B] }> = all::<B>(-8388608i32);
        bitcast(bits)
    }

    /// `(logit - largest) / temperature`, zero for the largest itself even where it is infinite.
    fn relative_to<const B: i32>(
        logit: Tile<f32, { [B] }>,
        largest: f32,
        temperature: f32,
    ) -> Tile<f32, { [B] }> {
        let largest: Tile<f32, { [B] }> = number::<B>(largest);
        let temperature: Tile<f32, { [B] }> = number::<B>(temperature);
        let relative: Tile<f32, { [B] }> =
            divf(logit - largest, temperature, rounding::NearestEven, ftz::Disabled);
        select(eq_tile(logit, largest), number::<B>(0.0f32), relative)
    }

    /// A row of `B` weights in the line of each one's range, zeros elsewhere.
    fn by_range<const B: i32>(
        weight: Tile<f32, { [B] }>,
        range: Tile<i32, { [B] }>,
    ) -> Tile<f64, { [16, B] }> {
        let weight: Tile<f64, { [B] }> = convert_tile(weight);
        let weight: Tile<f64, { [1, B] }> = weight.reshape(const_shape![1, B]);
        let range: Tile<i32, { [1, B] }> = range.reshape(const_shape![1, B]);
        let each: Tile<i32, { [16, 1] }> = count_from::<16>(0i32).reshape(const_shape![16, 1]);
        let is_here: Tile<bool, { [16, B] }> =
            eq_tile(range.broadcast(const_shape![16, B]), each.broadcast(const_shape![16, B]));
        let nothing: Tile<f64, { [16, B] }> = constant(0.0f64, const_shape![16, B]);
        select(is_here, weight.broadcast(const_shape![16, B]), nothing)
    }

    /// Adds up the tokens of 16 ranges of places in one chunk.
    pub unsafe fn sums_of_chunk<const V: i32, const C: i32, const B: i32>(
        logits: *mut f32,
        words: [i32; 5],
        level: [i32; 3],
        row: i32,
        first: i32,
        numbers: [f32; 3],
        after: Token,
    ) -> Tile<f64, { [16] }> {
        let is_ranked: i32 = max(words[4], min(2i32 - level[0], 1i32));
        let mut sums: Tile<f64, { [16, B] }> = constant(0.0f64, const_shape![16, B]);
        for turn in 0i32..(C / B) {
            let id: Tile<i32, { [B] }> = count_from::<B>(first + turn * B);
            let is_id: Tile<bool, { [1, B] }> = below(id, V).reshape(const_shape![1, B]);
            let offsets: Tile<i64, { [1, B] }> = block_offsets(count_from::<1>(row), V, id);
            // SAFETY: logits is `[rows, V]`.
            let logit: Tile<f32, { [1, B] }> =
                unsafe { gather_block(logits, offsets, is_id, after) };
            let logit: Tile<f32, { [B] }> = logit.reshape(const_shape![B]);
            let relative: Tile<f32, { [B] }> = relative_to::<B>(logit, numbers[0], numbers[1]);
            let least: Tile<f32, { [B] }> = minus_infinity::<B>();
            // NaN compares as false, so it is dropped with the improbable.
            let is_candidate: Tile<bool, { [B] }> = below(id, V)
                & gt_tile(relative, least)
                & ge_tile(relative, number::<B>(numbers[2]));
            let rank: Tile<i32, { [B] }> = bitcast(relative);
            let rank: Tile<i32, { [B] }> = rank & all::<B>(2147483647i32);
            let is_kept: Tile<bool, { [B] }> = lt_tile(rank, all::<B>(words[2]))
                | (eq_tile(rank, all::<B>(words[2])) & le_tile(id, all::<B>(words[3])));
            let rank: Tile<i32, { [B] }> = rank * all::<B>(is_ranked);
            let mut part: Tile<i32, { [B] }> = rank;
            let mut prefix: Tile<i32, { [B] }> = all::<B>(words[0]);
            let mut is_near: Tile<bool, { [B] }> = is_candidate & is_kept;
            if level[1] == 1i32 {
                is_near = is_near & eq_tile(rank, prefix);
                part = id;
                prefix = all::<B>(words[1]);
            }
            let shift: Tile<i32, { [B] }> = all::<B>(level[2]);
            let four: Tile<i32, { [B] }> = all::<B>(4i32);
            let range: Tile<i32, { [B] }> = part >> shift;
            let is_near: Tile<bool, { [B] }> =
                is_near & eq_tile(range >> four, (prefix >> shift) >> four);
            let range: Tile<i32, { [B] }> = range & all::<B>(15i32);
            let mut weight: Tile<f32, { [B] }> = weight_of::<B>(relative);
            if level[0] == 0i32 {
                weight = number::<B>(1.0f32);
            }
            let weight: Tile<f32, { [B] }> = select(is_near, weight, number::<B>(0.0f32));
            sums = sums + by_range::<B>(weight, range);
        }
        reduce_sum(sums, 1i32)
    }

    /// The state that the launch before left of a row.
    unsafe fn load_state(
        words: *mut i32,
        numbers: *mut f64,
        at: i32,
        after: Token,
    ) -> ([i32; 5], [Tile<f64, { [1] }>; 3]) {
        // SAFETY: the caller vouches for the row.
        let state: [i32; 5] = unsafe {
            [
                load_i32(words, at * 8i32, after),
                load_i32(words, at * 8i32 + 1i32, after),
                load_i32(words, at * 8i32 + 2i32, after),
                load_i32(words, at * 8i32 + 3i32, after),
                load_i32(words, at * 8i32 + 4i32, after),
            ]
        };
        // SAFETY: as above.
        let sums: [Tile<f64, { [1] }>; 3] = unsafe {
            [
                load_f64(numbers, at * 4i32, after),
                load_f64(numbers, at * 4i32 + 1i32, after),
                load_f64(numbers, at * 4i32 + 2i32, after),
            ]
        };
        (state, sums)
    }

    /// Leaves the state of a row to the next launch.
    pub unsafe fn store_state(
        words: *mut i32,
        numbers: *mut f64,
        at: i32,
        state: [i32; 5],
        sums: [Tile<f64, { [1] }>; 3],
        after: Token,
    ) {
        // SAFETY: the caller vouches for the row.
        unsafe {
            store_word(words, at * 8i32, state[0], after);
            store_word(words, at * 8i32 + 1i32, state[1], after);
            store_word(words, at * 8i32 + 2i32, state[2], after);
            store_word(words, at * 8i32 + 3i32, state[3], after);
            store_word(words, at * 8i32 + 4i32, state[4], after);
            store_number(numbers, at * 4i32, sums[0], after);
            store_number(numbers, at * 4i32 + 1i32, sums[1], after);
            store_number(numbers, at * 4i32 + 2i32, sums[2], after);
        }
    }

    /// What the targets of a row are made of: top-k, top-p and the random number.
    unsafe fn load_wanted(
        top_ks: *mut i32,
        top_ps: *mut f32,
        uniforms: *mut f64,
        row: i32,
        after: Token,
    ) -> [Tile<f64, { [1] }>; 3] {
        // SAFETY: the caller vouches for the row.
        let top_k: i32 = unsafe { load_i32(top_ks, row, after) };
        let top_k: Tile<f64, { [1] }> = convert_tile(all::<1>(top_k));
        // SAFETY: as above.
        let top_p: f32 = unsafe { load_f32(top_ps, row, after) };
        let top_p: Tile<f64, { [1] }> = convert_tile(number::<1>(top_p));
        // SAFETY: as above.
        let uniform: Tile<f64, { [1] }> = unsafe { load_f64(uniforms, row, after) };
        [top_k, top_p, uniform]
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

    /// Writes the sums of one chunk of one row.
    pub unsafe fn store_sums(partials: *mut f64, at: i32, sums: Tile<f64, { [16] }>, after: Token) {
        let range: Tile<i32, { [16] }> = count_from::<16>(at * 16i32);
        let always: Tile<bool, { [16] }> = constant(true, const_shape![16]);
        // SAFETY: the caller vouches for the chunk.
        unsafe { scatter(partials, range, always, sums, after) };
    }

    /// The state of a row after the level before, of which `before` says what [`resolve`] takes; without
    /// one, that of a row that is not cut. `place`: the row's state, its first partial sums, chunks, and
    /// the row. When there is no `stage` after it, the token that was found is written.
    pub unsafe fn take_over<const CP: i32>(
        partials: *mut f64,
        words: *mut i32,
        numbers: *mut f64,
        top_ks: *mut i32,
        top_ps: *mut f32,
        uniforms: *mut f64,
        tokens: *mut i32,
        before: [i32; 5],
        place: [i32; 4],
        stage: i32,
        after: Token,
    ) -> ([i32; 5], [Tile<f64, { [1] }>; 3]) {
        let zero: Tile<f64, { [1] }> = constant(0.0f64, const_shape![1]);
        let mut state: [i32; 5] = [0i32, 0i32, 2147483647i32, 2147483647i32, 0i32];
        let mut sums: [Tile<f64, { [1] }>; 3] = [zero, zero, zero];
        if before[0] >= 0i32 {
            // SAFETY: the caller vouches for the row.
            let (read, known): ([i32; 5], [Tile<f64, { [1] }>; 3]) =
                unsafe { load_state(words, numbers, place[0], after) };
            // SAFETY: as above.
            let wanted: [Tile<f64, { [1] }>; 3] =
                unsafe { load_wanted(top_ks, top_ps, uniforms, place[3], after) };
            let sums_at: [i32; 2] = [place[1], place[2]];
            // SAFETY: as above.
            let (found, added, token): ([i32; 5], [Tile<f64, { [1] }>; 3], i32) =
                unsafe { resolve::<CP>(partials, read, known, wanted, before, sums_at, after) };
            state = found;
            sums = added;
            if stage < 0i32 {
                // SAFETY: as above.
                unsafe { store_word(tokens, place[3], token, after) };
            }
        }
        (state, sums)
    }
}
