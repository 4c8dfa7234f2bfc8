//! Device functions of attention in the latent space: some heads of one token over a range of keys.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

/// From queries and cached rows to weighted latent vectors.
#[cutile::module]
pub mod latent_code {
    use crate::attention::cuda::attention_code::*;
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// The same column `B` times.
    fn beside<const M: i32, const B: i32>(column: Tile<f32, { [M] }>) -> Tile<f32, { [M, B] }> {
        let column: Tile<f32, { [M, 1] }> = column.reshape(const_shape![M, 1]);
        column.broadcast(const_shape![M, B])
    }

    /// `C` columns from `first` on of some rows of `W` elements, all of which exist.
    unsafe fn read_columns<A: ElementType, const B: i32, const C: i32, const W: i32>(
        base: *mut A,
        rows: Tile<i32, { [B] }>,
        first: i32,
        after: Token,
    ) -> Tile<A, { [B, C] }> {
        let start: Tile<i32, { [B] }> = rows * splat::<B>(W);
        let pointer: PointerTile<*mut A, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut A, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut A, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut A, { [B] }> = pointer.offset_tile(start);
        let pointer: PointerTile<*mut A, { [B, 1] }> = pointer.reshape(const_shape![B, 1]);
        let pointer: PointerTile<*mut A, { [B, C] }> = pointer.broadcast(const_shape![B, C]);
        let column: Tile<i32, { [C] }> = count_from::<C>(first);
        let column: Tile<i32, { [1, C] }> = column.reshape(const_shape![1, C]);
        let column: Tile<i32, { [B, C] }> = column.broadcast(const_shape![B, C]);
        let pointer: PointerTile<*mut A, { [B, C] }> = pointer.offset_tile(column);
        // SAFETY: the caller vouches for the rows.
        let (values, _read): (Tile<A, { [B, C] }>, Token) = unsafe {
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

    /// `C` columns of the queries of `M` heads from `head` on, of `QH` heads of `W` elements; anything
    /// in the rows of no head.
    pub unsafe fn queries_of<
        A: ElementType,
        const QH: i32,
        const M: i32,
        const C: i32,
        const W: i32,
    >(
        queries: *mut A,
        token: i32,
        head: i32,
        first: i32,
        after: Token,
    ) -> Tile<A, { [M, C] }> {
        let row: Tile<i32, { [M] }> = count_from::<M>(token * QH + head);
        let is_head: Tile<bool, { [M] }> = below(count_from::<M>(head), QH);
        let always: Tile<bool, { [C] }> = constant(true, const_shape![C]);
        let mask: Tile<bool, { [M, C] }> = block_mask(is_head, always);
        let offsets: Tile<i64, { [M, C] }> = block_offsets(row, W, count_from::<C>(first));
        // SAFETY: the caller vouches for the token.
        unsafe { gather_block(queries, offsets, mask, after) }
    }

    /// Weighted latent vectors, the largest logit and the weights of each of `M` heads over the keys of
    /// `range`: where they begin, their end, the first that exists. `blocks`: those of the first step.
    ///
    /// A key is a row of `W` elements, `L` of the latent vector and `R` that turn; its value is the
    /// latent vector.
    pub unsafe fn attend_to_latents<
        A: ElementType,
        const M: i32,
        const L: i32,
        const R: i32,
        const W: i32,
        const BK: i32,
        const BT: i32,
    >(
        query: (Tile<A, { [M, L] }>, Tile<A, { [M, R] }>),
        cache: (*mut A, *mut i32),
        table: i32,
        range: [i32; 3],
        first_blocks: [i32; 4],
        scale: f32,
        after: Token,
    ) -> (Tile<f32, { [M, L] }>, Tile<f32, { [M] }>, Tile<f32, { [M] }>) {
        let (keys, tables): (*mut A, *mut i32) = cache;
        let (of_latent, of_rotary): (Tile<A, { [M, L] }>, Tile<A, { [M, R] }>) = query;
        let mut sum: Tile<f32, { [M, L] }> = constant(0.0f32, const_shape![M, L]);
        let mut total: Tile<f32, { [M] }> = constant(0.0f32, const_shape![M]);
        let mut largest: Tile<f32, { [M] }> = lowest::<M>();
        let row_scale: Tile<f32, { [M] }> = broadcast_scalar(scale, const_shape![M]);
        let scale: Tile<f32, { [M, BK] }> = broadcast_scalar(scale, const_shape![M, BK]);
        let nothing: Tile<f32, { [M, BK] }> = constant(0.0f32, const_shape![M, BK]);
        let unseen: Tile<f32, { [M, BK] }> = beside::<M, BK>(lowest::<M>());
        let mut blocks: [i32; 4] = first_blocks;
        for step in 0i32..ceil_div(range[1] - range[0], BK) {
            let start: i32 = range[0] + step * BK;
            let key: Tile<i32, { [BK] }> = count_from::<BK>(start);
            let inside: Tile<i32, { [BK] }> = within::<BK>(key, range[2], range[1]);
            let row: Tile<i32, { [BK] }> = rows_of_keys::<BK, 1, BT>(inside, start, blocks, 0i32);
            // SAFETY: the block lies in the cache.
            let latent: Tile<A, { [BK, L] }> =
                unsafe { read_columns::<A, BK, L, W>(keys, row, 0i32, after) };
            // SAFETY: as above.
            let rotary: Tile<A, { [BK, R] }> =
                unsafe { read_columns::<A, BK, R, W>(keys, row, L, after) };
            // The blocks of the next step are looked up a step ahead.
            // SAFETY: the sequence has a block for each key.
            blocks = unsafe { blocks_of_step::<BT>(tables, table, start + BK, range[2], range[1]) };
            let logits: Tile<f32, { [M, BK] }> = mmaf(of_rotary, rotary.transpose(), nothing);
            let logits: Tile<f32, { [M, BK] }> = mmaf(of_latent, latent.transpose(), logits);
            let seen: Tile<bool, { [1, BK] }> = eq_tile(key, inside).reshape(const_shape![1, BK]);
            let seen: Tile<bool, { [M, BK] }> = seen.broadcast(const_shape![M, BK]);
            let logits: Tile<f32, { [M, BK] }> = select(seen, logits, unseen);
            let found: Tile<f32, { [M] }> = reduce_max(logits, 1i32);
            let new_largest: Tile<f32, { [M] }> = max_tile(largest, found * row_scale);
            let relative: Tile<f32, { [M] }> = finite::<M>(new_largest);
            let weight: Tile<f32, { [M, BK] }> =
                exp2(logits * scale - beside::<M, BK>(relative), ftz::Enabled);
            let correction: Tile<f32, { [M] }> = exp2(largest - relative, ftz::Enabled);
            let added: Tile<f32, { [M] }> = reduce_sum(weight, 1i32);
            total = total * correction + added;
            let weight: Tile<A, { [M, BK] }> = convert_tile(weight);
            sum = mmaf(weight, latent, sum * beside::<M, L>(correction));
            largest = new_largest;
        }
        (sum, largest, total)
    }
}
