//! Scores of the selected experts to weights.

/// Scores of the selected experts to weights.
#[cutile::module]
pub mod weight_code {
    use crate::router::cuda::numbers::number_code::*;
    use crate::router::cuda::scores::score_code::*;
    use cutile::core::*;

    /// Weights of the selected, `factor` times: 0 the score, 1 divided by the sum, 2 divided by the
    /// sum and a little, 3 softmax, 4 sigmoid, 5 the logit. An unusable logit weighs nothing.
    pub fn weigh<const KP: i32, const TOP_K: i32, const WEIGHING: i32>(
        score: Tile<f32, { [KP] }>,
        factor: f32,
    ) -> Tile<f32, { [KP] }> {
        let zero: Tile<f32, { [KP] }> = constant(0.0f32, const_shape![KP]);
        let one: Tile<f32, { [KP] }> = constant(1.0f32, const_shape![KP]);
        let unusable: Tile<f32, { [KP] }> = constant(-3.4028234663852886e38f32, const_shape![KP]);
        let usable: Tile<bool, { [KP] }> = is_below::<KP, TOP_K>() & gt_tile(score, unusable);
        let mut weight: Tile<f32, { [KP] }> = select(usable, score, zero);
        if WEIGHING == 1i32 {
            let sum: Tile<f32, { [KP] }> = total::<KP>(weight);
            weight = weight / select(gt_tile(sum, zero), sum, one);
        }
        if WEIGHING == 2i32 {
            let epsilon: Tile<f32, { [KP] }> = constant(1e-20f32, const_shape![KP]);
            weight = weight / (total::<KP>(weight) + epsilon);
        }
        if WEIGHING == 3i32 {
            let best: i32 = largest::<KP>(order_key::<KP>(select(usable, score, unusable)));
            let best: Tile<i32, { [KP] }> = broadcast_scalar(best, const_shape![KP]);
            let best: Tile<f64, { [KP] }> = ftof(from_order_key::<KP>(best), rounding::NearestEven);
            let wide: Tile<f64, { [KP] }> = ftof(weight, rounding::NearestEven);
            let share: Tile<f32, { [KP] }> = select(usable, exponential::<KP>(wide - best), zero);
            let sum: Tile<f32, { [KP] }> = total::<KP>(share);
            weight = share / select(gt_tile(sum, zero), sum, one);
        }
        if WEIGHING == 4i32 {
            weight = select(usable, sigmoid::<KP>(score), zero);
        }
        let factor: Tile<f32, { [KP] }> = broadcast_scalar(factor, const_shape![KP]);
        weight * factor
    }
}
