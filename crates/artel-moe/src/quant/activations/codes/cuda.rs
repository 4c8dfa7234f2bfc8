//! Device code that makes FP8 codes and their scales.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Device functions that quantise, also for kernels that compute what they quantise.
#[cutile::module]
pub mod quantize_code {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// One scale for each `WIDTH` columns: the largest magnitude over 448, from `least` to `most`.
    pub fn group_scales<const R: i32, const C: i32, const GROUPS: i32, const WIDTH: i32>(
        values: Tile<f32, { [R, C] }>,
        least: f32,
        most: f32,
    ) -> Tile<f32, { [R, GROUPS] }> {
        let magnitudes: Tile<f32, { [R, GROUPS, WIDTH] }> =
            absf(values).reshape(const_shape![R, GROUPS, WIDTH]);
        let largest: Tile<f32, { [R, GROUPS] }> = reduce_max(magnitudes, 2i32);
        let e4m3_max: Tile<f32, { [R, GROUPS] }> = constant(448.0f32, const_shape![R, GROUPS]);
        let scales: Tile<f32, { [R, GROUPS] }> =
            divf(largest, e4m3_max, rounding::NearestEven, ftz::Disabled);
        let least: Tile<f32, { [R, GROUPS] }> = broadcast_scalar(least, const_shape![R, GROUPS]);
        let most: Tile<f32, { [R, GROUPS] }> = broadcast_scalar(most, const_shape![R, GROUPS]);
        let scales: Tile<f32, { [R, GROUPS] }> = maxf(scales, least, nan::Disabled, ftz::Disabled);
        minf(scales, most, nan::Disabled, ftz::Disabled)
    }

    /// Values over their group's scale, rounded to the nearest e4m3 number.
    ///
    /// One division a group: with the rounded reciprocal, the remainder of the first quotient
    /// corrects it to the rounded quotient, as a division would (Markstein). Where a group holds
    /// an infinity all codes become NaN, as all its products would.
    pub fn to_codes<const R: i32, const C: i32, const GROUPS: i32, const WIDTH: i32>(
        values: Tile<f32, { [R, C] }>,
        scales: Tile<f32, { [R, GROUPS] }>,
    ) -> Tile<f8e4m3fn, { [R, C] }> {
        let one: Tile<f32, { [R, GROUPS] }> = constant(1.0f32, const_shape![R, GROUPS]);
        let inverses: Tile<f32, { [R, GROUPS] }> =
            divf(one, scales, rounding::NearestEven, ftz::Disabled);
        let inverses: Tile<f32, { [R, GROUPS, 1] }> = inverses.reshape(const_shape![R, GROUPS, 1]);
        let inverse: Tile<f32, { [R, GROUPS, WIDTH] }> =
            inverses.broadcast(const_shape![R, GROUPS, WIDTH]);
        let minus: Tile<f32, { [R, GROUPS, 1] }> = negf(scales).reshape(const_shape![R, GROUPS, 1]);
        let minus: Tile<f32, { [R, GROUPS, WIDTH] }> =
            minus.broadcast(const_shape![R, GROUPS, WIDTH]);
        let values: Tile<f32, { [R, GROUPS, WIDTH] }> =
            values.reshape(const_shape![R, GROUPS, WIDTH]);
        let quotient: Tile<f32, { [R, GROUPS, WIDTH] }> =
            mulf(values, inverse, rounding::NearestEven, ftz::Disabled);
        let remainder: Tile<f32, { [R, GROUPS, WIDTH] }> =
            fma(quotient, minus, values, rounding::NearestEven, ftz::Disabled);
        let quotient: Tile<f32, { [R, GROUPS, WIDTH] }> =
            fma(remainder, inverse, quotient, rounding::NearestEven, ftz::Disabled);
        // The correction of a negative zero is a positive one.
        let zero: Tile<f32, { [R, GROUPS, WIDTH] }> =
            constant(0.0f32, const_shape![R, GROUPS, WIDTH]);
        let is_zero: Tile<bool, { [R, GROUPS, WIDTH] }> = eq_tile(values, zero);
        let quotient: Tile<f32, { [R, GROUPS, WIDTH] }> = select(is_zero, values, quotient);
        let codes: Tile<f8e4m3fn, { [R, GROUPS, WIDTH] }> = convert_tile(quotient);
        codes.reshape(const_shape![R, C])
    }

    /// Stores the scales of the groups from `group` on; consecutive rows lie `row_stride` apart,
    /// consecutive groups `group_stride`.
    pub unsafe fn store_scales<const R: i32, const GROUPS: i32>(
        out: *mut f32,
        scales: Tile<f32, { [R, GROUPS] }>,
        rows: Tile<i32, { [R] }>,
        is_row: Tile<bool, { [R] }>,
        group: i32,
        groups: i32,
        row_stride: i32,
        group_stride: i32,
        after: Token,
    ) {
        let group: Tile<i32, { [GROUPS] }> = count_from::<GROUPS>(group);
        let is_group: Tile<bool, { [GROUPS] }> = below(group, groups);
        let stride: Tile<i32, { [GROUPS] }> = broadcast_scalar(group_stride, const_shape![GROUPS]);
        let offsets: Tile<i64, { [R, GROUPS] }> = block_offsets(rows, row_stride, group * stride);
        // SAFETY: the caller vouches for rows and strides.
        unsafe { scatter_block(out, offsets, block_mask(is_row, is_group), scales, after) };
    }
}
