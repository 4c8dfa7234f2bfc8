//! What the launches leave for each other.

use artel_device::cuda::{Arguments, Context, CudaError, DeviceBuffer};

use super::{WordFormat, WordShape};

/// Largest count of column tiles that sums over pairs keep counters for.
const COUNTERS: usize = 4096;
/// Rows are a multiple of this, as kernels are told.
const ROWS_MULTIPLE: usize = 64;

/// Rows of activations in parts. What no kernel writes stays zero: columns behind the last one, and
/// the columns that a copy of a row leaves to the others.
#[derive(Debug)]
pub struct SplitBuffers {
    format: WordFormat,
    columns: usize,
    /// Rows that there is room for.
    pub(super) rows: usize,
    /// `[columns / depth, copies, rows, columns of a product]`.
    pub(super) parts: DeviceBuffer<i8>,
    /// `[rows]`.
    pub(super) scales: DeviceBuffer<f32>,
    /// `[groups, rows]`, where zero points ask for them.
    pub(super) sums: DeviceBuffer<f32>,
}

impl SplitBuffers {
    /// For `rows` rows of `columns` numbers.
    ///
    /// # Errors
    /// [`CudaError`] when the device has no memory left.
    fn new(
        context: &Context,
        format: WordFormat,
        columns: usize,
        rows: usize,
    ) -> Result<Self, CudaError> {
        let rows = rows.next_multiple_of(ROWS_MULTIPLE);
        let [products, copies, _, depth] = Self::shape(format, columns, rows);
        let sums = if format.has_zero_points() { format.padded(columns) / format.group } else { 1 };
        Ok(Self {
            format,
            columns,
            rows,
            parts: DeviceBuffer::zeroed(context, products * copies * rows * depth)?,
            scales: DeviceBuffer::zeroed(context, rows)?,
            sums: DeviceBuffer::zeroed(context, sums * rows)?,
        })
    }

    fn shape(format: WordFormat, columns: usize, rows: usize) -> [usize; 4] {
        let products = format.padded(columns) / format.depth();
        [products, format.copies(), rows, format.product_columns()]
    }

    /// Whether there is room for so many rows.
    pub(super) fn expect_rows(&self, expected: usize) -> Result<(), CudaError> {
        match expected <= self.rows {
            true => Ok(()),
            false => Err(CudaError::Length { what: "split rows", expected, actual: self.rows }),
        }
    }

    /// The arguments of a product that reads them.
    pub(super) fn arguments(&self, arguments: Arguments) -> Arguments {
        let sums = self.sums.len() / self.rows;
        arguments
            .tensor(self.parts.slice(), &Self::shape(self.format, self.columns, self.rows))
            .slice(self.scales.slice())
            .tensor(self.sums.slice(), &[sums, self.rows])
    }
}

/// Memory between the products, for batches up to a size. One stream at a time may use it.
#[derive(Debug)]
pub struct WordWorkspace {
    /// Hidden states in parts.
    pub(super) x: SplitBuffers,
    /// Activation `[rows, I]`.
    pub(super) inner: DeviceBuffer<f32>,
    /// The same in parts.
    pub(super) inner_parts: SplitBuffers,
    /// Blocks that have come to the sum of each column tile; all 0 between launches.
    pub(super) counters: DeviceBuffer<i32>,
}

impl WordWorkspace {
    /// For steps of at most so many rows of the first and of the second product.
    ///
    /// # Errors
    /// [`CudaError`] when the device has no memory left.
    pub fn new(
        context: &Context,
        shape: &WordShape,
        [x_rows, rows]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let inner = shape.intermediate_size;
        let [of_hidden, of_inner] = shape.formats;
        Ok(Self {
            x: SplitBuffers::new(context, of_hidden, shape.hidden_size, x_rows)?,
            inner: DeviceBuffer::zeroed(context, rows * inner)?,
            inner_parts: SplitBuffers::new(context, of_inner, inner, rows)?,
            counters: DeviceBuffer::zeroed(context, COUNTERS)?,
        })
    }
}
