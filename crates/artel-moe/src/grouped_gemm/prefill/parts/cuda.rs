//! Device functions of all prefill kernels.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// The walk over tiles.
#[cutile::module]
pub mod prefill_parts {
    use crate::cuda::device_code::*;
    use cutile::core::*;

    /// Waits for the kernel before, then counts the tiles in use. Of all loads only that of the number
    /// of rows takes the wait's token: every address of what was written before follows from it, and
    /// a token in the loop costs 15 %.
    pub unsafe fn tiles_in_use<const BM: i32, const COLUMNS: i32, const PDL: i32>(
        rows_padded: *mut i32,
    ) -> i32 {
        // SAFETY: nothing is written before the wait.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: it is one number.
        let rows: i32 = unsafe { load_i32(rows_padded, 0i32, ready) };
        rows / BM * COLUMNS
    }

    /// `base[offset]` of memory that was written before `offset` could be known.
    pub unsafe fn read_i32(base: *mut i32, offset: i32) -> i32 {
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
                None,
                Latency::<0>,
            )
        };
        tile_to_scalar(value)
    }

    /// `base[offset]`, never written while kernels run.
    pub unsafe fn read_f32(base: *mut f32, offset: i32) -> f32 {
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
                None,
                Latency::<0>,
            )
        };
        tile_to_scalar(value)
    }

    /// The expert of a tile, -1 for none. Blocks have `SPLIT` row tiles of `COLUMNS` tiles each.
    pub unsafe fn expert_of<const NE: i32, const SPLIT: i32, const COLUMNS: i32>(
        expert_ids: *mut i32,
        tile: i32,
    ) -> i32 {
        // SAFETY: every block of the assignment has an expert or -1.
        let expert: i32 = unsafe { read_i32(expert_ids, tile / (COLUMNS * SPLIT)) };
        let inside: i32 = exists(expert) * exists(NE - 1i32 - expert);
        (expert + 1i32) * inside - 1i32
    }

    /// 0 for expert -1 and below, else 1.
    pub fn exists(expert: i32) -> i32 {
        min(max(expert + 1i32, 0i32), 1i32)
    }

    /// `tile`, or the last one; 0 if there is none.
    pub fn within(tile: i32, tiles: i32) -> i32 {
        max(min(tile, tiles - 1i32), 0i32)
    }

    /// Tiles that block `first` of `stride` computes.
    pub fn turns(tiles: i32, first: i32, stride: i32) -> i32 {
        (tiles - first + stride - 1i32) / stride
    }

    /// `left` x `right` transposed, in the accumulators of the matrix units.
    pub fn product<const BM: i32, const BN: i32, const BK: i32>(
        left: Tile<f8e4m3fn, { [BM, BK] }>,
        right: Tile<f8e4m3fn, { [1, BN, BK] }>,
    ) -> Tile<f32, { [BM, BN] }> {
        let right: Tile<f8e4m3fn, { [BN, BK] }> = right.reshape(const_shape![BN, BK]);
        let right: Tile<f8e4m3fn, { [BK, BN] }> = right.transpose();
        let zero: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        // SAFETY: 128 products added in the short accumulators lose 1.3e-4.
        let product: Tile<f32, { [BM, BN] }> =
            unsafe { mmaf_with_fast_acc(left, right, zero, fast_acc::Enabled) };
        product
    }

    /// `tile`, or zeros for no expert.
    pub fn kept<const BM: i32, const BN: i32>(
        tile: Tile<f32, { [BM, BN] }>,
        expert: i32,
    ) -> Tile<f32, { [BM, BN] }> {
        let zero: Tile<f32, { [BM, BN] }> = constant(0.0f32, const_shape![BM, BN]);
        let expert: Tile<i32, { [BM, BN] }> = broadcast_scalar(expert, const_shape![BM, BN]);
        let none: Tile<i32, { [BM, BN] }> = constant(-1i32, const_shape![BM, BN]);
        select(gt_tile(expert, none), tile, zero)
    }
}
