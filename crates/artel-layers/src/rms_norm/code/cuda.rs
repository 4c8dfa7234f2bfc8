//! Device functions of RMS norm.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Rows in registers: loaded, added to the residual stream, normalised.
#[cutile::module]
pub mod norm_code {
    use crate::linear::parts::cuda::part_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Offsets of the norm rows of a block: `HEADS` of `H` elements lie from column `FIRST` on in each
    /// row of `STRIDE` elements.
    pub fn offsets_of_rows<
        const R: i32,
        const C: i32,
        const H: i32,
        const HEADS: i32,
        const STRIDE: i32,
        const FIRST: i32,
    >(
        row: Tile<i32, { [R] }>,
        column: Tile<i32, { [C] }>,
    ) -> Tile<i64, { [R, C] }> {
        let first: Tile<i32, { [C] }> = broadcast_scalar(FIRST, const_shape![C]);
        let column: Tile<i32, { [C] }> = column + first;
        let mut offsets: Tile<i64, { [R, C] }> = block_offsets(row, STRIDE, column);
        if HEADS > 1i32 {
            let heads: Tile<i32, { [R] }> = broadcast_scalar(HEADS, const_shape![R]);
            let width: Tile<i32, { [R] }> = broadcast_scalar(H, const_shape![R]);
            let token: Tile<i32, { [R] }> = row / heads;
            let start: Tile<i32, { [R] }> = (row - token * heads) * width;
            let start: Tile<i64, { [R] }> = exti(start);
            let start: Tile<i64, { [R, 1] }> = start.reshape(const_shape![R, 1]);
            offsets = block_offsets(token, STRIDE, column) + start.broadcast(const_shape![R, C]);
        }
        offsets
    }

    /// A block of a matrix as float32, zero outside of the mask.
    pub unsafe fn load_values<T: ElementType, const R: i32, const C: i32>(
        base: *mut T,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the offsets.
        let values: Tile<T, { [R, C] }> = unsafe { gather_block(base, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    /// The rows to normalise; with `ADD` those of `hidden` plus what is added, rounded to the numbers of
    /// `hidden` and stored there: with 1 rows of `delta`, with more the sums of `PARTS` parts of
    /// `part_rows` rows, rounded to its numbers.
    pub unsafe fn load_hidden<
        T: ElementType,
        A: ElementType,
        const H: i32,
        const R: i32,
        const C: i32,
        const ADD: i32,
        const PARTS: i32,
    >(
        hidden: *mut T,
        delta: *mut A,
        sums: *mut f32,
        part_rows: i32,
        row: Tile<i32, { [R] }>,
        column: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let offsets: Tile<i64, { [R, C] }> = block_offsets(row, H, column);
        // SAFETY: the caller vouches for rows and columns.
        let mut values: Tile<f32, { [R, C] }> =
            unsafe { load_values(hidden, offsets, mask, after) };
        if ADD > 0i32 {
            let mut added: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
            if PARTS > 1i32 {
                let width: Tile<i32, { [R] }> = broadcast_scalar(H, const_shape![R]);
                let width: Tile<i64, { [R] }> = exti(width);
                let start: Tile<i64, { [R] }> = exti(row);
                // SAFETY: as above.
                let sum: Tile<f32, { [R, C] }> = unsafe {
                    sum_parts::<R, C, PARTS, H>(sums, start * width, part_rows, column, mask, after)
                };
                let sum: Tile<A, { [R, C] }> = convert_tile(sum);
                added = convert_tile(sum);
            }
            if PARTS == 1i32 {
                // SAFETY: as above.
                added = unsafe { load_values(delta, offsets, mask, after) };
            }
            let sum: Tile<T, { [R, C] }> = convert_tile(values + added);
            // SAFETY: as above.
            unsafe { scatter_block(hidden, offsets, mask, sum, after) };
            values = convert_tile(sum);
        }
        values
    }

    /// Rows over the root of their mean square, times the weight.
    pub unsafe fn normalized<const R: i32, const C: i32, const H: i32>(
        values: Tile<f32, { [R, C] }>,
        weight: *mut f32,
        column: Tile<i32, { [C] }>,
        epsilon: f32,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the weight has `H` elements, which nobody writes.
        let weight: Tile<f32, { [C] }> =
            unsafe { gather(weight, column, below(column, H), 0.0f32, new_token_unordered()) };
        let weight: Tile<f32, { [1, C] }> = weight.reshape(const_shape![1, C]);
        let squares: Tile<f32, { [R] }> = reduce_sum(values * values, 1i32);
        let width: i32 = H;
        let width: f32 = convert_scalar(width);
        let width: Tile<f32, { [R] }> = broadcast_scalar(width, const_shape![R]);
        let epsilon: Tile<f32, { [R] }> = broadcast_scalar(epsilon, const_shape![R]);
        let root: Tile<f32, { [R] }> =
            sqrt(squares / width + epsilon, rounding::NearestEven, ftz::Disabled);
        let one: Tile<f32, { [R] }> = constant(1.0f32, const_shape![R]);
        let scale: Tile<f32, { [R, 1] }> = (one / root).reshape(const_shape![R, 1]);
        weight.broadcast(const_shape![R, C]) * (values * scale.broadcast(const_shape![R, C]))
    }
}
