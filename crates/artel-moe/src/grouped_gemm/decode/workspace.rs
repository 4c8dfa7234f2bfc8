//! What the products leave for each other.

use artel_device::cuda::{Context, CudaError, DeviceBuffer};

use super::{DecodeShape, WeightNumbers};

/// Largest count of column tiles that [`DirectOut::Sum`](super::cuda::DirectOut) keeps counters for.
const COUNTERS: usize = 4096;

/// Fewest rows of a block of the aligned form, which has a counter.
const BLOCK_ROWS_MIN: usize = 8;

/// Memory between the products, for batches up to a size. One stream at a time may use it.
#[derive(Debug)]
pub struct DecodeWorkspace {
    /// Quantised hidden states `[T, H]`.
    pub(super) codes: DeviceBuffer<u8>,
    /// Their scales `[ceil(H / 128), rows]`.
    pub(super) scales: DeviceBuffer<f32>,
    /// Activation `[rows, I]`: float32 in FP8 layers, else the layer's numbers.
    pub(super) inner: DeviceBuffer<u8>,
    /// Quantised activation `[rows, I]`.
    pub(super) inner_codes: DeviceBuffer<u8>,
    /// Its scales `[ceil(I / 128), rows]`.
    pub(super) inner_scales: DeviceBuffer<f32>,
    /// Blocks that have come to the sum of each column tile, or column tiles of each block that are
    /// written; all 0 between launches.
    pub(super) counters: DeviceBuffer<i32>,
}

impl DecodeWorkspace {
    /// For steps of at most `tokens` tokens and `rows` rows of the second product: positions of the
    /// aligned form, `tokens * K * tile.rows` in the direct form.
    ///
    /// # Errors
    /// [`CudaError`] when the device has no memory left.
    pub fn new(
        context: &Context,
        shape: &DecodeShape,
        tokens: usize,
        rows: usize,
    ) -> Result<Self, CudaError> {
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        let (codes, wide) = codes_and_wide(shape);
        // Scales are read by tiles of the direct form, which may be longer than the batch.
        let stride = tokens.next_multiple_of(64);
        Ok(Self {
            codes: DeviceBuffer::zeroed(context, codes * tokens * hidden)?,
            scales: DeviceBuffer::zeroed(context, codes * hidden.div_ceil(128) * stride)?,
            inner: DeviceBuffer::zeroed(context, rows * inner * wide)?,
            inner_codes: DeviceBuffer::zeroed(context, codes * rows * inner)?,
            inner_scales: DeviceBuffer::zeroed(context, codes * inner.div_ceil(128) * rows)?,
            counters: DeviceBuffer::zeroed(context, COUNTERS.max(rows.div_ceil(BLOCK_ROWS_MIN)))?,
        })
    }

    /// Whether it is large enough for `tokens` tokens, tiles of `tile_rows` rows and `rows` rows of
    /// the second product.
    pub(super) fn check(
        &self,
        shape: &DecodeShape,
        [tokens, tile_rows]: [usize; 2],
        rows: usize,
    ) -> Result<(), CudaError> {
        let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
        let (codes, wide) = codes_and_wide(shape);
        let expect = |what, expected, actual| match expected <= actual {
            true => Ok(()),
            false => Err(CudaError::Length { what, expected, actual }),
        };
        let stride = tokens.next_multiple_of(tile_rows);
        let scales = codes * hidden.div_ceil(128) * stride;
        expect("quantised hidden states", codes * tokens * hidden, self.codes.len())?;
        expect("scales of hidden states", scales, self.scales.len())?;
        expect("activations (bytes)", rows * inner * wide, self.inner.len())?;
        expect("quantised activations", codes * rows * inner, self.inner_codes.len())?;
        let scales = codes * inner.div_ceil(128) * rows;
        expect("scales of activations", scales, self.inner_scales.len())?;
        expect("counters of columns", hidden.div_ceil(32), self.counters.len())
    }
}

/// Bytes of a quantised number and of a number of the activation.
fn codes_and_wide(shape: &DecodeShape) -> (usize, usize) {
    match shape.numbers {
        WeightNumbers::Plain => (0, 2),
        WeightNumbers::Fp8Blocks { .. } => (1, 4),
    }
}
