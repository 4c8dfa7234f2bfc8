//! Device functions that the products of small batches share.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Loads, scales, quantisation, and stores by row.
#[cutile::module]
pub mod decode_parts {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Waits for the kernel before and only then lets the next one start. What was there before
    /// this launch is so there for the next kernel too, before that one waits.
    pub unsafe fn wait_then_release<const PDL: i32>(before: Token) -> Token {
        let mut token: Token = before;
        if PDL == 1i32 {
            // SAFETY: the kernel was launched with programmatic serialisation.
            token = unsafe { gdc_wait_tko(Some(before)) };
            // SAFETY: a dependent kernel waits for this one to end before it reads its results.
            let _released: Token = unsafe { gdc_launch_dependents_tko(Some(token)) };
        }
        token
    }

    /// Lets the next kernel start and then waits for the one before.
    pub unsafe fn release_then_wait<const PDL: i32>(before: Token) -> Token {
        let mut token: Token = before;
        if PDL == 1i32 {
            // SAFETY: a dependent kernel waits for this one to end before it reads its results.
            let released: Token = unsafe { gdc_launch_dependents_tko(Some(before)) };
            // SAFETY: the kernel was launched with programmatic serialisation.
            token = unsafe { gdc_wait_tko(Some(released)) };
        }
        token
    }

    /// `B` times the same number.
    pub fn splat<const B: i32>(value: i32) -> Tile<i32, { [B] }> {
        let tile: Tile<i32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    /// `base[offset]`.
    pub unsafe fn load_f32(base: *mut f32, offset: i32, after: Token) -> f32 {
        let pointer: PointerTile<*mut f32, { [] }> = pointer_to_tile(base);
        let offset: Tile<i32, { [] }> = scalar_to_tile(offset);
        let pointer: PointerTile<*mut f32, { [] }> = pointer.offset_tile(offset);
        // SAFETY: the caller vouches for the offset.
        let (value, _read): (Tile<f32, { [] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                Some(after),
                Latency::<0>,
            )
        };
        tile_to_scalar(value)
    }

    /// Pointers to the first `BK` columns of some rows of a matrix with `size` columns.
    pub fn row_pointers<E: ElementType, const BM: i32, const BK: i32>(
        base: *mut E,
        rows: Tile<i32, { [BM] }>,
        size: i32,
    ) -> PointerTile<*mut E, { [BM, BK] }> {
        let from: Tile<i32, { [BM, 1] }> = (rows * splat::<BM>(size)).reshape(const_shape![BM, 1]);
        let from: Tile<i32, { [BM, BK] }> = from.broadcast(const_shape![BM, BK]);
        let within: Tile<i32, { [BK] }> = iota(const_shape![BK]);
        let within: Tile<i32, { [1, BK] }> = within.reshape(const_shape![1, BK]);
        let within: Tile<i32, { [BM, BK] }> = within.broadcast(const_shape![BM, BK]);
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut E, { [BM, BK] }> = pointer.broadcast(const_shape![BM, BK]);
        pointer.offset_tile(from + within)
    }

    /// `base[offset] = value`.
    pub unsafe fn store_i32(base: *mut i32, offset: i32, value: i32, after: Token) {
        let pointer: PointerTile<*mut i32, { [] }> = pointer_to_tile(base);
        let offset: Tile<i32, { [] }> = scalar_to_tile(offset);
        let pointer: PointerTile<*mut i32, { [] }> = pointer.offset_tile(offset);
        let value: Tile<i32, { [] }> = scalar_to_tile(value);
        // SAFETY: the caller vouches for the offset.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                value,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                Some(after),
                Latency::<0>,
            )
        };
    }

    /// `base[offsets[i]]` where `mask[i]`, anything elsewhere.
    pub unsafe fn gather_known<E: ElementType, const B: i32>(
        base: *mut E,
        offsets: Tile<i32, { [B] }>,
        mask: Tile<bool, { [B] }>,
        after: Token,
    ) -> Tile<E, { [B] }> {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every unmasked offset.
        let (values, _read): (Tile<E, { [B] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    /// `base[offsets[i]]` for every `i`.
    pub unsafe fn gather_all<E: ElementType, const B: i32>(
        base: *mut E,
        offsets: Tile<i32, { [B] }>,
        after: Token,
    ) -> Tile<E, { [B] }> {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every offset.
        let (values, _read): (Tile<E, { [B] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    /// `BK` columns of some rows of a matrix with `K` columns, where the pointers stand: at column
    /// `first`. Behind the last column stands the last one again; the weights there are zeros.
    pub unsafe fn load_rows<E: ElementType, const BM: i32, const BK: i32, const K: i32>(
        pointers: PointerTile<*mut E, { [BM, BK] }>,
        first: i32,
        after: Token,
    ) -> Tile<E, { [BM, BK] }> {
        let mut here: PointerTile<*mut E, { [BM, BK] }> = pointers;
        if K - K / BK * BK > 0i32 {
            let column: Tile<i32, { [BK] }> = count_from::<BK>(first);
            let last: Tile<i32, { [BK] }> = splat::<BK>(K - 1i32);
            let back: Tile<i32, { [BK] }> = min_tile(column, last) - column;
            let back: Tile<i32, { [1, BK] }> = back.reshape(const_shape![1, BK]);
            let back: Tile<i32, { [BM, BK] }> = back.broadcast(const_shape![BM, BK]);
            here = pointers.offset_tile(back);
        }
        // SAFETY: the caller vouches for the rows.
        let (values, _read): (Tile<E, { [BM, BK] }>, Token) = unsafe {
            load_ptr_tko(
                here,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    /// Scales of weight rows as a tile: `first` for the upper `HB` rows, `second` for the rest.
    pub fn weight_scales<const BN: i32, const BM: i32, const HB: i32>(
        first: f32,
        second: f32,
    ) -> Tile<f32, { [BN, BM] }> {
        let rows: Tile<i32, { [BN] }> = iota(const_shape![BN]);
        let upper: Tile<bool, { [BN] }> = lt_tile(rows, splat::<BN>(HB));
        let first: Tile<f32, { [BN] }> = broadcast_scalar(first, const_shape![BN]);
        let second: Tile<f32, { [BN] }> = broadcast_scalar(second, const_shape![BN]);
        let scales: Tile<f32, { [BN] }> = select(upper, first, second);
        let scales: Tile<f32, { [BN, 1] }> = scales.reshape(const_shape![BN, 1]);
        let scales: Tile<f32, { [BN, BM] }> = scales.broadcast(const_shape![BN, BM]);
        scales
    }

    /// The same row `BN` times.
    pub fn under_each_other<const BN: i32, const BM: i32>(
        row: Tile<f32, { [BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let row: Tile<f32, { [1, BM] }> = row.reshape(const_shape![1, BM]);
        let row: Tile<f32, { [BN, BM] }> = row.broadcast(const_shape![BN, BM]);
        row
    }

    /// The same column `BK` times.
    pub fn beside_each_other<const BM: i32, const BK: i32>(
        column: Tile<f32, { [BM] }>,
    ) -> Tile<f32, { [BM, BK] }> {
        let column: Tile<f32, { [BM, 1] }> = column.reshape(const_shape![BM, 1]);
        let column: Tile<f32, { [BM, BK] }> = column.broadcast(const_shape![BM, BK]);
        column
    }

    /// Output features that a weight tile holds: `HB` of each of its parts, which have `rows`.
    pub fn features_of_tile<const BN: i32, const HB: i32>(
        column: i32,
        rows: i32,
    ) -> Tile<i32, { [BN] }> {
        let row: Tile<i32, { [BN] }> = iota(const_shape![BN]);
        let part: Tile<i32, { [BN] }> = row / splat::<BN>(HB);
        part * splat::<BN>(rows - HB) + row + splat::<BN>(column * HB)
    }

    /// Scales of some output features of an expert with `rows` of them, of which `SR` share one. Behind
    /// the last feature stands its scale again.
    pub unsafe fn feature_scales<const B: i32, const SR: i32>(
        w_scales: *mut f32,
        expert: i32,
        rows: i32,
        features: Tile<i32, { [B] }>,
        after: Token,
    ) -> Tile<f32, { [B] }> {
        let inside: Tile<i32, { [B] }> = min_tile(features, splat::<B>(rows - 1i32));
        let at: Tile<i32, { [B] }> =
            inside / splat::<B>(SR) + splat::<B>(expert * ceil_div(rows, SR));
        // SAFETY: the caller vouches for the expert.
        unsafe { gather_all(w_scales, at, after) }
    }

    /// `sum` times the scale of its row and that of its column.
    pub fn scaled_rows_and_columns<const BN: i32, const BM: i32>(
        sum: Tile<f32, { [BN, BM] }>,
        rows: Tile<f32, { [BN] }>,
        columns: Tile<f32, { [BM] }>,
    ) -> Tile<f32, { [BN, BM] }> {
        let scales: Tile<f32, { [BN, BM] }> =
            beside_each_other::<BN, BM>(rows) * under_each_other::<BN, BM>(columns);
        sum * scales
    }

    /// Quantisation scale of each row: its largest magnitude over 448, from `least` to `most`.
    pub fn row_scales<const BM: i32, const BK: i32>(
        x: Tile<f32, { [BM, BK] }>,
        least: f32,
        most: f32,
    ) -> Tile<f32, { [BM] }> {
        let magnitude: Tile<f32, { [BM, BK] }> = absf(x);
        let largest: Tile<f32, { [BM] }> = reduce_max(magnitude, 1i32);
        let top: Tile<f32, { [BM] }> = constant(448.0f32, const_shape![BM]);
        let scales: Tile<f32, { [BM] }> = largest / top;
        let least: Tile<f32, { [BM] }> = broadcast_scalar(least, const_shape![BM]);
        let most: Tile<f32, { [BM] }> = broadcast_scalar(most, const_shape![BM]);
        min_tile(max_tile(scales, least), most)
    }

    /// `x / scales` as e4m3. The quotient by a reciprocal becomes the rounded quotient with one step
    /// of its remainder, a third of the instructions of a division.
    pub fn to_e4m3<const BM: i32, const BK: i32>(
        x: Tile<f32, { [BM, BK] }>,
        scales: Tile<f32, { [BM] }>,
    ) -> Tile<f8e4m3fn, { [BM, BK] }> {
        let one: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        let inverse: Tile<f32, { [BM, BK] }> = beside_each_other::<BM, BK>(one / scales);
        let scales: Tile<f32, { [BM, BK] }> = beside_each_other::<BM, BK>(scales);
        let near: Tile<f32, { [BM, BK] }> = x * inverse;
        let rest: Tile<f32, { [BM, BK] }> =
            fma(negf(near), scales, x, rounding::NearestEven, ftz::Disabled);
        let quotient: Tile<f32, { [BM, BK] }> =
            fma(rest, inverse, near, rounding::NearestEven, ftz::Disabled);
        let codes: Tile<f8e4m3fn, { [BM, BK] }> = convert_tile(quotient);
        codes
    }

    /// As [`row_scales`], for the columns of a transposed tile.
    pub fn column_scales<const BK: i32, const BM: i32>(
        x: Tile<f32, { [BK, BM] }>,
        least: f32,
    ) -> Tile<f32, { [BM] }> {
        let magnitude: Tile<f32, { [BK, BM] }> = absf(x);
        let largest: Tile<f32, { [BM] }> = reduce_max(magnitude, 0i32);
        let top: Tile<f32, { [BM] }> = constant(448.0f32, const_shape![BM]);
        let scales: Tile<f32, { [BM] }> = largest / top;
        let least: Tile<f32, { [BM] }> = broadcast_scalar(least, const_shape![BM]);
        max_tile(scales, least)
    }

    /// `x / scales` of the columns of a transposed tile, as [`to_e4m3`] divides.
    pub fn scaled_columns<O: ElementType, const BK: i32, const BM: i32>(
        x: Tile<f32, { [BK, BM] }>,
        scales: Tile<f32, { [BM] }>,
    ) -> Tile<O, { [BK, BM] }> {
        let one: Tile<f32, { [BM] }> = constant(1.0f32, const_shape![BM]);
        let inverse: Tile<f32, { [BK, BM] }> = under_each_other::<BK, BM>(one / scales);
        let scales: Tile<f32, { [BK, BM] }> = under_each_other::<BK, BM>(scales);
        let near: Tile<f32, { [BK, BM] }> = x * inverse;
        let rest: Tile<f32, { [BK, BM] }> =
            fma(negf(near), scales, x, rounding::NearestEven, ftz::Disabled);
        let quotient: Tile<f32, { [BK, BM] }> =
            fma(rest, inverse, near, rounding::NearestEven, ftz::Disabled);
        let codes: Tile<O, { [BK, BM] }> = convert_tile(quotient);
        codes
    }

    /// Writes `value[i, j]` to `base[rows[i] * size + first + j]` for every row that is not
    /// negative and every column below `size`.
    pub unsafe fn store_rows<O: ElementType, const BM: i32, const BN: i32>(
        base: *mut O,
        rows: Tile<i32, { [BM] }>,
        first: i32,
        size: i32,
        value: Tile<O, { [BM, BN] }>,
    ) -> Token {
        let columns: Tile<i32, { [BN] }> = count_from::<BN>(first);
        let inside: Tile<bool, { [BN] }> = lt_tile(columns, splat::<BN>(size));
        let inside: Tile<bool, { [1, BN] }> = inside.reshape(const_shape![1, BN]);
        let inside: Tile<bool, { [BM, BN] }> = inside.broadcast(const_shape![BM, BN]);
        let wanted: Tile<bool, { [BM] }> = gt_tile(rows, splat::<BM>(-1i32));
        let wanted: Tile<bool, { [BM, 1] }> = wanted.reshape(const_shape![BM, 1]);
        let wanted: Tile<bool, { [BM, BN] }> = wanted.broadcast(const_shape![BM, BN]);
        let columns: Tile<i32, { [1, BN] }> = columns.reshape(const_shape![1, BN]);
        let columns: Tile<i32, { [BM, BN] }> = columns.broadcast(const_shape![BM, BN]);
        let rows: Tile<i64, { [BM] }> = exti(rows);
        let size: Tile<i64, { [BM] }> = exti(splat::<BM>(size));
        let rows: Tile<i64, { [BM, 1] }> = (rows * size).reshape(const_shape![BM, 1]);
        let rows: Tile<i64, { [BM, BN] }> = rows.broadcast(const_shape![BM, BN]);
        let pointer: PointerTile<*mut O, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut O, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut O, { [BM, BN] }> = pointer.broadcast(const_shape![BM, BN]);
        let pointer: PointerTile<*mut O, { [BM, BN] }> = pointer.offset_tile(rows);
        let pointer: PointerTile<*mut O, { [BM, BN] }> = pointer.offset_tile(columns);
        // SAFETY: the caller vouches for the rows, the masks for the rest.
        unsafe {
            store_ptr_tko(
                pointer,
                value,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(wanted & inside),
                None,
                Latency::<0>,
            )
        }
    }

    /// As [`store_rows`], of the columns of a product.
    pub unsafe fn store_columns<O: ElementType, const BM: i32, const BN: i32>(
        base: *mut O,
        rows: Tile<i32, { [BM] }>,
        first: i32,
        size: i32,
        product: Tile<f32, { [BN, BM] }>,
    ) -> Token {
        let values: Tile<O, { [BN, BM] }> = convert_tile(product);
        let values: Tile<O, { [BM, BN] }> = values.transpose();
        // SAFETY: the caller vouches for the rows.
        unsafe { store_rows::<O, BM, BN>(base, rows, first, size, values) }
    }

    /// Writes the rows of the `tokens` tokens of a block: `place` is block, column tile, tokens and
    /// the size of a row.
    pub unsafe fn store_block<O: ElementType, const BM: i32, const BN: i32>(
        base: *mut O,
        place: [i32; 4],
        value: Tile<O, { [BM, BN] }>,
    ) {
        let rows: Tile<i32, { [BM] }> = count_from::<BM>(place[0] * BM);
        let live: Tile<bool, { [BM] }> = lt_tile(rows, splat::<BM>(place[0] * BM + place[2]));
        let rows: Tile<i32, { [BM] }> = select(live, rows, splat::<BM>(-1i32));
        // SAFETY: the caller vouches for the rows of the block.
        let _written: Token =
            unsafe { store_rows::<O, BM, BN>(base, rows, place[1] * BN, place[3], value) };
    }
}
