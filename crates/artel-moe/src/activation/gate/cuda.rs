//! Device code of the activation functions, in float32.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// The functions of one gate and one up value, and how rows hold the two.
#[cutile::module]
pub mod gate_code {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// `min(value, limit)` that lets NaN through.
    pub fn at_most<const R: i32, const C: i32>(
        value: Tile<f32, { [R, C] }>,
        limit: f32,
    ) -> Tile<f32, { [R, C] }> {
        let limit: Tile<f32, { [R, C] }> = broadcast_scalar(limit, const_shape![R, C]);
        select(cmpf(value, limit, predicate::GreaterThan, cmp_ordering::Ordered), limit, value)
    }

    /// `max(value, limit)` that lets NaN through.
    pub fn at_least<const R: i32, const C: i32>(
        value: Tile<f32, { [R, C] }>,
        limit: f32,
    ) -> Tile<f32, { [R, C] }> {
        let limit: Tile<f32, { [R, C] }> = broadcast_scalar(limit, const_shape![R, C]);
        select(cmpf(value, limit, predicate::LessThan, cmp_ordering::Ordered), limit, value)
    }

    /// Every element times a number.
    pub fn times<const R: i32, const C: i32>(
        value: Tile<f32, { [R, C] }>,
        factor: f32,
    ) -> Tile<f32, { [R, C] }> {
        value * broadcast_scalar(factor, const_shape![R, C])
    }

    /// Every element plus a number.
    pub fn plus<const R: i32, const C: i32>(
        value: Tile<f32, { [R, C] }>,
        term: f32,
    ) -> Tile<f32, { [R, C] }> {
        value + broadcast_scalar(term, const_shape![R, C])
    }

    /// `1 / value` to the last place but one.
    pub fn inverse<const R: i32, const C: i32>(
        value: Tile<f32, { [R, C] }>,
    ) -> Tile<f32, { [R, C] }> {
        let one: Tile<f32, { [R, C] }> = constant(1.0f32, const_shape![R, C]);
        divf(one, value, rounding::Approx, ftz::Disabled)
    }

    /// `1 / (1 + e^-x)`.
    pub fn sigmoid<const R: i32, const C: i32>(x: Tile<f32, { [R, C] }>) -> Tile<f32, { [R, C] }> {
        inverse::<R, C>(plus::<R, C>(exp(negf(x)), 1.0f32))
    }

    /// `1 + erf(x)`: Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
    pub fn one_plus_erf<const R: i32, const C: i32>(
        x: Tile<f32, { [R, C] }>,
    ) -> Tile<f32, { [R, C] }> {
        let t: Tile<f32, { [R, C] }> =
            inverse::<R, C>(plus::<R, C>(times::<R, C>(absf(x), 0.3275911f32), 1.0f32));
        let sum: Tile<f32, { [R, C] }> =
            plus::<R, C>(times::<R, C>(t, 1.0614054f32), -1.4531521f32);
        let sum: Tile<f32, { [R, C] }> = plus::<R, C>(sum * t, 1.4214138f32);
        let sum: Tile<f32, { [R, C] }> = plus::<R, C>(sum * t, -0.28449672f32);
        let sum: Tile<f32, { [R, C] }> = plus::<R, C>(sum * t, 0.2548296f32);
        let tail: Tile<f32, { [R, C] }> = sum * t * exp(negf(x * x));
        let two: Tile<f32, { [R, C] }> = constant(2.0f32, const_shape![R, C]);
        let zero: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        let is_negative: Tile<bool, { [R, C] }> =
            cmpf(x, zero, predicate::LessThan, cmp_ordering::Ordered);
        select(is_negative, tail, two - tail)
    }

    /// `x / (1 + e^-x)`, in half of the instructions of `x * sigmoid(x)`: the end of a product waits
    /// for them.
    pub fn silu<const R: i32, const C: i32>(x: Tile<f32, { [R, C] }>) -> Tile<f32, { [R, C] }> {
        let power: Tile<f32, { [R, C] }> = exp2(times::<R, C>(x, -1.442695f32), ftz::Enabled);
        divf(x, plus::<R, C>(power, 1.0f32), rounding::Approx, ftz::Enabled)
    }

    /// `bound * tanh(x / bound)`.
    pub fn bounded<const R: i32, const C: i32>(
        x: Tile<f32, { [R, C] }>,
        bound: f32,
    ) -> Tile<f32, { [R, C] }> {
        let divisor: Tile<f32, { [R, C] }> = broadcast_scalar(bound, const_shape![R, C]);
        times::<R, C>(tanh(x / divisor), bound)
    }

    /// `KIND` 0: silu, 1: its arguments limited to `a`, 2: gelu, 3: gelu with tanh, 4: gpt-oss's
    /// with steepness `a` and limit `b`, 5: silu limited to `a`, 6: bounded by `a`, 7: up bounded
    /// by `b` too, 8: squared relu, 9: none. The host names them.
    pub fn gated<const KIND: i32, const R: i32, const C: i32>(
        g: Tile<f32, { [R, C] }>,
        u: Tile<f32, { [R, C] }>,
        a: f32,
        b: f32,
    ) -> Tile<f32, { [R, C] }> {
        let mut out: Tile<f32, { [R, C] }> = g;
        if KIND == 0i32 {
            out = silu::<R, C>(g) * u;
        }
        if KIND == 1i32 {
            let up: Tile<f32, { [R, C] }> = at_most::<R, C>(at_least::<R, C>(u, 0.0f32 - a), a);
            out = silu::<R, C>(at_most::<R, C>(g, a)) * up;
        }
        if KIND == 2i32 {
            let erf: Tile<f32, { [R, C] }> = one_plus_erf::<R, C>(times::<R, C>(g, 0.70710677f32));
            out = times::<R, C>(g, 0.5f32) * erf * u;
        }
        if KIND == 3i32 {
            // 1 + tanh(y) = 2 * sigmoid(2y), with y = sqrt(2/pi) * (g + 0.044715 g^3).
            let cubic: Tile<f32, { [R, C] }> = g + times::<R, C>(g, 0.044715f32) * g * g;
            out = g * sigmoid::<R, C>(times::<R, C>(cubic, 1.5957692f32)) * u;
        }
        if KIND == 4i32 {
            let up: Tile<f32, { [R, C] }> = at_most::<R, C>(at_least::<R, C>(u, 0.0f32 - b), b);
            let gate: Tile<f32, { [R, C] }> = at_most::<R, C>(g, b);
            out = plus::<R, C>(up, 1.0f32) * gate * sigmoid::<R, C>(times::<R, C>(gate, a));
        }
        if KIND == 5i32 {
            let up: Tile<f32, { [R, C] }> = at_most::<R, C>(at_least::<R, C>(u, 0.0f32 - a), a);
            out = at_most::<R, C>(silu::<R, C>(g), a) * up;
        }
        if KIND == 6i32 {
            out = bounded::<R, C>(g, a) * sigmoid::<R, C>(g) * u;
        }
        if KIND == 7i32 {
            out = bounded::<R, C>(g, a) * sigmoid::<R, C>(g) * bounded::<R, C>(u, b);
        }
        if KIND == 8i32 {
            let positive: Tile<f32, { [R, C] }> = at_least::<R, C>(g, 0.0f32);
            out = positive * positive * u;
        }
        out
    }

    /// The half of 32-bit words from bit `FROM` on, as float32.
    pub fn half_of_words<T: ElementType, const FROM: i32, const R: i32, const C: i32>(
        words: Tile<i32, { [R, C] }>,
    ) -> Tile<f32, { [R, C] }> {
        let shift: Tile<i32, { [R, C] }> = broadcast_scalar(FROM, const_shape![R, C]);
        let low: Tile<i32, { [R, C] }> = constant(65535i32, const_shape![R, C]);
        let bits: Tile<i16, { [R, C] }> = trunci((words >> shift) & low, overflow::NoUnsignedWrap);
        let values: Tile<T, { [R, C] }> = bitcast(bits);
        convert_tile(values)
    }

    /// Activates `R` rows by `C` columns; zero outside. `LAYOUT` 0: gates, then ups; 1: in turns,
    /// read as 32-bit words; 2: gates alone. `input` and `words` are the same memory. `BIASED`: rows of
    /// the blocks where rows of gates and ups get the `biases` of their block's expert, else 0.
    pub unsafe fn load_activated<
        T: ElementType,
        const KIND: i32,
        const LAYOUT: i32,
        const I: i32,
        const BIASED: i32,
        const R: i32,
        const C: i32,
    >(
        input: *mut T,
        words: *mut i32,
        row: Tile<i32, { [R] }>,
        column: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        a: f32,
        b: f32,
        expert_ids: *mut i32,
        biases: *mut f32,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let mut gate: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        let mut up: Tile<f32, { [R, C] }> = constant(1.0f32, const_shape![R, C]);
        if LAYOUT == 0i32 {
            let second: Tile<i32, { [C] }> = column + broadcast_scalar(I, const_shape![C]);
            let offsets: Tile<i64, { [R, C] }> = block_offsets(row, 2i32 * I, column);
            // SAFETY: the caller vouches for the rows, `2 * I` numbers each.
            let g: Tile<T, { [R, C] }> = unsafe { gather_block(input, offsets, mask, after) };
            let offsets: Tile<i64, { [R, C] }> = block_offsets(row, 2i32 * I, second);
            // SAFETY: as above.
            let u: Tile<T, { [R, C] }> = unsafe { gather_block(input, offsets, mask, after) };
            gate = convert_tile(g);
            up = convert_tile(u);
            if BIASED > 0i32 {
                let nobody: Tile<i32, { [R] }> = constant(-1i32, const_shape![R]);
                let rows_of_block: Tile<i32, { [R] }> = broadcast_scalar(BIASED, const_shape![R]);
                let is_row: Tile<bool, { [R] }> = gt_tile(row, nobody);
                // SAFETY: every block in use has an expert.
                let expert: Tile<i32, { [R] }> =
                    unsafe { gather(expert_ids, row / rows_of_block, is_row, -1i32, after) };
                let is_row: Tile<bool, { [R] }> = is_row & gt_tile(expert, nobody);
                let mask: Tile<bool, { [R, C] }> = block_mask(is_row, below(column, I));
                let offsets: Tile<i64, { [R, C] }> = block_offsets(expert, 2i32 * I, column);
                // SAFETY: every expert has `2 * I` biases.
                let of_gates: Tile<f32, { [R, C] }> =
                    unsafe { gather_block(biases, offsets, mask, after) };
                let offsets: Tile<i64, { [R, C] }> = block_offsets(expert, 2i32 * I, second);
                // SAFETY: as above.
                let of_ups: Tile<f32, { [R, C] }> =
                    unsafe { gather_block(biases, offsets, mask, after) };
                gate = gate + of_gates;
                up = up + of_ups;
            }
        }
        if LAYOUT == 1i32 {
            let offsets: Tile<i64, { [R, C] }> = block_offsets(row, I, column);
            // SAFETY: as above: `I` words a row.
            let both: Tile<i32, { [R, C] }> = unsafe { gather_block(words, offsets, mask, after) };
            gate = half_of_words::<T, 0, R, C>(both);
            up = half_of_words::<T, 16, R, C>(both);
        }
        if LAYOUT == 2i32 {
            let offsets: Tile<i64, { [R, C] }> = block_offsets(row, I, column);
            // SAFETY: the caller vouches for the rows, `I` numbers each.
            let g: Tile<T, { [R, C] }> = unsafe { gather_block(input, offsets, mask, after) };
            gate = convert_tile(g);
        }
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, gated::<KIND, R, C>(gate, up, a, b), nothing)
    }
}
