//! Logits to scores.

/// Logits to scores.
#[cutile::module]
pub mod score_code {
    use crate::router::cuda::numbers::number_code::*;
    use cutile::core::*;

    /// Finite scores: 0 softmax, 1 sigmoid, 2 square root of softplus, 3 the logit, or the smallest
    /// number for one that is not finite. Columns without a logit score anything.
    pub fn scores<const NE: i32, const SCORING: i32>(
        logit: Tile<f32, { [NE] }>,
        real: Tile<bool, { [NE] }>,
    ) -> Tile<f32, { [NE] }> {
        let zero: Tile<f32, { [NE] }> = constant(0.0f32, const_shape![NE]);
        let bits: Tile<i32, { [NE] }> = bitcast(logit);
        let all_but_sign: Tile<i32, { [NE] }> = constant(2147483647i32, const_shape![NE]);
        let magnitude: Tile<i32, { [NE] }> = bits & all_but_sign;
        let infinity: Tile<i32, { [NE] }> = constant(2139095040i32, const_shape![NE]);
        let is_nan: Tile<bool, { [NE] }> = gt_tile(magnitude, infinity);
        let mut score: Tile<f32, { [NE] }> = logit;
        if SCORING == 0i32 {
            score = softmax::<NE>(logit, real & gt_tile(magnitude, infinity), real);
        }
        if SCORING == 1i32 {
            score = select(is_nan, zero, sigmoid::<NE>(logit));
        }
        if SCORING == 2i32 {
            let is_bad: Tile<bool, { [NE] }> = is_nan | eq_tile(bits, infinity);
            score = select(is_bad, zero, sqrt_softplus::<NE>(logit));
        }
        if SCORING == 3i32 {
            let unusable: Tile<f32, { [NE] }> =
                constant(-3.4028234663852886e38f32, const_shape![NE]);
            score = select(ge_tile(magnitude, infinity), unusable, logit);
        }
        score
    }

    /// `exp(x - max) / sum`; zero everywhere when a NaN or an infinite maximum spoils the sum.
    pub fn softmax<const NE: i32>(
        logit: Tile<f32, { [NE] }>,
        is_nan: Tile<bool, { [NE] }>,
        real: Tile<bool, { [NE] }>,
    ) -> Tile<f32, { [NE] }> {
        let lowest: Tile<i32, { [NE] }> = constant(-2147483647i32, const_shape![NE]);
        let highest: Tile<i32, { [NE] }> = constant(2147483647i32, const_shape![NE]);
        let key: Tile<i32, { [NE] }> = select(real, order_key::<NE>(logit), lowest);
        let key: Tile<i32, { [NE] }> = select(is_nan, highest, key);
        let best: Tile<i32, { [NE] }> = broadcast_scalar(largest::<NE>(key), const_shape![NE]);
        // A key of infinity or above, or of minus infinity or below, is no maximum.
        let infinity: Tile<i32, { [NE] }> = constant(2139095040i32, const_shape![NE]);
        let minus_infinity: Tile<i32, { [NE] }> = constant(-2139095041i32, const_shape![NE]);
        let usable: Tile<bool, { [NE] }> = lt_tile(best, infinity) & gt_tile(best, minus_infinity);
        let difference: Tile<f32, { [NE] }> = logit - from_order_key::<NE>(best);
        let wide: Tile<f64, { [NE] }> = ftof(difference, rounding::NearestEven);
        let zero: Tile<f32, { [NE] }> = constant(0.0f32, const_shape![NE]);
        let exponential: Tile<f32, { [NE] }> = select(real, exponential::<NE>(wide), zero);
        let wide: Tile<f64, { [NE] }> = ftof(exponential, rounding::NearestEven);
        let sum: Tile<f64, { [] }> = reduce_sum(wide, 0i32);
        let sum: Tile<f32, { [] }> = ftof(sum, rounding::NearestEven);
        let sum: f32 = tile_to_scalar(sum);
        let sum: Tile<f32, { [NE] }> = broadcast_scalar(sum, const_shape![NE]);
        select(usable, quotient::<NE>(exponential, sum), zero)
    }

    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid<const B: i32>(x: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        let one: Tile<f32, { [B] }> = constant(1.0f32, const_shape![B]);
        let minus: Tile<f32, { [B] }> = negf(x);
        let wide: Tile<f64, { [B] }> = ftof(minus, rounding::NearestEven);
        quotient::<B>(one, one + exponential::<B>(wide))
    }

    /// `sqrt(ln(1 + exp(x)))`.
    pub fn sqrt_softplus<const B: i32>(x: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        let zero: Tile<f32, { [B] }> = constant(0.0f32, const_shape![B]);
        let magnitude: Tile<f32, { [B] }> = absf(x);
        let minus: Tile<f32, { [B] }> = negf(magnitude);
        let wide: Tile<f64, { [B] }> = ftof(minus, rounding::NearestEven);
        let small: Tile<f32, { [B] }> = exponential::<B>(wide);
        let small: Tile<f64, { [B] }> = ftof(small, rounding::NearestEven);
        let one: Tile<f64, { [B] }> = constant(1.0f64, const_shape![B]);
        let half: Tile<f64, { [B] }> = constant(0.5f64, const_shape![B]);
        // Below 2^-28 the sum would lose bits, and two terms of the series are exact enough.
        let limit: Tile<f64, { [B] }> = constant(3.725290298461914e-9f64, const_shape![B]);
        let series: Tile<f64, { [B] }> = small - small * small * half;
        let direct: Tile<f64, { [B] }> = log(one + small);
        let logarithm: Tile<f64, { [B] }> = select(lt_tile(small, limit), series, direct);
        let logarithm: Tile<f32, { [B] }> = ftof(logarithm, rounding::NearestEven);
        let positive: Tile<f32, { [B] }> = select(gt_tile(x, zero), x, zero);
        sqrt(positive + logarithm, rounding::NearestEven, ftz::Disabled)
    }
}
