//! The parts of attention in the latent space, of one token a sequence.
//!
//! Query heads stand on the long side of the matrix units, up to 64 of them in a block of threads, and a
//! key is read once for its logits and for its value. Two blocks share what is read of 128 heads, side by
//! side, so that the second cache delivers it to one of them.
//!
//! Bytes: `keys * (rank + rope_dim)` numbers a sequence, and for each part `query_heads * (rank + 2)`
//! float32 written and read. Work: `2 query_heads (2 rank + rope_dim)` operations a key; with 128 heads
//! that is 242 for each byte, about what an H200 does in the time of one.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::KernelSpec;

use super::super::{BLOCK_HEADS, LatentSizes};
use crate::attention::decode::Cut;
use crate::attention::{AttentionShape, BLOCK_TOKENS};

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use crate::attention::decode::cuda::decode_code::*;
    use crate::attention::latent::steps::cuda::latent_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Stores one part of each head.
    unsafe fn store_part<const M: i32, const L: i32>(
        parts: (*mut f32, *mut f32, *mut f32),
        row: Tile<i32, { [M] }>,
        is_head: Tile<bool, { [M] }>,
        sum: Tile<f32, { [M, L] }>,
        largest: Tile<f32, { [M] }>,
        total: Tile<f32, { [M] }>,
        after: Token,
    ) {
        let (sums, largests, totals): (*mut f32, *mut f32, *mut f32) = parts;
        // SAFETY: the caller vouches for the rows.
        unsafe { scatter(largests, row, is_head, largest, after) };
        // SAFETY: as above.
        unsafe { scatter(totals, row, is_head, total, after) };
        let always: Tile<bool, { [L] }> = constant(true, const_shape![L]);
        let offsets: Tile<i64, { [M, L] }> = block_offsets(row, L, count_from::<L>(0i32));
        let mask: Tile<bool, { [M, L] }> = block_mask(is_head, always);
        // SAFETY: as above.
        unsafe { scatter_block(sums, offsets, mask, sum, after) };
    }

    /// Grid: sequences times blocks of `M` query heads, and blocks that share the parts of one.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn attend_latent_parts<
        A: ElementType,
        const QH: i32,
        const HEAD_BLOCKS: i32,
        const M: i32,
        const L: i32,
        const R: i32,
        const W: i32,
        const BK: i32,
        const BT: i32,
        const PARTS: i32,
        const PART_MIN: i32,
        const PDL: i32,
    >(
        queries: *mut A,
        keys: *mut A,
        _values: *mut A,
        tables: *mut i32,
        lengths: *mut i32,
        sums: *mut f32,
        largests: *mut f32,
        totals: *mut f32,
        table_stride: i32,
        window: i32,
        scale: f32,
    ) {
        let (pair, first_part, _): (i32, i32, i32) = get_tile_block_id();
        let sharing: i32 = get_num_tile_blocks().1;
        let sequence: i32 = pair / HEAD_BLOCKS;
        let head: i32 = (pair - sequence * HEAD_BLOCKS) * M;
        // SAFETY: what it reads before it waits is older than every kernel that may still run.
        let early: Token = unsafe { release::<PDL>() };
        // SAFETY: there is a length for each sequence.
        let length: i32 = unsafe { load_i32(lengths, sequence, early) };
        let keys_cut: [i32; 4] = cut::<BK, PARTS, PART_MIN>(length, window);
        let table: i32 = sequence * table_stride;
        let start: i32 = keys_cut[0] + first_part * keys_cut[2];
        // SAFETY: the table of a sequence has a block at least.
        let mut blocks: [i32; 4] =
            unsafe { blocks_of_step::<BT>(tables, table, start, keys_cut[1], length) };
        // SAFETY: launched as its specification says, after whatever wrote queries and keys.
        let ready: Token = unsafe { wait::<PDL>(early) };
        for turn in 0i32..ceil_div(max(keys_cut[3] - first_part, 0i32), sharing) {
            let part: i32 = first_part + turn * sharing;
            let start: i32 = keys_cut[0] + part * keys_cut[2];
            // SAFETY: the sequence has a block for each key, and all lie in the cache; there are queries
            // of each sequence and room for `PARTS` parts of every head.
            unsafe {
                attend_part::<A, QH, M, L, R, W, BK, BT, PARTS>(
                    queries,
                    (keys, tables),
                    (sums, largests, totals),
                    [sequence, head, part, table],
                    [start, min(start + keys_cut[2], length), keys_cut[1]],
                    blocks,
                    scale,
                    ready,
                )
            };
            let next: i32 = start + sharing * keys_cut[2];
            // SAFETY: as above; behind the last part, its last block.
            blocks = unsafe { blocks_of_step::<BT>(tables, table, next, keys_cut[1], length) };
        }
    }

    /// One part of some heads. `place`: the sequence, the first head, the part, where the sequence's table
    /// begins. Queries are loaded for each part anew: kept over all parts, they would fill registers.
    unsafe fn attend_part<
        A: ElementType,
        const QH: i32,
        const M: i32,
        const L: i32,
        const R: i32,
        const W: i32,
        const BK: i32,
        const BT: i32,
        const PARTS: i32,
    >(
        queries: *mut A,
        cache: (*mut A, *mut i32),
        parts: (*mut f32, *mut f32, *mut f32),
        place: [i32; 4],
        range: [i32; 3],
        blocks: [i32; 4],
        scale: f32,
        ready: Token,
    ) {
        // SAFETY: the caller vouches for the sequence.
        let of_latent: Tile<A, { [M, L] }> =
            unsafe { queries_of::<A, QH, M, L, W>(queries, place[0], place[1], 0i32, ready) };
        // SAFETY: as above.
        let of_rotary: Tile<A, { [M, R] }> =
            unsafe { queries_of::<A, QH, M, R, W>(queries, place[0], place[1], L, ready) };
        // SAFETY: the caller vouches for keys and table.
        let (sum, largest, total): (Tile<f32, { [M, L] }>, Tile<f32, { [M] }>, Tile<f32, { [M] }>) = unsafe {
            attend_to_latents::<A, M, L, R, W, BK, BT>(
                (of_latent, of_rotary),
                cache,
                place[3],
                range,
                blocks,
                scale,
                ready,
            )
        };
        let is_head: Tile<bool, { [M] }> = below(count_from::<M>(place[1]), QH);
        let head_row: Tile<i32, { [M] }> = count_from::<M>(place[0] * QH + place[1]);
        let row: Tile<i32, { [M] }> = head_row * splat::<M>(PARTS) + splat::<M>(place[2]);
        // SAFETY: the caller vouches for the room.
        unsafe { store_part::<M, L>(parts, row, is_head, sum, largest, total, ready) };
    }
}

/// The kernel of a shape whose values are the beginnings of its keys.
pub(in crate::attention) fn spec(
    element: &str,
    shape: &AttentionShape,
    cut: Cut,
    sizes: LatentSizes,
) -> KernelSpec {
    let LatentSizes { head_blocks, rank, rope_dim, warps } = sizes;
    let heads = [shape.query_heads, head_blocks, BLOCK_HEADS, rank, rope_dim, shape.key_dim];
    let cut = [cut.step_keys, BLOCK_TOKENS, cut.parts_max, cut.part_keys_min];
    let module = kernels::__module_ast_self;
    KernelSpec::new("attention/latent_decode", module, "kernels", "attend_latent_parts")
        .element(element)
        .generics(heads.into_iter().chain(cut).map(|size| size as i32))
        .pointers(["queries", "keys", "tables", "lengths", "sums", "largests", "totals"])
        .warps(warps)
        .occupancy(1)
        .programmatic()
}
