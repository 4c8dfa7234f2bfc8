//! What all GPU kernels of the layer share: device functions that are compiled into each of them.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

pub mod shipped;

/// Device functions for loading and storing tiles through raw pointers, and for the hand-over from
/// one kernel to the next.
#[cutile::module]
pub mod device_code {
    use cutile::core::*;

    /// Lets the next kernel start and waits for the one before. What the kernel before wrote may
    /// be read only by loads that take this token. `PDL = 0`: neither, on architectures whose
    /// launches never overlap.
    pub unsafe fn hand_over<const PDL: i32>() -> Token {
        let mut token: Token = new_token_unordered();
        if PDL == 1i32 {
            // SAFETY: a dependent kernel waits for this one to end before it reads.
            let launched: Token = unsafe { gdc_launch_dependents_tko(None) };
            // SAFETY: the kernel was launched with programmatic serialisation.
            token = unsafe { gdc_wait_tko(Some(launched)) };
        }
        token
    }

    /// `base[offsets[i]]` where `mask[i]`, else `other`.
    pub unsafe fn gather<E: ElementType, const B: i32>(
        base: *mut E,
        offsets: Tile<i32, { [B] }>,
        mask: Tile<bool, { [B] }>,
        other: E,
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
                Some(other),
                Some(after),
                Latency::<0>,
            )
        };
        values
    }

    /// `base[offsets[i]] = values[i]` where `mask[i]`.
    pub unsafe fn scatter<E: ElementType, const B: i32>(
        base: *mut E,
        offsets: Tile<i32, { [B] }>,
        mask: Tile<bool, { [B] }>,
        values: Tile<E, { [B] }>,
        after: Token,
    ) {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every unmasked offset.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                values,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                Some(after),
                Latency::<0>,
            )
        };
    }

    /// `start, start + 1, …`
    pub fn count_from<const B: i32>(start: i32) -> Tile<i32, { [B] }> {
        let numbers: Tile<i32, { [B] }> = iota(const_shape![B]);
        let start: Tile<i32, { [B] }> = broadcast_scalar(start, const_shape![B]);
        numbers + start
    }

    /// Which of `values` are less than `end`.
    pub fn below<const B: i32>(values: Tile<i32, { [B] }>, end: i32) -> Tile<bool, { [B] }> {
        let end: Tile<i32, { [B] }> = broadcast_scalar(end, const_shape![B]);
        lt_tile(values, end)
    }

    /// `base[offset]`.
    pub unsafe fn load_i32(base: *mut i32, offset: i32, after: Token) -> i32 {
        let pointer: PointerTile<*mut i32, { [] }> = pointer_to_tile(base);
        let offset: Tile<i32, { [] }> = scalar_to_tile(offset);
        let pointer: PointerTile<*mut i32, { [] }> = pointer.offset_tile(offset);
        // SAFETY: the caller vouches for the offset.
        let (value, _read): (Tile<i32, { [] }>, Token) = unsafe {
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

    /// Element offsets of a block of a row-major matrix: `rows[i] * columns_total + columns[j]`.
    /// 64 bits wide, for matrices beyond 2^31 elements.
    pub fn block_offsets<const M: i32, const N: i32>(
        rows: Tile<i32, { [M] }>,
        columns_total: i32,
        columns: Tile<i32, { [N] }>,
    ) -> Tile<i64, { [M, N] }> {
        let stride: Tile<i32, { [M] }> = broadcast_scalar(columns_total, const_shape![M]);
        let stride: Tile<i64, { [M] }> = exti(stride);
        let rows: Tile<i64, { [M] }> = exti(rows);
        let start: Tile<i64, { [M, 1] }> = (rows * stride).reshape(const_shape![M, 1]);
        let columns: Tile<i64, { [N] }> = exti(columns);
        let columns: Tile<i64, { [1, N] }> = columns.reshape(const_shape![1, N]);
        start.broadcast(const_shape![M, N]) + columns.broadcast(const_shape![M, N])
    }

    /// Whether both the row and the column are in use.
    pub fn block_mask<const M: i32, const N: i32>(
        rows: Tile<bool, { [M] }>,
        columns: Tile<bool, { [N] }>,
    ) -> Tile<bool, { [M, N] }> {
        let rows: Tile<bool, { [M, 1] }> = rows.reshape(const_shape![M, 1]);
        let columns: Tile<bool, { [1, N] }> = columns.reshape(const_shape![1, N]);
        rows.broadcast(const_shape![M, N]) & columns.broadcast(const_shape![M, N])
    }

    /// `base[offsets[i, j]]` where `mask[i, j]`; elsewhere unspecified.
    pub unsafe fn gather_block<E: ElementType, const M: i32, const N: i32>(
        base: *mut E,
        offsets: Tile<i64, { [M, N] }>,
        mask: Tile<bool, { [M, N] }>,
        after: Token,
    ) -> Tile<E, { [M, N] }> {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut E, { [M, N] }> = pointer.broadcast(const_shape![M, N]);
        let pointer: PointerTile<*mut E, { [M, N] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every unmasked offset.
        let (values, _read): (Tile<E, { [M, N] }>, Token) = unsafe {
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

    /// `base[offsets[i, j]] = values[i, j]` where `mask[i, j]`.
    pub unsafe fn scatter_block<E: ElementType, const M: i32, const N: i32>(
        base: *mut E,
        offsets: Tile<i64, { [M, N] }>,
        mask: Tile<bool, { [M, N] }>,
        values: Tile<E, { [M, N] }>,
        after: Token,
    ) {
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1, 1] }> = pointer.reshape(const_shape![1, 1]);
        let pointer: PointerTile<*mut E, { [M, N] }> = pointer.broadcast(const_shape![M, N]);
        let pointer: PointerTile<*mut E, { [M, N] }> = pointer.offset_tile(offsets);
        // SAFETY: the caller vouches for every unmasked offset.
        let _written: Token = unsafe {
            store_ptr_tko(
                pointer,
                values,
                ordering::Weak,
                None::<scope::TileBlock>,
                Some(mask),
                Some(after),
                Latency::<0>,
            )
        };
    }
}
