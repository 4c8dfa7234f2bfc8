//! Device functions of the splitting of rows.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// Where rows come from, what their scale is, and where their parts go.
#[cutile::module]
pub mod split_places {
    use crate::cuda::device_code::*;
    use crate::grouped_gemm::decode::parts::cuda::decode_parts::*;
    use cutile::core::*;

    /// The row of `x` that becomes row `row`, -1 for none.
    pub unsafe fn source_row<const KIND: i32, const PER: i32>(
        sorted_token_ids: *mut i32,
        num_tokens_post_padded: *mut i32,
        row: i32,
        count: i32,
        after: Token,
    ) -> i32 {
        let mut from: i32 = -1i32;
        if KIND == 0i32 {
            if row < count {
                from = row;
            }
        }
        if KIND == 3i32 {
            if row - row / PER * PER < count {
                from = row;
            }
        }
        if KIND == 1i32 || KIND == 2i32 {
            // SAFETY: it holds one number.
            let end: i32 = unsafe { load_i32(num_tokens_post_padded, 0i32, after) };
            if row < end {
                // SAFETY: every position in use has an entry.
                let pair: i32 = unsafe { load_i32(sorted_token_ids, row, after) };
                if pair < count {
                    if KIND == 1i32 {
                        from = pair / PER;
                    } else {
                        from = row;
                    }
                }
            }
        }
        from
    }

    /// Numbers of the columns in `Q` groups of `G`.
    pub fn columns_of_groups<const Q: i32, const G: i32>() -> Tile<i32, { [Q, G] }> {
        let group: Tile<i32, { [Q] }> = iota(const_shape![Q]);
        let start: Tile<i32, { [Q, 1] }> = (group * splat::<Q>(G)).reshape(const_shape![Q, 1]);
        let within: Tile<i32, { [G] }> = iota(const_shape![G]);
        let within: Tile<i32, { [1, G] }> = within.reshape(const_shape![1, G]);
        start.broadcast(const_shape![Q, G]) + within.broadcast(const_shape![Q, G])
    }

    /// Which of them a row of `K` columns has.
    pub fn columns_inside<const Q: i32, const G: i32, const K: i32>() -> Tile<bool, { [Q, G] }> {
        let end: Tile<i32, { [Q, G] }> = broadcast_scalar(K, const_shape![Q, G]);
        lt_tile(columns_of_groups::<Q, G>(), end)
    }

    /// One row in float32, zeros behind its end.
    pub unsafe fn wide_row<A: ElementType, const Q: i32, const G: i32, const K: i32>(
        x: *mut A,
        row: i32,
        after: Token,
    ) -> Tile<f32, { [Q, G] }> {
        let inside: Tile<bool, { [Q, G] }> = columns_inside::<Q, G, K>();
        let start: Tile<i64, { [Q, G] }> = exti(first_column::<Q, G>(row));
        let size: Tile<i32, { [Q, G] }> = broadcast_scalar(K, const_shape![Q, G]);
        let size: Tile<i64, { [Q, G] }> = exti(size);
        let pointer: PointerTile<*mut A, { [] }> = pointer_to_tile(x);
        let pointer: PointerTile<*mut A, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut A, { [Q, G] }> = pointer.broadcast(const_shape![Q, G]);
        let pointer: PointerTile<*mut A, { [Q, G] }> = pointer.offset_tile(start * size);
        let pointer: PointerTile<*mut A, { [Q, G] }> =
            pointer.offset_tile(columns_of_groups::<Q, G>());
        // SAFETY: the caller vouches for the row; the mask keeps inside it.
        let (x, _read): (Tile<A, { [Q, G] }>, Token) = unsafe {
            load_ptr_tko(
                pointer,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(inside),
                None,
                Some(after),
                Latency::<0>,
            )
        };
        let x: Tile<f32, { [Q, G] }> = convert_tile(x);
        let none: Tile<f32, { [Q, G] }> = constant(0.0f32, const_shape![Q, G]);
        select(inside, x, none)
    }

    /// `value` everywhere.
    pub fn first_column<const Q: i32, const G: i32>(value: i32) -> Tile<i32, { [Q, G] }> {
        let values: Tile<i32, { [Q, G] }> = broadcast_scalar(value, const_shape![Q, G]);
        values
    }

    /// The largest magnitude over the largest code.
    pub fn row_scale<const F: i32, const Q: i32, const G: i32>(x: Tile<f32, { [Q, G] }>) -> f32 {
        let largest: Tile<f32, { [Q] }> = reduce_max(absf(x), 1i32);
        let largest: Tile<f32, { [] }> = reduce_max(largest, 0i32);
        let least: Tile<f32, { [] }> = scalar_to_tile(0.0000000001f32);
        let largest: f32 = tile_to_scalar(max_tile(largest, least));
        let mut most: f32 = 448.0f32;
        if F == 3i32 {
            // Both parts of it are bytes.
            most = 32512.0f32;
        }
        if F == 4i32 {
            most = 127.0f32;
        }
        largest / most
    }

    /// The nearest integers, halves away from zero.
    pub fn rounded<const Q: i32, const G: i32>(x: Tile<f32, { [Q, G] }>) -> Tile<i32, { [Q, G] }> {
        let half: Tile<f32, { [Q, G] }> = constant(0.5f32, const_shape![Q, G]);
        let zero: Tile<f32, { [Q, G] }> = constant(0.0f32, const_shape![Q, G]);
        let near: Tile<f32, { [Q, G] }> = floor(absf(x) + half);
        let near: Tile<f32, { [Q, G] }> = select(lt_tile(x, zero), negf(near), near);
        let near: Tile<i32, { [Q, G] }> = ftoi(near, rounding::NearestIntToZero);
        near
    }

    /// Integers from -128 to 127 as bytes.
    pub fn low_byte<const Q: i32, const G: i32>(x: Tile<i32, { [Q, G] }>) -> Tile<i8, { [Q, G] }> {
        let byte: Tile<i8, { [Q, G] }> = trunci(x, overflow::NoSignedWrap);
        byte
    }

    /// Where the second part of each column lies; the first lies `KM` behind it.
    pub fn float_places<const Q: i32, const G: i32, const KM: i32, const XP: i32, const KX: i32>(
        row: i32,
        capacity: i32,
    ) -> Tile<i32, { [Q, G] }> {
        let group: Tile<i32, { [Q] }> = iota(const_shape![Q]);
        let column: Tile<i32, { [Q] }> = group * splat::<Q>(G);
        let product: Tile<i32, { [Q] }> = column / splat::<Q>(KM);
        let within: Tile<i32, { [Q] }> = column - product * splat::<Q>(KM);
        let copy: Tile<i32, { [Q] }> = product * splat::<Q>(XP) + within / splat::<Q>(G);
        let start: Tile<i32, { [Q] }> = copy * splat::<Q>(capacity) + splat::<Q>(row);
        let start: Tile<i32, { [Q] }> = start * splat::<Q>(KX) + within;
        from_each::<Q, G>(start)
    }

    /// Where the first part of each column lies; the second lies `capacity` rows behind it.
    pub fn integer_places<const Q: i32, const G: i32, const KM: i32, const XP: i32>(
        row: i32,
        capacity: i32,
    ) -> Tile<i32, { [Q, G] }> {
        let group: Tile<i32, { [Q] }> = iota(const_shape![Q]);
        let start: Tile<i32, { [Q] }> = group * splat::<Q>(XP * capacity) + splat::<Q>(row);
        from_each::<Q, G>(start * splat::<Q>(KM))
    }

    /// `G` places from each of `start` on.
    pub fn from_each<const Q: i32, const G: i32>(
        start: Tile<i32, { [Q] }>,
    ) -> Tile<i32, { [Q, G] }> {
        let start: Tile<i32, { [Q, 1] }> = start.reshape(const_shape![Q, 1]);
        let within: Tile<i32, { [G] }> = iota(const_shape![G]);
        let within: Tile<i32, { [1, G] }> = within.reshape(const_shape![1, G]);
        start.broadcast(const_shape![Q, G]) + within.broadcast(const_shape![Q, G])
    }

    /// Writes bytes where the mask is on.
    pub unsafe fn store_parts<const Q: i32, const G: i32>(
        out: *mut i8,
        places: Tile<i32, { [Q, G] }>,
        mask: Tile<bool, { [Q, G] }>,
        parts: Tile<i8, { [Q, G] }>,
    ) {
        let pointer: PointerTile<*mut i8, { [] }> = pointer_to_tile(out);
        let pointer: PointerTile<*mut i8, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut i8, { [Q, G] }> = pointer.broadcast(const_shape![Q, G]);
        let pointer: PointerTile<*mut i8, { [Q, G] }> = pointer.offset_tile(places);
        // SAFETY: the caller vouches for the unmasked places.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                parts,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                None,
                Latency::<0>,
            )
        };
    }

    /// Writes the halves of a row, `Q` planes of both products of 64, where there are such products.
    pub unsafe fn store_halves<const Q: i32, const PRODUCTS: i32>(
        out: *mut bf16,
        halves: Tile<bf16, { [Q, 2, 64] }>,
        row: i32,
        capacity: i32,
    ) {
        let plane: Tile<i32, { [Q] }> = iota(const_shape![Q]);
        let plane: Tile<i32, { [Q, 1] }> = (plane * splat::<Q>(2i32)).reshape(const_shape![Q, 1]);
        let parity: Tile<i32, { [2] }> = iota(const_shape![2]);
        let parity: Tile<i32, { [1, 2] }> = parity.reshape(const_shape![1, 2]);
        let product: Tile<i32, { [Q, 2] }> =
            plane.broadcast(const_shape![Q, 2]) + parity.broadcast(const_shape![Q, 2]);
        let end: Tile<i32, { [Q, 2] }> = broadcast_scalar(PRODUCTS, const_shape![Q, 2]);
        let inside: Tile<bool, { [Q, 2] }> = lt_tile(product, end);
        let inside: Tile<bool, { [Q, 2, 1] }> = inside.reshape(const_shape![Q, 2, 1]);
        let inside: Tile<bool, { [Q, 2, 64] }> = inside.broadcast(const_shape![Q, 2, 64]);
        let rows: Tile<i32, { [Q, 2] }> = broadcast_scalar(capacity, const_shape![Q, 2]);
        let own: Tile<i32, { [Q, 2] }> = broadcast_scalar(row, const_shape![Q, 2]);
        let width: Tile<i32, { [Q, 2] }> = constant(64i32, const_shape![Q, 2]);
        let start: Tile<i32, { [Q, 2] }> = (product * rows + own) * width;
        let start: Tile<i32, { [Q, 2, 1] }> = start.reshape(const_shape![Q, 2, 1]);
        let within: Tile<i32, { [64] }> = iota(const_shape![64]);
        let within: Tile<i32, { [1, 1, 64] }> = within.reshape(const_shape![1, 1, 64]);
        let places: Tile<i32, { [Q, 2, 64] }> =
            start.broadcast(const_shape![Q, 2, 64]) + within.broadcast(const_shape![Q, 2, 64]);
        let pointer: PointerTile<*mut bf16, { [] }> = pointer_to_tile(out);
        let pointer: PointerTile<*mut bf16, { [1, 1, 1] }> = pointer.reshape(const_shape![1, 1, 1]);
        let pointer: PointerTile<*mut bf16, { [Q, 2, 64] }> =
            pointer.broadcast(const_shape![Q, 2, 64]);
        let pointer: PointerTile<*mut bf16, { [Q, 2, 64] }> = pointer.offset_tile(places);
        // SAFETY: the caller vouches for the row in every product.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                halves,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(inside),
                None,
                Latency::<0>,
            )
        };
    }

    /// Sums of groups over 512, `[groups, capacity]`.
    pub unsafe fn store_sums<const Q: i32, const G: i32, const K: i32>(
        sums: *mut f32,
        x: Tile<f32, { [Q, G] }>,
        row: i32,
        capacity: i32,
        after: Token,
    ) {
        let sum: Tile<f32, { [Q] }> = reduce_sum(x, 1i32);
        let unit: Tile<f32, { [Q] }> = constant(0.001953125f32, const_shape![Q]);
        let group: Tile<i32, { [Q] }> = iota(const_shape![Q]);
        let inside: Tile<bool, { [Q] }> = lt_tile(group, splat::<Q>(ceil_div(K, G)));
        let at: Tile<i32, { [Q] }> = group * splat::<Q>(capacity) + splat::<Q>(row);
        // SAFETY: the caller vouches for a sum for every group of the row.
        unsafe { scatter(sums, at, inside, sum * unit, after) };
    }
}
