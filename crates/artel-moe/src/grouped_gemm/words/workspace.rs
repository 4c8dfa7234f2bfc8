//! What the launches leave for each other.

use artel_device::cuda::{Arguments, Context, CudaError, DeviceBuffer};

use super::split::cuda::HALVES;
use super::{WordFormat, WordShape};
use crate::quant::BLOCK;

/// Largest count of column tiles that sums over pairs keep counters for.
const COUNTERS: usize = 4096;
/// Rows are a multiple of this, as kernels are told.
const ROWS_MULTIPLE: usize = 64;

/// What rows of activations become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowForm {
    /// Two parts of eight bits each.
    Parts,
    /// bfloat16 numbers, in the order in which words or lanes give weights.
    Halves,
}

/// Rows of activations in parts, or in bfloat16. What no kernel writes stays zero: columns behind the last one, and
/// the columns that a copy of a row leaves to the others.
#[derive(Debug)]
pub struct SplitBuffers {
    format: WordFormat,
    form: RowForm,
    columns: usize,
    /// Rows that there is room for.
    pub(super) rows: usize,
    /// `[columns / depth, copies, rows, columns of a product]`; bfloat16: `[columns / 64, rows, 128]`.
    pub(super) parts: DeviceBuffer<i8>,
    /// `[rows]`, of parts.
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
        (format, form): (WordFormat, RowForm),
        columns: usize,
        rows: usize,
    ) -> Result<Self, CudaError> {
        let rows = rows.next_multiple_of(ROWS_MULTIPLE);
        let (bytes, scales, sums) = match form {
            RowForm::Parts => {
                let sums = format.padded(columns) / format.group;
                let sums = if format.has_zero_points() { sums } else { 1 };
                (Self::shape(format, columns, rows).iter().product(), rows, sums)
            }
            RowForm::Halves => (2 * format.padded(columns) * rows, 1, 1),
        };
        Ok(Self {
            format,
            form,
            columns,
            rows,
            parts: DeviceBuffer::zeroed(context, bytes)?,
            scales: DeviceBuffer::zeroed(context, scales)?,
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
        let parts = self.parts.slice();
        match self.form {
            RowForm::Parts => {
                let sums = self.sums.len() / self.rows;
                arguments
                    .tensor(parts, &Self::shape(self.format, self.columns, self.rows))
                    .slice(self.scales.slice())
                    .tensor(self.sums.slice(), &[sums, self.rows])
            }
            RowForm::Halves => {
                let products = self.format.padded(self.columns) / HALVES;
                arguments.tensor(parts, &[products, self.rows, HALVES])
            }
        }
    }
}

/// Memory between the products, for batches up to a size. One stream at a time may use it.
#[derive(Debug)]
pub struct WordWorkspace {
    /// Hidden states in parts.
    pub(super) x: SplitBuffers,
    /// Activation `[rows, I]`, where it is split afterwards.
    pub(super) inner: DeviceBuffer<f32>,
    /// The same in parts.
    pub(super) inner_parts: SplitBuffers,
    /// The same in the order of lanes, where the columns that fill its last plane, which stay zero, are others than in
    /// the order of words.
    pub(super) inner_lanes: Option<SplitBuffers>,
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
        form: RowForm,
        [x_rows, rows]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let inner = shape.intermediate_size;
        let [of_hidden, of_inner] = shape.formats;
        let unsplit = if form == RowForm::Parts { rows * inner } else { 1 };
        let has_lanes = form == RowForm::Halves && !inner.is_multiple_of(BLOCK);
        let inner_lanes =
            has_lanes.then(|| SplitBuffers::new(context, (of_inner, form), inner, rows));
        Ok(Self {
            x: SplitBuffers::new(context, (of_hidden, form), shape.hidden_size, x_rows)?,
            inner: DeviceBuffer::zeroed(context, unsplit)?,
            inner_parts: SplitBuffers::new(context, (of_inner, form), inner, rows)?,
            inner_lanes: inner_lanes.transpose()?,
            counters: DeviceBuffer::zeroed(context, COUNTERS)?,
        })
    }
}
