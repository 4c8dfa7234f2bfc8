//! Rows that a product of few rows leaves in parts, `[parts, rows, N]` in float32.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{Arguments, DeviceSlice};

use crate::LayersError;

/// Device functions that read such rows.
#[cutile::module]
pub mod part_code {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Some columns of `R` rows of part `part`; anything outside of the mask.
    unsafe fn part_of<const R: i32, const C: i32, const N: i32>(
        sums: *mut f32,
        part: i32,
        rows: i32,
        offsets: Tile<i64, { [R, C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let first: Tile<i32, { [R, C] }> = broadcast_scalar(part * rows, const_shape![R, C]);
        let first: Tile<i64, { [R, C] }> = exti(first);
        let width: Tile<i32, { [R, C] }> = broadcast_scalar(N, const_shape![R, C]);
        let width: Tile<i64, { [R, C] }> = exti(width);
        // SAFETY: the caller vouches for the part.
        unsafe { gather_block(sums, offsets + first * width, mask, after) }
    }

    /// Some columns of `R` rows, their `PARTS` parts (1, 2, 4 or 8) added in order; zero outside of the
    /// mask. `starts`: where rows begin in the first part, which has `rows` rows of `N` elements.
    pub unsafe fn sum_parts<const R: i32, const C: i32, const PARTS: i32, const N: i32>(
        sums: *mut f32,
        starts: Tile<i64, { [R] }>,
        rows: i32,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let starts: Tile<i64, { [R, 1] }> = starts.reshape(const_shape![R, 1]);
        let column: Tile<i64, { [C] }> = exti(columns);
        let column: Tile<i64, { [1, C] }> = column.reshape(const_shape![1, C]);
        let offsets: Tile<i64, { [R, C] }> =
            starts.broadcast(const_shape![R, C]) + column.broadcast(const_shape![R, C]);
        // SAFETY: the caller vouches for the rows, which every part has.
        let mut sum: Tile<f32, { [R, C] }> = unsafe { gather_block(sums, offsets, mask, after) };
        if PARTS > 1i32 {
            // SAFETY: as above.
            let a: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 1i32, rows, offsets, mask, after) };
            sum = sum + a;
        }
        if PARTS > 2i32 {
            // SAFETY: as above.
            let a: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 2i32, rows, offsets, mask, after) };
            // SAFETY: as above.
            let b: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 3i32, rows, offsets, mask, after) };
            sum = sum + a + b;
        }
        if PARTS > 4i32 {
            // SAFETY: as above.
            let a: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 4i32, rows, offsets, mask, after) };
            // SAFETY: as above.
            let b: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 5i32, rows, offsets, mask, after) };
            // SAFETY: as above.
            let c: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 6i32, rows, offsets, mask, after) };
            // SAFETY: as above.
            let d: Tile<f32, { [R, C] }> =
                unsafe { part_of::<R, C, N>(sums, 7i32, rows, offsets, mask, after) };
            sum = sum + a + b + c + d;
        }
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, sum, nothing)
    }
}

/// What a product left in parts, whose number kernels know.
#[derive(Debug, Clone, Copy)]
pub struct PartSums<'a> {
    /// `[parts, rows, N]`.
    pub sums: DeviceSlice<'a, f32>,
    /// Rows of a part, at least those in use.
    pub rows: usize,
}

impl PartSums<'_> {
    /// Checks that there are `parts` parts with `tokens` rows of `width`, and adds them to the arguments
    /// of a kernel.
    pub(crate) fn argument(
        &self,
        arguments: Arguments,
        parts: usize,
        [tokens, width]: [usize; 2],
    ) -> Result<Arguments, LayersError> {
        LayersError::check_shape("rows of parts", tokens.max(self.rows), self.rows)?;
        self.sums.expect_len("sums of parts", parts * self.rows * width)?;
        Ok(arguments.slice(self.sums))
    }
}
