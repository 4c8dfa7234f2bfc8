//! What attention of few and of many new tokens share on the GPU: the paged cache, its tables, and
//! device functions.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{DeviceSlice, DeviceSliceMut};
use artel_moe::quant::Element;

use super::{AttentionShape, BLOCK_TOKENS, ValueStorage};
use crate::LayersError;

/// Device functions of attention.
#[cutile::module]
pub mod attention_code {
    use cutile::core::*;

    /// Lets the next kernel start. What is loaded after this and before [`wait`] must be older than every
    /// kernel that may still run: weights, and the inputs of a step, which the host writes.
    pub unsafe fn release<const PDL: i32>() -> Token {
        let mut token: Token = new_token_unordered();
        if PDL == 1i32 {
            // SAFETY: a dependent kernel waits for this one to end before it reads its results.
            token = unsafe { gdc_launch_dependents_tko(None) };
        }
        token
    }

    /// Waits for the kernel before.
    pub unsafe fn wait<const PDL: i32>(before: Token) -> Token {
        let mut token: Token = before;
        if PDL == 1i32 {
            // SAFETY: the kernel was launched with programmatic serialisation.
            token = unsafe { gdc_wait_tko(Some(before)) };
        }
        token
    }

    /// `B` times the same number.
    pub fn splat<const B: i32>(value: i32) -> Tile<i32, { [B] }> {
        let tile: Tile<i32, { [B] }> = broadcast_scalar(value, const_shape![B]);
        tile
    }

    /// `base[offsets[i]]` for every `i`. No token: the offsets follow from what was loaded after the
    /// wait, or the memory is never written.
    pub unsafe fn read<E: ElementType, const B: i32>(
        base: *mut E,
        offsets: Tile<i32, { [B] }>,
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
                None,
                Latency::<0>,
            )
        };
        values
    }

    /// Where the elements of rows of `D` lie, of fewer than 2^31.
    fn rows_at<E: ElementType, const B: i32, const D: i32>(
        base: *mut E,
        rows: Tile<i32, { [B] }>,
    ) -> PointerTile<*mut E, { [B, D] }> {
        let start: Tile<i32, { [B] }> = rows * splat::<B>(D);
        let pointer: PointerTile<*mut E, { [] }> = pointer_to_tile(base);
        let pointer: PointerTile<*mut E, { [1] }> = pointer.reshape(const_shape![1]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.broadcast(const_shape![B]);
        let pointer: PointerTile<*mut E, { [B] }> = pointer.offset_tile(start);
        let pointer: PointerTile<*mut E, { [B, 1] }> = pointer.reshape(const_shape![B, 1]);
        let pointer: PointerTile<*mut E, { [B, D] }> = pointer.broadcast(const_shape![B, D]);
        let column: Tile<i32, { [D] }> = iota(const_shape![D]);
        let column: Tile<i32, { [1, D] }> = column.reshape(const_shape![1, D]);
        let column: Tile<i32, { [B, D] }> = column.broadcast(const_shape![B, D]);
        let pointer: PointerTile<*mut E, { [B, D] }> = pointer.offset_tile(column);
        pointer
    }

    /// Some rows of `D` elements, all of which exist. No token, as above.
    pub unsafe fn read_rows<E: ElementType, const B: i32, const D: i32>(
        base: *mut E,
        rows: Tile<i32, { [B] }>,
    ) -> Tile<E, { [B, D] }> {
        // SAFETY: the caller vouches for the rows.
        let (values, _read): (Tile<E, { [B, D] }>, Token) = unsafe {
            load_ptr_tko(
                rows_at::<E, B, D>(base, rows),
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                None,
                Latency::<0>,
            )
        };
        values
    }

    /// As `read_rows`, of memory that the kernel before may write.
    pub unsafe fn read_rows_after<E: ElementType, const B: i32, const D: i32>(
        base: *mut E,
        rows: Tile<i32, { [B] }>,
        after: Token,
    ) -> Tile<E, { [B, D] }> {
        // SAFETY: the caller vouches for the rows.
        let (values, _read): (Tile<E, { [B, D] }>, Token) = unsafe {
            load_ptr_tko(
                rows_at::<E, B, D>(base, rows),
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

    /// `base[offset]`. No token, as above.
    pub unsafe fn read_one(base: *mut i32, offset: i32) -> i32 {
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

    /// The four blocks from that of key `start` on, of a sequence whose table begins at `table` and
    /// whose keys from `first` up to `end` are wanted: in place of others, the nearest that is.
    pub unsafe fn blocks_of_step<const BT: i32>(
        tables: *mut i32,
        table: i32,
        start: i32,
        first: i32,
        end: i32,
    ) -> [i32; 4] {
        let low: i32 = first / BT;
        let high: i32 = max(end - 1i32, 0i32) / BT;
        let number: i32 = start / BT;
        // SAFETY: the sequence has a block for each key that is wanted.
        let a: i32 = unsafe { read_one(tables, table + min(max(number, low), high)) };
        // SAFETY: as above.
        let b: i32 = unsafe { read_one(tables, table + min(max(number + 1i32, low), high)) };
        // SAFETY: as above.
        let c: i32 = unsafe { read_one(tables, table + min(max(number + 2i32, low), high)) };
        // SAFETY: as above.
        let d: i32 = unsafe { read_one(tables, table + min(max(number + 3i32, low), high)) };
        [a, b, c, d]
    }

    /// Keys, or the nearest that is wanted in place of others.
    pub fn within<const B: i32>(
        key: Tile<i32, { [B] }>,
        first: i32,
        end: i32,
    ) -> Tile<i32, { [B] }> {
        min_tile(max_tile(key, splat::<B>(first)), splat::<B>(end - 1i32))
    }

    /// Rows of the cache that hold some keys of a step that starts at `start`, in `blocks`, head
    /// `head`. Of arithmetic alone: rows that were loaded would have their addresses moved between
    /// threads, through shared memory.
    pub fn rows_of_keys<const B: i32, const KH: i32, const BT: i32>(
        keys: Tile<i32, { [B] }>,
        start: i32,
        blocks: [i32; 4],
        head: i32,
    ) -> Tile<i32, { [B] }> {
        let size: Tile<i32, { [B] }> = splat::<B>(BT);
        let number: Tile<i32, { [B] }> = keys / size;
        let place: Tile<i32, { [B] }> = number - splat::<B>(start / BT);
        let late: Tile<i32, { [B] }> =
            select(gt_tile(place, splat::<B>(2i32)), splat::<B>(blocks[3]), splat::<B>(blocks[2]));
        let early: Tile<i32, { [B] }> =
            select(gt_tile(place, splat::<B>(0i32)), splat::<B>(blocks[1]), splat::<B>(blocks[0]));
        let block: Tile<i32, { [B] }> = select(gt_tile(place, splat::<B>(1i32)), late, early);
        (block * splat::<B>(KH) + splat::<B>(head)) * size + (keys - number * size)
    }

    /// Negative infinity.
    pub fn lowest<const B: i32>() -> Tile<f32, { [B] }> {
        let bits: Tile<i32, { [B] }> = constant(-8388608i32, const_shape![B]);
        bitcast(bits)
    }

    /// Zero for negative infinity: a row that has seen nothing keeps weights of zero.
    pub fn finite<const B: i32>(largest: Tile<f32, { [B] }>) -> Tile<f32, { [B] }> {
        let zero: Tile<f32, { [B] }> = constant(0.0f32, const_shape![B]);
        select(eq_tile(largest, lowest::<B>()), zero, largest)
    }
}

/// `log2(e)`: kernels compute with powers of two.
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Keys and values of one layer, `[blocks, kv_heads, 16, D]` each.
#[derive(Debug)]
pub struct CacheSlices<'a, A: Element> {
    /// Keys.
    pub keys: DeviceSliceMut<'a, A>,
    /// Values; empty where they are the beginnings of keys.
    pub values: DeviceSliceMut<'a, A>,
}

impl<A: Element> CacheSlices<'_, A> {
    /// Blocks that both have room for.
    pub fn blocks(&self, kv_heads: usize, head_dim: usize) -> usize {
        self.keys.len().min(self.values.len()) / (BLOCK_TOKENS * kv_heads * head_dim).max(1)
    }

    /// Kernels number the elements of a layer with 31 bits.
    pub(super) fn check(&self, shape: &AttentionShape) -> Result<(), LayersError> {
        let blocks = match shape.values {
            ValueStorage::Own => self.blocks(shape.kv_heads, shape.key_dim),
            ValueStorage::KeyPrefix => self.keys.len() / (BLOCK_TOKENS * shape.key_width()),
        };
        let elements = blocks * BLOCK_TOKENS * shape.key_width();
        if elements > i32::MAX as usize {
            let most = i32::MAX as usize / (BLOCK_TOKENS * shape.key_width());
            return Err(LayersError::config(
                "blocks of the cache",
                blocks,
                format!("at most {most}"),
            ));
        }
        Ok(())
    }
}

/// What attention reads of the sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct SequenceSlices<'a> {
    /// Blocks of each sequence in order, `[S, table_stride]`; every number that a key needs lies inside
    /// the cache.
    pub tables: DeviceSlice<'a, i32>,
    /// Room for blocks in a row of `tables`.
    pub table_stride: usize,
    /// Keys of each sequence, the new ones included, `[S]`; at most `16 * table_stride`.
    pub lengths: DeviceSlice<'a, i32>,
    /// `S`.
    pub sequences: usize,
}

impl SequenceSlices<'_> {
    pub(super) fn check(&self) -> Result<(), LayersError> {
        self.tables.expect_len("block tables", self.sequences * self.table_stride)?;
        self.lengths.expect_len("lengths of sequences", self.sequences)?;
        Ok(())
    }
}

/// Numbers of one layer that both kernels take at a launch.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParameters<'a> {
    /// Of the logits.
    pub scale: f32,
    /// Keys that a token sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// One logit more for each query head, `[query_heads]`.
    pub sinks: Option<DeviceSlice<'a, f32>>,
}

impl AttentionParameters<'_> {
    /// The window as kernels take it.
    pub(super) fn window(&self) -> Result<i32, LayersError> {
        match self.window {
            None => Ok(i32::MAX),
            Some(0) => Err(LayersError::config("sliding_window", 0, "at least 1")),
            Some(window) => Ok(i32::try_from(window).unwrap_or(i32::MAX)),
        }
    }
}

/// Checks what the kernels need of a shape and returns the size of its heads.
pub(super) fn head_dim(shape: &AttentionShape) -> Result<usize, LayersError> {
    shape.check()?;
    let AttentionShape { key_dim, value_dim, values, .. } = *shape;
    if values != ValueStorage::Own || key_dim != value_dim {
        let allowed = "values of their own, as wide as keys, on a GPU";
        return Err(LayersError::config("attention", format!("{shape:?}"), allowed));
    }
    if !matches!(key_dim, 32 | 64 | 128 | 256) {
        return Err(LayersError::config("head_dim", key_dim, "32, 64, 128 or 256 on a GPU"));
    }
    Ok(key_dim)
}
