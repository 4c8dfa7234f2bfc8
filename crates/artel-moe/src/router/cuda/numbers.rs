//! Numbers in registers: keys, exact exponentials and quotients, reductions.

/// Numbers in registers: keys, exact exponentials and quotients, reductions.
#[cutile::module]
pub mod number_code {
    use cutile::core::*;

    /// Integers in the order of the numbers; both zeros become one.
    pub fn order_key<const B: i32>(x: Tile<f32, { [B] }>) -> Tile<i32, { [B] }> {
        let bits: Tile<i32, { [B] }> = bitcast(x);
        let magnitude: Tile<i32, { [B] }> = constant(2147483647i32, const_shape![B]);
        let shift: Tile<i32, { [B] }> = constant(31i32, const_shape![B]);
        let key: Tile<i32, { [B] }> = bits ^ ((bits >> shift) & magnitude);
        let zero: Tile<i32, { [B] }> = constant(0i32, const_shape![B]);
        let minus_zero: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        select(eq_tile(key, minus_zero), zero, key)
    }

    /// The number of a key.
    pub fn from_order_key<const B: i32>(key: Tile<i32, { [B] }>) -> Tile<f32, { [B] }> {
        let magnitude: Tile<i32, { [B] }> = constant(2147483647i32, const_shape![B]);
        let shift: Tile<i32, { [B] }> = constant(31i32, const_shape![B]);
        bitcast(key ^ ((key >> shift) & magnitude))
    }

    /// `exp(x)` rounded to the nearest float32, by a Taylor series around the nearest power of two.
    /// Not for NaN.
    pub fn exponential<const B: i32>(x: Tile<f64, { [B] }>) -> Tile<f32, { [B] }> {
        // Beyond these, float32 is zero or infinite.
        let low: Tile<f64, { [B] }> = constant(-110.0f64, const_shape![B]);
        let high: Tile<f64, { [B] }> = constant(90.0f64, const_shape![B]);
        let x: Tile<f64, { [B] }> = max_tile(x, low);
        let x: Tile<f64, { [B] }> = min_tile(x, high);
        // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
        let rounder: Tile<f64, { [B] }> = constant(6755399441055744.0f64, const_shape![B]);
        let log2_e: Tile<f64, { [B] }> = constant(1.4426950408889634f64, const_shape![B]);
        let shifted: Tile<f64, { [B] }> =
            fma(x, log2_e, rounder, rounding::NearestEven, ftz::Disabled);
        let minus_ln_2: Tile<f64, { [B] }> = constant(-0.6931471805599453f64, const_shape![B]);
        let whole: Tile<f64, { [B] }> = shifted - rounder;
        let r: Tile<f64, { [B] }> = fma(whole, minus_ln_2, x, rounding::NearestEven, ftz::Disabled);

        // The error of eleven terms is below 2^-46: one float32 in four million is rounded wrongly.
        let mut sum: Tile<f64, { [B] }> = constant(2.505210838544172e-8f64, const_shape![B]);
        sum = horner::<B>(sum, r, 2.755731922398589e-7f64);
        sum = horner::<B>(sum, r, 2.7557319223985893e-6f64);
        sum = horner::<B>(sum, r, 2.48015873015873e-5f64);
        sum = horner::<B>(sum, r, 1.984126984126984e-4f64);
        sum = horner::<B>(sum, r, 1.388888888888889e-3f64);
        sum = horner::<B>(sum, r, 8.333333333333333e-3f64);
        sum = horner::<B>(sum, r, 4.1666666666666664e-2f64);
        sum = horner::<B>(sum, r, 1.6666666666666666e-1f64);
        sum = horner::<B>(sum, r, 0.5f64);
        sum = horner::<B>(sum, r, 1.0f64);
        sum = horner::<B>(sum, r, 1.0f64);

        let exponent: Tile<i64, { [B] }> = bitcast(shifted);
        let mantissa_bits: Tile<i64, { [B] }> = constant(52i64, const_shape![B]);
        let exponent: Tile<i64, { [B] }> = exponent << mantissa_bits;
        let sum: Tile<i64, { [B] }> = bitcast(sum);
        let scaled: Tile<f64, { [B] }> = bitcast(sum + exponent);
        ftof(scaled, rounding::NearestEven)
    }

    pub fn horner<const B: i32>(
        sum: Tile<f64, { [B] }>,
        x: Tile<f64, { [B] }>,
        coefficient: f64,
    ) -> Tile<f64, { [B] }> {
        let coefficient: Tile<f64, { [B] }> = broadcast_scalar(coefficient, const_shape![B]);
        fma(sum, x, coefficient, rounding::NearestEven, ftz::Disabled)
    }

    /// `a / b` rounded to the nearest float32, for `b` of at least 1; 0 for infinite `b`.
    ///
    /// The quotient of two float32 is never so near to the middle of two float32 that the error of
    /// two Newton steps in float64 matters. The built-in division branches for each element.
    pub fn quotient<const B: i32>(
        a: Tile<f32, { [B] }>,
        b: Tile<f32, { [B] }>,
    ) -> Tile<f32, { [B] }> {
        let one: Tile<f32, { [B] }> = constant(1.0f32, const_shape![B]);
        // Scaled so that the reciprocal of a large number does not underflow.
        let small: Tile<f32, { [B] }> = constant(5.421010862427522e-20f32, const_shape![B]);
        let scaled: Tile<f32, { [B] }> = b * small;
        let seed: Tile<f32, { [B] }> = divf(one, scaled, rounding::Approx, ftz::Disabled);
        let seed: Tile<f64, { [B] }> = ftof(seed, rounding::NearestEven);
        let small: Tile<f64, { [B] }> = constant(5.421010862427522e-20f64, const_shape![B]);
        let seed: Tile<f64, { [B] }> = seed * small;
        let divisor: Tile<f64, { [B] }> = ftof(b, rounding::NearestEven);
        let one: Tile<f64, { [B] }> = constant(1.0f64, const_shape![B]);
        let minus: Tile<f64, { [B] }> = negf(divisor);
        let error: Tile<f64, { [B] }> = fma(minus, seed, one, rounding::NearestEven, ftz::Disabled);
        let inverse: Tile<f64, { [B] }> =
            fma(seed, error, seed, rounding::NearestEven, ftz::Disabled);
        let error: Tile<f64, { [B] }> =
            fma(minus, inverse, one, rounding::NearestEven, ftz::Disabled);
        let inverse: Tile<f64, { [B] }> =
            fma(inverse, error, inverse, rounding::NearestEven, ftz::Disabled);
        let dividend: Tile<f64, { [B] }> = ftof(a, rounding::NearestEven);
        let quotient: Tile<f32, { [B] }> = ftof(dividend * inverse, rounding::NearestEven);
        let infinity: Tile<i32, { [B] }> = constant(2139095040i32, const_shape![B]);
        let bits: Tile<i32, { [B] }> = bitcast(b);
        let zero: Tile<f32, { [B] }> = constant(0.0f32, const_shape![B]);
        select(eq_tile(bits, infinity), zero, quotient)
    }

    pub fn largest<const B: i32>(x: Tile<i32, { [B] }>) -> i32 {
        let largest: Tile<i32, { [] }> = reduce_max(x, 0i32);
        tile_to_scalar(largest)
    }

    pub fn smallest<const B: i32>(x: Tile<i32, { [B] }>) -> i32 {
        let smallest: Tile<i32, { [] }> = reduce_min(x, 0i32);
        tile_to_scalar(smallest)
    }

    /// The sum of all elements, in every element.
    pub fn total<const B: i32>(x: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        let sum: Tile<f32, { [] }> = reduce_sum(x, 0i32);
        let sum: f32 = tile_to_scalar(sum);
        broadcast_scalar(sum, const_shape![B])
    }

    /// Whether an element is one of the first `COUNT`.
    pub fn is_below<const B: i32, const COUNT: i32>() -> Tile<bool, { [B] }> {
        let number: Tile<i32, { [B] }> = iota(const_shape![B]);
        let count: Tile<i32, { [B] }> = broadcast_scalar(COUNT, const_shape![B]);
        lt_tile(number, count)
    }
}
