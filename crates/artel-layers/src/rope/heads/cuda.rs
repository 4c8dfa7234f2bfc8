//! Device functions that turn heads and put them where attention reads them.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Heads of `D` elements, of which `2 P` turn; `C` and `RC` are `P` and `D - 2 P` rounded up to powers of
/// two, and `REST` is `D - 2 P`.
#[cutile::module]
pub mod rope_code {
    use crate::linear::parts::cuda::part_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Columns of the first and of the second element of each pair.
    fn pair_columns<const C: i32, const P: i32, const STYLE: i32>(
        second: i32,
    ) -> Tile<i32, { [C] }> {
        let mut columns: Tile<i32, { [C] }> = count_from::<C>(second * P);
        if STYLE == 1i32 {
            let pair: Tile<i32, { [C] }> = count_from::<C>(0i32);
            let offset: Tile<i32, { [C] }> = broadcast_scalar(second, const_shape![C]);
            columns = pair + pair + offset;
        }
        columns
    }

    /// Some columns of some rows as float32, zero outside of the mask.
    unsafe fn load_columns<A: ElementType, const R: i32, const C: i32>(
        base: *mut A,
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let offsets: Tile<i64, { [R, C] }> = offsets_at(starts, columns);
        // SAFETY: the caller vouches for starts and columns.
        let values: Tile<A, { [R, C] }> = unsafe { gather_block(base, offsets, mask, after) };
        let values: Tile<f32, { [R, C] }> = convert_tile(values);
        let nothing: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        select(mask, values, nothing)
    }

    /// Some columns of heads: of rows of `A`, or with `PARTS` above 1 the sums of so many parts of
    /// `part_rows` rows of `N`, rounded to `A`.
    unsafe fn load_heads<
        A: ElementType,
        const R: i32,
        const C: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        after: Token,
    ) -> Tile<f32, { [R, C] }> {
        let mut values: Tile<f32, { [R, C] }> = constant(0.0f32, const_shape![R, C]);
        if PARTS > 1i32 {
            // SAFETY: the caller vouches for starts and columns.
            let sum: Tile<f32, { [R, C] }> = unsafe {
                sum_parts::<R, C, PARTS, N>(sums, starts, part_rows, columns, mask, after)
            };
            let sum: Tile<A, { [R, C] }> = convert_tile(sum);
            values = convert_tile(sum);
        }
        if PARTS == 1i32 {
            // SAFETY: as above.
            values = unsafe { load_columns(input, starts, columns, mask, after) };
        }
        values
    }

    fn offsets_at<const R: i32, const C: i32>(
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
    ) -> Tile<i64, { [R, C] }> {
        let starts: Tile<i64, { [R, 1] }> = starts.reshape(const_shape![R, 1]);
        let columns: Tile<i64, { [C] }> = exti(columns);
        let columns: Tile<i64, { [1, C] }> = columns.reshape(const_shape![1, C]);
        starts.broadcast(const_shape![R, C]) + columns.broadcast(const_shape![R, C])
    }

    unsafe fn store_columns<A: ElementType, const R: i32, const C: i32>(
        base: *mut A,
        starts: Tile<i64, { [R] }>,
        columns: Tile<i32, { [C] }>,
        mask: Tile<bool, { [R, C] }>,
        values: Tile<f32, { [R, C] }>,
        after: Token,
    ) {
        let values: Tile<A, { [R, C] }> = convert_tile(values);
        // SAFETY: the caller vouches for starts and columns.
        unsafe { scatter_block(base, offsets_at(starts, columns), mask, values, after) };
    }

    /// The weights of some columns, the same for every row.
    unsafe fn weights_of<const R: i32, const C: i32>(
        weight: *mut f32,
        columns: Tile<i32, { [C] }>,
        is_column: Tile<bool, { [C] }>,
    ) -> Tile<f32, { [R, C] }> {
        // SAFETY: the caller vouches for the columns; nobody writes weights.
        let weight: Tile<f32, { [C] }> =
            unsafe { gather(weight, columns, is_column, 0.0f32, new_token_unordered()) };
        let weight: Tile<f32, { [1, C] }> = weight.reshape(const_shape![1, C]);
        weight.broadcast(const_shape![R, C])
    }

    fn down<const R: i32, const C: i32>(column: Tile<f32, { [R] }>) -> Tile<f32, { [R, C] }> {
        let column: Tile<f32, { [R, 1] }> = column.reshape(const_shape![R, 1]);
        column.broadcast(const_shape![R, C])
    }

    /// `1 / sqrt(squares / D + epsilon)`.
    fn norm_scale<const R: i32, const D: i32>(
        squares: Tile<f32, { [R] }>,
        epsilon: f32,
    ) -> Tile<f32, { [R] }> {
        let width: i32 = D;
        let width: f32 = convert_scalar(width);
        let width: Tile<f32, { [R] }> = broadcast_scalar(width, const_shape![R]);
        let epsilon: Tile<f32, { [R] }> = broadcast_scalar(epsilon, const_shape![R]);
        let root: Tile<f32, { [R] }> =
            sqrt(squares / width + epsilon, rounding::NearestEven, ftz::Disabled);
        let one: Tile<f32, { [R] }> = constant(1.0f32, const_shape![R]);
        one / root
    }

    /// The parts of heads over the root of their mean square, times the weight.
    unsafe fn normed<
        const R: i32,
        const C: i32,
        const RC: i32,
        const D: i32,
        const P: i32,
        const STYLE: i32,
    >(
        a: Tile<f32, { [R, C] }>,
        b: Tile<f32, { [R, C] }>,
        tail: Tile<f32, { [R, RC] }>,
        weight: *mut f32,
        epsilon: f32,
    ) -> (Tile<f32, { [R, C] }>, Tile<f32, { [R, C] }>, Tile<f32, { [R, RC] }>) {
        let is_pair: Tile<bool, { [C] }> = below(count_from::<C>(0i32), P);
        let first: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(0i32);
        let second: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(1i32);
        let rest: Tile<i32, { [RC] }> = count_from::<RC>(2i32 * P);
        let pairs: Tile<f32, { [R] }> = reduce_sum(a * a + b * b, 1i32);
        let others: Tile<f32, { [R] }> = reduce_sum(tail * tail, 1i32);
        let scale: Tile<f32, { [R] }> = norm_scale::<R, D>(pairs + others, epsilon);
        // SAFETY: the caller vouches for `D` weights.
        let of_a: Tile<f32, { [R, C] }> = unsafe { weights_of::<R, C>(weight, first, is_pair) };
        // SAFETY: as above.
        let of_b: Tile<f32, { [R, C] }> = unsafe { weights_of::<R, C>(weight, second, is_pair) };
        // SAFETY: as above.
        let of_tail: Tile<f32, { [R, RC] }> =
            unsafe { weights_of::<R, RC>(weight, rest, below(rest, D)) };
        (
            of_a * (a * down::<R, C>(scale)),
            of_b * (b * down::<R, C>(scale)),
            of_tail * (tail * down::<R, RC>(scale)),
        )
    }

    /// Heads to turn: the first and the second of each pair and the rest, normalised with `NORM`.
    unsafe fn load_normed<
        A: ElementType,
        const R: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        weight: *mut f32,
        starts: Tile<i64, { [R] }>,
        is_row: Tile<bool, { [R] }>,
        epsilon: f32,
        after: Token,
    ) -> (Tile<f32, { [R, C] }>, Tile<f32, { [R, C] }>, Tile<f32, { [R, RC] }>) {
        let is_pair: Tile<bool, { [C] }> = below(count_from::<C>(0i32), P);
        let first: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(0i32);
        let second: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(1i32);
        let rest: Tile<i32, { [RC] }> = count_from::<RC>(2i32 * P);
        let is_rest: Tile<bool, { [RC] }> = below(rest, D);
        let read: Tile<bool, { [R, C] }> = block_mask(is_row, is_pair);
        // SAFETY: the caller vouches for the heads.
        let mut a: Tile<f32, { [R, C] }> = unsafe {
            load_heads::<A, R, C, PARTS, N>(input, sums, part_rows, starts, first, read, after)
        };
        // SAFETY: as above.
        let mut b: Tile<f32, { [R, C] }> = unsafe {
            load_heads::<A, R, C, PARTS, N>(input, sums, part_rows, starts, second, read, after)
        };
        let mut tail: Tile<f32, { [R, RC] }> = constant(0.0f32, const_shape![R, RC]);
        if REST > 0i32 {
            // SAFETY: as above.
            tail = unsafe {
                load_heads::<A, R, RC, PARTS, N>(
                    input,
                    sums,
                    part_rows,
                    starts,
                    rest,
                    block_mask(is_row, is_rest),
                    after,
                )
            };
        }
        if NORM == 1i32 {
            // SAFETY: the weight has `D` elements.
            let (x, y, z): (Tile<f32, { [R, C] }>, Tile<f32, { [R, C] }>, Tile<f32, { [R, RC] }>) =
                unsafe { normed::<R, C, RC, D, P, STYLE>(a, b, tail, weight, epsilon) };
            a = x;
            b = y;
            tail = z;
        }
        (a, b, tail)
    }

    /// Turns one head in each of `R` rows: from `source` to `target`, which say where heads start.
    pub unsafe fn turn_heads<
        A: ElementType,
        const R: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        out: *mut A,
        angles: *mut f32,
        weight: *mut f32,
        starts: [Tile<i64, { [R] }>; 2],
        token: Tile<i32, { [R] }>,
        is_row: [Tile<bool, { [R] }>; 2],
        epsilon: f32,
        after: Token,
    ) {
        let is_pair: Tile<bool, { [C] }> = below(count_from::<C>(0i32), P);
        let first: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(0i32);
        let second: Tile<i32, { [C] }> = pair_columns::<C, P, STYLE>(1i32);
        let rest: Tile<i32, { [RC] }> = count_from::<RC>(2i32 * P);
        let is_rest: Tile<bool, { [RC] }> = below(rest, D);
        let read: Tile<bool, { [R, C] }> = block_mask(is_row[0], is_pair);
        let write: Tile<bool, { [R, C] }> = block_mask(is_row[1], is_pair);
        // SAFETY: the caller vouches for the heads and for `D` weights.
        let (a, b, tail): (Tile<f32, { [R, C] }>, Tile<f32, { [R, C] }>, Tile<f32, { [R, RC] }>) = unsafe {
            load_normed::<A, R, D, P, C, REST, RC, STYLE, NORM, PARTS, N>(
                input, sums, part_rows, weight, starts[0], is_row[0], epsilon, after,
            )
        };
        let from: Tile<i64, { [R] }> = token_starts::<R>(token, 2i32 * P);
        let cosines: Tile<i32, { [C] }> = count_from::<C>(0i32);
        let sines: Tile<i32, { [C] }> = count_from::<C>(P);
        // SAFETY: angles has a row for every token.
        let cosine: Tile<f32, { [R, C] }> =
            unsafe { load_columns(angles, from, cosines, read, after) };
        // SAFETY: as above.
        let sine: Tile<f32, { [R, C] }> = unsafe { load_columns(angles, from, sines, read, after) };
        // SAFETY: the caller vouches for the heads.
        unsafe { store_columns(out, starts[1], first, write, a * cosine - b * sine, after) };
        // SAFETY: as above.
        unsafe { store_columns(out, starts[1], second, write, b * cosine + a * sine, after) };
        if REST > 0i32 {
            // SAFETY: as above.
            unsafe {
                store_columns(out, starts[1], rest, block_mask(is_row[1], is_rest), tail, after)
            };
        }
    }

    pub fn token_starts<const R: i32>(row: Tile<i32, { [R] }>, stride: i32) -> Tile<i64, { [R] }> {
        let row: Tile<i64, { [R] }> = exti(row);
        let stride: Tile<i32, { [R] }> = broadcast_scalar(stride, const_shape![R]);
        let stride: Tile<i64, { [R] }> = exti(stride);
        row * stride
    }

    /// Where a head of a token begins in the cache: row `slot % BT` of block `slot / BT`.
    pub fn cache_starts<const R: i32, const D: i32, const KH: i32, const BT: i32>(
        slot: Tile<i32, { [R] }>,
        head: Tile<i32, { [R] }>,
    ) -> Tile<i64, { [R] }> {
        let size: Tile<i32, { [R] }> = broadcast_scalar(BT, const_shape![R]);
        let heads: Tile<i32, { [R] }> = broadcast_scalar(KH, const_shape![R]);
        let block: Tile<i32, { [R] }> = slot / size;
        token_starts::<R>((block * heads + head) * size + (slot - block * size), D)
    }

    /// Values as they are, `R` rows of one head each.
    pub unsafe fn copy_heads<
        A: ElementType,
        const R: i32,
        const D: i32,
        const DC: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        out: *mut A,
        from: Tile<i64, { [R] }>,
        to: Tile<i64, { [R] }>,
        is_row: Tile<bool, { [R] }>,
        after: Token,
    ) {
        let column: Tile<i32, { [DC] }> = count_from::<DC>(0i32);
        let mask: Tile<bool, { [R, DC] }> = block_mask(is_row, below(column, D));
        // SAFETY: the caller vouches for the heads.
        let values: Tile<f32, { [R, DC] }> = unsafe {
            load_heads::<A, R, DC, PARTS, N>(input, sums, part_rows, from, column, mask, after)
        };
        let values: Tile<A, { [R, DC] }> = convert_tile(values);
        // SAFETY: as above.
        unsafe { scatter_block(out, offsets_at(to, column), mask, values, after) };
    }

    /// Keys, turned, or values, as they are, of a block of heads to the cache. `first`: its
    /// first head, those of values after those of keys.
    pub unsafe fn cache_heads<
        A: ElementType,
        const QH: i32,
        const KH: i32,
        const D: i32,
        const DC: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
        const HB: i32,
        const R: i32,
        const BT: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        keys: *mut A,
        values: *mut A,
        angles: *mut f32,
        weight: *mut f32,
        slot: Tile<i32, { [R] }>,
        token: Tile<i32, { [R] }>,
        within: Tile<i32, { [R] }>,
        is_row: [Tile<bool, { [R] }>; 2],
        first: i32,
        epsilon: f32,
        ready: Token,
    ) {
        let zero: Tile<i32, { [R] }> = constant(0i32, const_shape![R]);
        let slot: Tile<i32, { [R] }> = max_tile(slot, zero);
        // Head `first` of keys and values one after the other.
        let start: Tile<i32, { [R] }> = broadcast_scalar(first, const_shape![R]);
        let from: Tile<i32, { [R] }> = broadcast_scalar(QH, const_shape![R]);
        let row: Tile<i64, { [R] }> =
            token_starts::<R>(token, N) + token_starts::<R>(within + start + from, D);
        if first < KH {
            let to: Tile<i64, { [R] }> = cache_starts::<R, D, KH, BT>(slot, within + start);
            // SAFETY: slots lie inside the cache.
            unsafe {
                turn_heads::<A, R, D, P, C, REST, RC, STYLE, NORM, PARTS, N>(
                    input,
                    sums,
                    part_rows,
                    keys,
                    angles,
                    weight,
                    [row, to],
                    token,
                    is_row,
                    epsilon,
                    ready,
                )
            };
        } else {
            let start: Tile<i32, { [R] }> = broadcast_scalar(first - KH, const_shape![R]);
            let to: Tile<i64, { [R] }> = cache_starts::<R, D, KH, BT>(slot, within + start);
            // SAFETY: as above.
            unsafe {
                copy_heads::<A, R, D, DC, PARTS, N>(
                    input, sums, part_rows, values, row, to, is_row[1], ready,
                )
            };
        }
    }

    /// Head of each row within its block, `HB` of each token.
    pub fn head_within<const R: i32, const HB: i32>() -> Tile<i32, { [R] }> {
        let row: Tile<i32, { [R] }> = count_from::<R>(0i32);
        let heads: Tile<i32, { [R] }> = broadcast_scalar(HB, const_shape![R]);
        row - row / heads * heads
    }

    /// Token of each row, from `first` on.
    pub fn token_of<const R: i32, const HB: i32>(first: i32) -> Tile<i32, { [R] }> {
        let heads: Tile<i32, { [R] }> = broadcast_scalar(HB, const_shape![R]);
        let first: Tile<i32, { [R] }> = broadcast_scalar(first, const_shape![R]);
        count_from::<R>(0i32) / heads + first
    }

    /// Queries of a block of heads from `first` on, turned.
    pub unsafe fn turn_queries<
        A: ElementType,
        const R: i32,
        const D: i32,
        const P: i32,
        const C: i32,
        const REST: i32,
        const RC: i32,
        const STYLE: i32,
        const NORM: i32,
        const QH: i32,
        const PARTS: i32,
        const N: i32,
    >(
        input: *mut A,
        sums: *mut f32,
        part_rows: i32,
        queries: *mut A,
        angles: *mut f32,
        weight: *mut f32,
        token: Tile<i32, { [R] }>,
        within: Tile<i32, { [R] }>,
        is_token: Tile<bool, { [R] }>,
        first: i32,
        epsilon: f32,
        ready: Token,
    ) {
        let start: Tile<i32, { [R] }> = broadcast_scalar(first, const_shape![R]);
        let at: Tile<i64, { [R] }> = token_starts::<R>(within + start, D);
        let from: Tile<i64, { [R] }> = token_starts::<R>(token, N) + at;
        let to: Tile<i64, { [R] }> = token_starts::<R>(token, QH * D) + at;
        let starts: [Tile<i64, { [R] }>; 2] = [from, to];
        let is_row: [Tile<bool, { [R] }>; 2] = [is_token, is_token];
        // SAFETY: the caller vouches for the rows.
        unsafe {
            turn_heads::<A, R, D, P, C, REST, RC, STYLE, NORM, PARTS, N>(
                input, sums, part_rows, queries, angles, weight, starts, token, is_row, epsilon,
                ready,
            )
        };
    }
}
