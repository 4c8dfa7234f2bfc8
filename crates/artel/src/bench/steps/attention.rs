//! Rotation with the write to the cache, and attention over it.

use anyhow::Result;
use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::attention::BLOCK_TOKENS;
use artel_layers::attention::cuda::{AttentionParameters, CacheSlices, SequenceSlices};
use artel_layers::attention::decode::cuda::{DecodeAttention, DecodeOut, DecodeWorkspace};
use artel_layers::attention::prefill::cuda::{
    PrefillAttention, PrefillForm, PrefillOut, TileSlices,
};
use artel_layers::attention::prefill::tiles;
use artel_layers::linear::cuda::LinearNumbers;
use artel_layers::rope::RopeStyle;
use artel_layers::rope::cuda::{HeadNorm, RotateAndCache, RotateInputs, RotateRows, RotateShape};
use half::bf16;

use super::Floor;
use super::block::{BlockShape, cold_copies};
use super::cuda::{Report, noise, times, upload};
use super::rows::numbers;

/// Every kernel of one shape.
pub(super) struct AttentionSteps {
    shape: BlockShape,
    rotate_shape: RotateShape,
    rotate: RotateAndCache<bf16>,
    decode: DecodeAttention<bf16>,
    prefill: PrefillAttention<bf16>,
}

impl AttentionSteps {
    pub(super) fn load(kernels: &mut Kernels, shape: BlockShape) -> Result<Self> {
        let rotate_shape = RotateShape {
            query_heads: shape.attention.query_heads,
            kv_heads: shape.attention.kv_heads,
            head_dim: shape.attention.key_dim,
            rotary_dim: shape.rotary_dim,
            style: RopeStyle::NeoX,
            norm: HeadNorm::ByHead { epsilon: 1e-6 },
            parts: 1,
        };
        Ok(Self {
            shape,
            rotate_shape,
            rotate: RotateAndCache::load(kernels, rotate_shape)?,
            decode: DecodeAttention::load(kernels, shape.attention, false)?,
            prefill: PrefillAttention::load(kernels, shape.attention, PrefillForm::default())?,
        })
    }

    pub(super) fn measure(&self, stream: &Stream, report: &mut Report<'_>) -> Result<()> {
        for tokens in [1, 64, 8192] {
            self.rotate(stream, tokens, report)?;
        }
        for (sequences, context) in [(1, 1024), (1, 4096), (1, 32768), (64, 1024), (64, 4096)] {
            self.decode(stream, [sequences, context], report)?;
        }
        for (sequences, context) in [(16, 1024), (1, 8192)] {
            self.prefill(stream, [sequences, context], report)?;
        }
        Ok(())
    }

    fn rotate(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let shape = self.rotate_shape;
        let rows = upload(stream, &numbers(tokens * shape.row_width()))?;
        let angles = upload(stream, &noise(tokens * shape.rotary_dim))?;
        let weight = upload(stream, &noise(shape.head_dim))?;
        let slots = upload(stream, &(0..tokens as i32).rev().collect::<Vec<_>>())?;
        let mut queries = zeroed(stream, tokens * shape.query_heads * shape.head_dim)?;
        let mut cache = Cache::new(stream, &self.shape, [1, tokens])?;
        let times = times(stream, |stream, _| {
            let inputs = RotateInputs {
                rows: RotateRows::Whole(rows.slice()),
                tokens,
                angles: angles.slice(),
                norm_weights: Some([weight.slice(); 2]),
                slots: slots.slice(),
            };
            self.rotate.launch(stream, &inputs, &mut queries.slice_mut(), &mut cache.slices())
        })?;
        let floor = Floor::bytes(tokens * (4 * shape.row_width() + 4 * shape.rotary_dim));
        report(&format!("{} norm, turn and cache", self.shape.name), tokens, floor, &times);
        Ok(())
    }

    fn decode(
        &self,
        stream: &Stream,
        [sequences, context]: [usize; 2],
        report: &mut Report<'_>,
    ) -> Result<()> {
        let shape = self.shape.attention;
        let bytes = 2 * sequences * context * (shape.key_width() + shape.value_width());
        let copies = cold_copies(bytes);
        let mut cache = Cache::new(stream, &self.shape, [copies * sequences, context])?;
        let queries = upload(stream, &numbers(sequences * shape.query_width()))?;
        let mut out = zeroed(stream, sequences * shape.output_width())?;
        let mut workspace = DecodeWorkspace::new(stream.context(), &shape, sequences)?;
        let (tables, lengths) = cache.tables(stream)?;
        let table_stride = context.div_ceil(BLOCK_TOKENS);
        let times = times(stream, |stream, launch| {
            let first = launch % copies * sequences;
            let sequences = SequenceSlices {
                tables: tables.slice().range(first * table_stride, sequences * table_stride)?,
                table_stride,
                lengths: lengths.slice().range(0, sequences)?,
                sequences,
            };
            let operands = (queries.slice(), &cache.slices());
            let (out, workspace) = (&mut out.slice_mut(), &mut workspace);
            let out = DecodeOut::Rows(out);
            self.decode.launch(stream, operands, &sequences, &PARAMETERS, workspace, out)
        })?;
        let step = format!("{} attention, decode over {context}", self.shape.name);
        report(&step, sequences, Floor::bytes(bytes), &times);
        Ok(())
    }

    fn prefill(
        &self,
        stream: &Stream,
        [sequences, context]: [usize; 2],
        report: &mut Report<'_>,
    ) -> Result<()> {
        let shape = self.shape.attention;
        let tokens = sequences * context;
        let mut cache = Cache::new(stream, &self.shape, [sequences, context])?;
        let queries = upload(stream, &numbers(tokens * shape.query_width()))?;
        let mut out = zeroed(stream, tokens * shape.output_width())?;
        let (tables, lengths) = cache.tables(stream)?;
        let of_step = SequenceSlices {
            tables: tables.slice(),
            table_stride: context.div_ceil(BLOCK_TOKENS),
            lengths: lengths.slice(),
            sequences,
        };
        let first_rows: Vec<i32> = (0..=sequences).map(|one| (one * context) as i32).collect();
        let tiles = tiles(&vec![context; sequences]);
        let of_tiles: Vec<i32> = tiles.iter().map(|tile| tile.sequence as i32).collect();
        let rows: Vec<i32> = tiles.iter().map(|tile| tile.first_row as i32).collect();
        let first_rows = upload(stream, &first_rows)?;
        let (of_tiles, rows) = (upload(stream, &of_tiles)?, upload(stream, &rows)?);
        let tiles = TileSlices {
            first_rows: first_rows.slice(),
            sequences: of_tiles.slice(),
            rows: rows.slice(),
        };
        let times = times(stream, |stream, _| {
            let operands = (queries.slice(), &cache.slices());
            let (steps, mut out) = ((&of_step, &tiles), out.slice_mut());
            let out = PrefillOut::Rows(&mut out);
            self.prefill.launch(stream, operands, steps, &PARAMETERS, out)
        })?;
        // Half of the keys are after the token that looks.
        let pairs = sequences as f64 * (context as f64).powi(2) / 2.0;
        let operations = pairs * 2.0 * (shape.query_width() + shape.output_width()) as f64;
        let bytes = 2 * tokens * (shape.query_width() + shape.output_width());
        let floor = Floor::bytes(bytes).or_operations(operations, LinearNumbers::Plain);
        report(
            &format!("{} attention, prompts of {context}", self.shape.name),
            tokens,
            floor,
            &times,
        );
        Ok(())
    }
}

const PARAMETERS: AttentionParameters<'static> =
    AttentionParameters { scale: 0.088, window: None, sinks: None };

/// Keys and values of sequences of one length.
struct Cache {
    keys: DeviceBuffer<bf16>,
    values: DeviceBuffer<bf16>,
    sequences: usize,
    context: usize,
}

impl Cache {
    fn new(stream: &Stream, shape: &BlockShape, [sequences, context]: [usize; 2]) -> Result<Self> {
        let blocks = sequences * context.div_ceil(BLOCK_TOKENS);
        let elements = blocks * BLOCK_TOKENS * shape.attention.key_width();
        let (keys, values) =
            (upload(stream, &numbers(elements))?, upload(stream, &numbers(elements))?);
        Ok(Self { keys, values, sequences, context })
    }

    fn slices(&mut self) -> CacheSlices<'_, bf16> {
        CacheSlices { keys: self.keys.slice_mut(), values: self.values.slice_mut() }
    }

    /// Blocks of each sequence, far from each other, and its length.
    fn tables(&self, stream: &Stream) -> Result<(DeviceBuffer<i32>, DeviceBuffer<i32>)> {
        let stride = self.context.div_ceil(BLOCK_TOKENS);
        let block = |at: usize| (at % stride * self.sequences + at / stride) as i32;
        let tables: Vec<i32> = (0..self.sequences * stride).map(block).collect();
        let lengths = vec![self.context as i32; self.sequences];
        Ok((upload(stream, &tables)?, upload(stream, &lengths)?))
    }
}

fn zeroed(stream: &Stream, len: usize) -> Result<DeviceBuffer<bf16>> {
    Ok(DeviceBuffer::zeroed(stream.context(), len)?)
}
