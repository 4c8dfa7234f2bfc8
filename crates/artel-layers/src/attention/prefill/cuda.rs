//! Paged attention of many tokens a sequence in one launch.
//!
//! Work: `4 D` operations for each query head and each key that a token sees: `2 T (2 cached + T) D
//! query_heads` for `T` new tokens of one sequence, over the peak of the matrix units. Bytes: rows of
//! queries and of outputs once, keys and values at least once.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::BLOCK;
use artel_moe::quant::activations::ScaleBounds;
use artel_moe::quant::activations::cuda::QuantizedRows;

use super::TILE_ROWS;
use crate::LayersError;
use crate::attention::cuda::{AttentionParameters, CacheSlices, LOG2_E, SequenceSlices, head_dim};
use crate::attention::latent::{self, LatentSizes};
use crate::attention::{AttentionShape, BLOCK_TOKENS, ValueStorage};

#[cutile::module]
mod kernels {
    use crate::attention::cuda::attention_code::*;
    use crate::attention::prefill::steps::cuda::step_code::*;
    use artel_moe::cuda::device_code::*;
    use artel_moe::quant::activations::codes::cuda::quantize_code::*;
    use cutile::core::*;

    /// Grid: tiles, query heads. A tile of sequence -1 is none. `CODES`: outputs are codes, `scale_rows`
    /// scales for each head, which `least` and `most` limit.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn attend_tiles<
        A: ElementType,
        const QH: i32,
        const KH: i32,
        const D: i32,
        const BM: i32,
        const BK: i32,
        const BT: i32,
        const SINKS: i32,
        const WINDOW: i32,
        const CODES: i32,
        const PDL: i32,
    >(
        queries: *mut A,
        keys: *mut A,
        values: *mut A,
        tables: *mut i32,
        lengths: *mut i32,
        first_rows: *mut i32,
        tile_sequences: *mut i32,
        tile_rows: *mut i32,
        sinks: *mut f32,
        out: *mut A,
        codes: *mut u8,
        scales: *mut f32,
        table_stride: i32,
        window: i32,
        scale: f32,
        scale_rows: i32,
        least: f32,
        most: f32,
    ) {
        let (tile, head, _): (i32, i32, i32) = get_tile_block_id();
        // SAFETY: launched as its specification says, after whatever wrote the operands.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: there is a sequence for each tile.
        let sequence: i32 = unsafe { load_i32(tile_sequences, tile, ready) };
        if sequence >= 0i32 {
            // SAFETY: there are a first row for each tile and a length for each sequence.
            let rows: [i32; 3] =
                unsafe { rows_of_tile(tile_rows, first_rows, lengths, tile, sequence, ready) };
            let place: [i32; 2] = [sequence * table_stride, head];
            let cache: (*mut A, *mut A, *mut i32) = (keys, values, tables);
            // SAFETY: the sequence has a block for each key, and all lie in the cache.
            let mean: Tile<A, { [BM, D] }> = unsafe {
                attend_rows::<A, QH, KH, D, BM, BK, BT, SINKS, WINDOW>(
                    queries, cache, sinks, rows, place, window, scale, ready,
                )
            };
            // SAFETY: outputs have the rows of queries.
            unsafe {
                if CODES == 1i32 {
                    store_codes::<A, QH, BM, D>(
                        codes, scales, mean, rows, head, scale_rows, least, most, ready,
                    );
                } else {
                    store_rows::<A, QH, BM, D>(out, mean, rows, head, ready);
                }
            }
        }
    }

    /// First row of a tile, the end of its sequence's rows, and the sequence's length.
    unsafe fn rows_of_tile(
        tile_rows: *mut i32,
        first_rows: *mut i32,
        lengths: *mut i32,
        tile: i32,
        sequence: i32,
        ready: Token,
    ) -> [i32; 3] {
        // SAFETY: there is a first row for each tile.
        let first_row: i32 = unsafe { load_i32(tile_rows, tile, ready) };
        // SAFETY: there is one more first row than sequences.
        let end_row: i32 = unsafe { load_i32(first_rows, sequence + 1i32, ready) };
        // SAFETY: there is a length for each sequence.
        let length: i32 = unsafe { load_i32(lengths, sequence, ready) };
        [first_row, end_row, length]
    }

    /// Where the rows of a tile lie for one head, and which of them exist.
    fn block_of_head<const QH: i32, const BM: i32, const D: i32>(
        rows: [i32; 3],
        head: i32,
    ) -> (Tile<i64, { [BM, D] }>, Tile<bool, { [BM, D] }>) {
        let row: Tile<i32, { [BM] }> = count_from::<BM>(rows[0]);
        let is_row: Tile<bool, { [BM] }> = below(row, rows[1]);
        let always: Tile<bool, { [D] }> = constant(true, const_shape![D]);
        let head_row: Tile<i32, { [BM] }> = row * splat::<BM>(QH) + splat::<BM>(head);
        let offsets: Tile<i64, { [BM, D] }> = block_offsets(head_row, D, count_from::<D>(0i32));
        (offsets, block_mask(is_row, always))
    }

    /// The outputs of a tile. `place`: where the sequence's table begins, the query head.
    unsafe fn attend_rows<
        A: ElementType,
        const QH: i32,
        const KH: i32,
        const D: i32,
        const BM: i32,
        const BK: i32,
        const BT: i32,
        const SINKS: i32,
        const WINDOW: i32,
    >(
        queries: *mut A,
        cache: (*mut A, *mut A, *mut i32),
        sinks: *mut f32,
        rows: [i32; 3],
        place: [i32; 2],
        window: i32,
        scale: f32,
        ready: Token,
    ) -> Tile<A, { [BM, D] }> {
        let first_position: i32 = rows[2] - rows[1] + rows[0];
        let end: i32 = min(first_position + BM, rows[2]);
        let mut first_seen: i32 = 0i32;
        if WINDOW == 1i32 {
            first_seen = max(first_position - window + 1i32, 0i32);
        }
        let range: [i32; 3] = [first_seen / BK * BK, end, first_seen];
        let (offsets, mask): (Tile<i64, { [BM, D] }>, Tile<bool, { [BM, D] }>) =
            block_of_head::<QH, BM, D>(rows, place[1]);
        // SAFETY: queries has the rows of all sequences.
        let query: Tile<A, { [BM, D] }> = unsafe { gather_block(queries, offsets, mask, ready) };
        // SAFETY: there is a sink for each head.
        let sink: Tile<f32, { [BM] }> = unsafe { load_sink::<BM, SINKS>(sinks, place[1]) };
        let place: [i32; 2] = [place[0], place[1] / (QH / KH)];
        // SAFETY: the sequence has a block for each key, and all lie in the cache.
        let mean: Tile<f32, { [BM, D] }> = unsafe {
            attend::<A, KH, D, BM, BK, BT, WINDOW>(
                query,
                cache,
                place,
                range,
                first_position,
                sink,
                window,
                scale,
            )
        };
        convert_tile(mean)
    }

    /// Stores the rows of a head.
    unsafe fn store_rows<A: ElementType, const QH: i32, const BM: i32, const D: i32>(
        out: *mut A,
        mean: Tile<A, { [BM, D] }>,
        rows: [i32; 3],
        head: i32,
        ready: Token,
    ) {
        let (offsets, mask): (Tile<i64, { [BM, D] }>, Tile<bool, { [BM, D] }>) =
            block_of_head::<QH, BM, D>(rows, head);
        // SAFETY: the caller vouches for the rows.
        unsafe { scatter_block(out, offsets, mask, mean, ready) };
    }

    /// Stores the codes of the rows of a head, which have a scale each.
    unsafe fn store_codes<A: ElementType, const QH: i32, const BM: i32, const D: i32>(
        codes: *mut u8,
        scales: *mut f32,
        mean: Tile<A, { [BM, D] }>,
        rows: [i32; 3],
        head: i32,
        scale_rows: i32,
        least: f32,
        most: f32,
        ready: Token,
    ) {
        let (offsets, mask): (Tile<i64, { [BM, D] }>, Tile<bool, { [BM, D] }>) =
            block_of_head::<QH, BM, D>(rows, head);
        let mean: Tile<f32, { [BM, D] }> = convert_tile(mean);
        let found: Tile<f32, { [BM, 1] }> = group_scales::<BM, D, 1, D>(mean, least, most);
        let code: Tile<f8e4m3fn, { [BM, D] }> = to_codes::<BM, D, 1, D>(mean, found);
        let code: Tile<u8, { [BM, D] }> = bitcast(code);
        // SAFETY: the caller vouches for the rows.
        unsafe { scatter_block(codes, offsets, mask, code, ready) };
        let row: Tile<i32, { [BM] }> = count_from::<BM>(rows[0]);
        let is_row: Tile<bool, { [BM] }> = below(row, rows[1]);
        // SAFETY: as above, and there are scales for each head.
        unsafe {
            store_scales::<BM, 1>(scales, found, row, is_row, head, QH, 1i32, scale_rows, ready)
        };
    }
}

/// Keys of a step.
const STEP_KEYS: usize = 64;

/// The tiles of a step on the device; see [`super::tiles`].
#[derive(Debug, Clone, Copy)]
pub struct TileSlices<'a> {
    /// First row of each sequence, and the end of the last, `[S + 1]`.
    pub first_rows: DeviceSlice<'a, i32>,
    /// Sequence of each tile, `[tiles]`; -1: none.
    pub sequences: DeviceSlice<'a, i32>,
    /// First row of each tile, `[tiles]`.
    pub rows: DeviceSlice<'a, i32>,
}

/// What a layer's attention has besides queries, keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefillForm {
    /// One logit more for each query head.
    pub sinks: bool,
    /// Whether tokens see a window of keys only.
    pub window: bool,
    /// Whether outputs are stored as FP8 codes, a scale for each head of 128.
    pub codes: bool,
}

/// Where outputs go.
#[derive(Debug)]
pub enum PrefillOut<'a, 'b, A: HalfElement> {
    /// `[T, query_heads * D]`.
    Rows(&'a mut DeviceSliceMut<'b, A>),
    /// The same as [`Quantize`](artel_moe::quant::activations::cuda::Quantize) makes of these rows, with
    /// groups of 128.
    Codes(&'a mut QuantizedRows<'b>),
}

/// Attention of many tokens a sequence.
#[derive(Debug, Clone)]
pub struct PrefillAttention<A> {
    kernel: Kernel,
    shape: AttentionShape,
    form: PrefillForm,
    /// Blocks of threads of a row in the latent space.
    latent_blocks: Option<usize>,
    element: PhantomData<A>,
}

/// Blocks of a multiprocessor, as many as have registers for what they sum up: while one finds weights,
/// the others multiply.
fn occupancy(head_dim: usize) -> usize {
    match head_dim {
        ..=64 => 4,
        65..=128 => 3,
        _ => 2,
    }
}

impl<A: HalfElement> PrefillAttention<A> {
    /// Asks for the kernel; the window and the scale are arguments of a launch.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a shape without a kernel, [`LayersError::Cuda`] when the kernel is
    /// missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: AttentionShape,
        form: PrefillForm,
    ) -> Result<Self, LayersError> {
        let (spec, latent_blocks) = match shape.values {
            ValueStorage::Own => (spec(A::NAME, &shape, form)?, None),
            ValueStorage::KeyPrefix => {
                let sizes = LatentSizes::new(&shape)?;
                if form != PrefillForm::default() {
                    let (found, allowed) = (format!("{form:?}"), "none of it in the latent space");
                    return Err(LayersError::config("attention of prompts", found, allowed));
                }
                let spec = latent::prefill::cuda::spec(A::NAME, &shape, STEP_KEYS, sizes);
                (spec, Some(sizes.head_blocks))
            }
        };
        let kernel = kernels.get(&spec)?;
        Ok(Self { kernel, shape, form, latent_blocks, element: PhantomData })
    }

    /// What it was loaded for.
    pub fn form(&self) -> PrefillForm {
        self.form
    }

    /// Attends for all new tokens: `queries` are `[T, query_heads * key_dim]`, `out` `[T, query_heads *
    /// value_dim]`. The keys and values of
    /// the new tokens are in the cache; the lengths of the sequences count them.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a window of 0 or a scale that is not above 0, [`LayersError::Cuda`]
    /// when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When there are sinks that were not asked for, or none that were; the same of a window and of codes.
    pub fn launch(
        &self,
        stream: &Stream,
        (queries, cache): (DeviceSlice<'_, A>, &CacheSlices<'_, A>),
        (sequences, tiles): (&SequenceSlices<'_>, &TileSlices<'_>),
        parameters: &AttentionParameters<'_>,
        out: PrefillOut<'_, '_, A>,
    ) -> Result<(), LayersError> {
        sequences.check()?;
        cache.check(&self.shape)?;
        tiles.first_rows.expect_len("first rows of sequences", sequences.sequences + 1)?;
        tiles.rows.expect_len("first rows of tiles", tiles.sequences.len())?;
        // The largest logit is found before it is scaled.
        if parameters.scale.is_nan() || parameters.scale <= 0.0 {
            return Err(LayersError::config("scale", parameters.scale, "above 0 on a GPU"));
        }
        let arguments = Arguments::new()
            .slice(queries)
            .slice_mut(&cache.keys)
            .slice_mut(&cache.values)
            .slice(sequences.tables)
            .slice(sequences.lengths)
            .slice(tiles.first_rows)
            .slice(tiles.sequences)
            .slice(tiles.rows);
        let arguments = match (self.form.sinks, parameters.sinks) {
            (false, None) => arguments.no_slice(),
            (true, Some(sinks)) => {
                sinks.expect_len("the attention sinks", self.shape.query_heads)?;
                arguments.slice(sinks)
            }
            _ => panic!("this is a bug: sinks and their use must come together"),
        };
        if self.form.window != parameters.window.is_some() {
            panic!("this is a bug: a window and its use must come together");
        }
        let tokens = queries.len() / self.shape.query_width();
        let arguments = self.out_arguments(arguments, &out, tokens)?;
        let (scale_rows, bounds) = match &out {
            PrefillOut::Rows(_) => (0, ScaleBounds::HIDDEN),
            PrefillOut::Codes(codes) => (self.scale_rows(codes)?, codes.bounds),
        };
        let arguments = arguments
            .size(sequences.table_stride)
            .i32(parameters.window()?)
            .f32(parameters.scale * LOG2_E)
            .size(scale_rows)
            .f32(bounds.least)
            .f32(bounds.most);
        let tiles = tiles.sequences.len();
        let grid = match self.latent_blocks {
            None => [tiles, self.shape.query_heads, 1],
            Some(blocks) => [tiles * TILE_ROWS, blocks, 1],
        };
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches
        // for tables, lengths and tiles.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// Scales of a head, which lie side by side.
    fn scale_rows(&self, codes: &QuantizedRows<'_>) -> Result<usize, LayersError> {
        match codes.scale_strides(self.shape.query_heads) {
            [1, rows] => Ok(rows),
            strides => {
                let allowed = "1 from row to row";
                Err(LayersError::config("strides of scales", format!("{strides:?}"), allowed))
            }
        }
    }

    /// Checks the outputs of `tokens` rows.
    fn out_arguments(
        &self,
        arguments: Arguments,
        out: &PrefillOut<'_, '_, A>,
        tokens: usize,
    ) -> Result<Arguments, LayersError> {
        match (out, self.form.codes) {
            (PrefillOut::Rows(rows), false) => {
                let elements = tokens * self.shape.output_width();
                rows.expect_len("the output of attention", elements)?;
                Ok(arguments.slice_mut(rows).no_slice().no_slice())
            }
            (PrefillOut::Codes(rows), true) => {
                let (width, heads) = (self.shape.query_width(), self.shape.query_heads);
                rows.expect_rows(tokens, width, heads)?;
                Ok(arguments.no_slice().slice_mut(&rows.codes).slice_mut(&rows.scales))
            }
            _ => panic!("this is a bug: codes and their use must come together"),
        }
    }
}

/// The kernel of a shape whose values are its own.
fn spec(
    element: &str,
    shape: &AttentionShape,
    form: PrefillForm,
) -> Result<KernelSpec, LayersError> {
    let head_dim = head_dim(shape)?;
    let heads = [shape.query_heads, shape.kv_heads, head_dim];
    let tile = [TILE_ROWS, STEP_KEYS, BLOCK_TOKENS];
    if form.codes && head_dim != BLOCK {
        let allowed = format!("{BLOCK} where outputs are codes");
        return Err(LayersError::config("head_dim", head_dim, allowed));
    }
    let form_sizes = [form.sinks, form.window, form.codes].map(usize::from);
    let sizes = heads.into_iter().chain(tile).chain(form_sizes);
    let module = kernels::__module_ast_self;
    let spec = KernelSpec::new("attention/prefill", module, "kernels", "attend_tiles")
        .element(element)
        .generics(sizes.map(|size| size as i32))
        .pointers(["queries", "keys", "values", "tables", "lengths"])
        .pointers(["first_rows", "tile_sequences", "tile_rows", "sinks"])
        .pointers(["out", "codes", "scales"])
        .warps(4)
        .occupancy(occupancy(head_dim))
        .programmatic();
    Ok(if form.codes { spec.needs(Architecture::Sm90) } else { spec })
}
