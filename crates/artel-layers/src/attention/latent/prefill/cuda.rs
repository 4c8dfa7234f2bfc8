//! Attention in the latent space of many tokens a sequence, in one launch.
//!
//! A block of threads takes one token and up to 64 of its heads, so that all rows of its tile see the
//! same keys. Neighbouring tokens run at the same time and read the same keys from the second cache.
//!
//! Work: `2 query_heads (2 rank + rope_dim)` operations for each key that a token sees.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::KernelSpec;

use super::super::{BLOCK_HEADS, LatentSizes};
use crate::attention::prefill::TILE_ROWS;
use crate::attention::{AttentionShape, BLOCK_TOKENS};

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use crate::attention::latent::steps::cuda::latent_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Grid: tiles times their `TR` rows, blocks of `M` query heads. A tile of sequence -1 is none.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn attend_latent_rows<
        A: ElementType,
        const QH: i32,
        const M: i32,
        const L: i32,
        const R: i32,
        const W: i32,
        const BK: i32,
        const BT: i32,
        const TR: i32,
        const PDL: i32,
    >(
        queries: *mut A,
        keys: *mut A,
        _values: *mut A,
        tables: *mut i32,
        lengths: *mut i32,
        first_rows: *mut i32,
        tile_sequences: *mut i32,
        tile_rows: *mut i32,
        _sinks: *mut f32,
        out: *mut A,
        _codes: *mut u8,
        _scales: *mut f32,
        table_stride: i32,
        _window: i32,
        scale: f32,
        _scale_rows: i32,
        _least: f32,
        _most: f32,
    ) {
        let (place, block, _): (i32, i32, i32) = get_tile_block_id();
        let (tile, head): (i32, i32) = (place / TR, block * M);
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a sequence for each tile.
        let sequence: i32 = unsafe { load_i32(tile_sequences, tile, ready) };
        if sequence >= 0i32 {
            // SAFETY: there is a first row for each tile.
            let first_row: i32 = unsafe { load_i32(tile_rows, tile, ready) };
            // SAFETY: there is one more first row than sequences.
            let end_row: i32 = unsafe { load_i32(first_rows, sequence + 1i32, ready) };
            // SAFETY: there is a length for each sequence.
            let length: i32 = unsafe { load_i32(lengths, sequence, ready) };
            let row: i32 = first_row + (place - tile * TR);
            if row < end_row {
                let table: i32 = sequence * table_stride;
                let range: [i32; 3] = [0i32, length - end_row + row + 1i32, 0i32];
                // SAFETY: the sequence has a block for each key, and all lie in the cache; queries and
                // outputs have the row.
                unsafe {
                    attend_row::<A, QH, M, L, R, W, BK, BT>(
                        queries,
                        (keys, tables),
                        out,
                        [row, head, table],
                        range,
                        scale,
                        ready,
                    )
                };
            }
        }
    }

    /// The outputs of some heads of one token. `place`: its row, the first head, where the sequence's
    /// table begins.
    unsafe fn attend_row<
        A: ElementType,
        const QH: i32,
        const M: i32,
        const L: i32,
        const R: i32,
        const W: i32,
        const BK: i32,
        const BT: i32,
    >(
        queries: *mut A,
        cache: (*mut A, *mut i32),
        out: *mut A,
        place: [i32; 3],
        range: [i32; 3],
        scale: f32,
        ready: Token,
    ) {
        let (_keys, tables): (*mut A, *mut i32) = cache;
        // SAFETY: the caller vouches for the row.
        let of_latent: Tile<A, { [M, L] }> =
            unsafe { queries_of::<A, QH, M, L, W>(queries, place[0], place[1], 0i32, ready) };
        // SAFETY: as above.
        let of_rotary: Tile<A, { [M, R] }> =
            unsafe { queries_of::<A, QH, M, R, W>(queries, place[0], place[1], L, ready) };
        // SAFETY: the caller vouches for the table.
        let blocks: [i32; 4] =
            unsafe { blocks_of_step::<BT>(tables, place[2], range[0], range[2], range[1]) };
        // SAFETY: the caller vouches for keys and table.
        let (sum, _largest, total): (
            Tile<f32, { [M, L] }>,
            Tile<f32, { [M] }>,
            Tile<f32, { [M] }>,
        ) = unsafe {
            attend_to_latents::<A, M, L, R, W, BK, BT>(
                (of_latent, of_rotary),
                cache,
                place[2],
                range,
                blocks,
                scale,
                ready,
            )
        };
        let total: Tile<f32, { [M, 1] }> = total.reshape(const_shape![M, 1]);
        let mean: Tile<A, { [M, L] }> = convert_tile(sum / total.broadcast(const_shape![M, L]));
        let is_head: Tile<bool, { [M] }> = below(count_from::<M>(place[1]), QH);
        let always: Tile<bool, { [L] }> = constant(true, const_shape![L]);
        let to: Tile<i32, { [M] }> = count_from::<M>(place[0] * QH + place[1]);
        let offsets: Tile<i64, { [M, L] }> = block_offsets(to, L, count_from::<L>(0i32));
        // SAFETY: the caller vouches for the row.
        unsafe { scatter_block(out, offsets, block_mask(is_head, always), mean, ready) };
    }
}

/// The kernel of a shape whose values are the beginnings of its keys.
pub(in crate::attention) fn spec(
    element: &str,
    shape: &AttentionShape,
    step_keys: usize,
    sizes: LatentSizes,
) -> KernelSpec {
    let LatentSizes { rank, rope_dim, warps, .. } = sizes;
    let heads = [shape.query_heads, BLOCK_HEADS, rank, rope_dim, shape.key_dim];
    let tile = [step_keys, BLOCK_TOKENS, TILE_ROWS];
    let module = kernels::__module_ast_self;
    KernelSpec::new("attention/latent_prefill", module, "kernels", "attend_latent_rows")
        .element(element)
        .generics(heads.into_iter().chain(tile).map(|size| size as i32))
        .pointers(["queries", "keys", "tables", "lengths", "first_rows"])
        .pointers(["tile_sequences", "tile_rows", "out"])
        .warps(warps)
        .occupancy(1)
        .programmatic()
}
