//! Weights on their way to the GPU.

use artel_device::cuda::{Context, DeviceBuffer};
use artel_moe::layer::AnyMoeLayer;
use artel_moe::quant::AnyMatrix;
use artel_moe::weights::cuda::DeviceExperts;
use half::bf16;
use rayon::prelude::*;

use crate::Result;
use crate::checkpoint::Progress;

/// Numbers that are rounded at a time.
const ROUNDED_NUMBERS: usize = 1 << 24;

/// Copies weights and tells how far it is.
pub(super) struct Upload<'a> {
    context: &'a Context,
    progress: Progress,
    report: &'a mut dyn FnMut(Progress),
}

impl<'a> Upload<'a> {
    /// Copies to `context`; all weights together have `bytes_total` bytes.
    pub(super) fn new(
        context: &'a Context,
        bytes_total: usize,
        report: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self { context, progress: Progress { bytes_done: 0, bytes_total }, report }
    }

    pub(super) fn context(&self) -> &'a Context {
        self.context
    }

    fn advance(&mut self, bytes: usize) {
        let Progress { bytes_done, bytes_total } = self.progress;
        self.progress.bytes_done = bytes_done.saturating_add(bytes).min(bytes_total);
        (self.report)(self.progress);
    }

    /// Copies `bytes` to position `written`, which moves behind them.
    pub(super) fn write(
        &mut self,
        target: &mut DeviceBuffer<u8>,
        written: &mut usize,
        bytes: &[u8],
    ) -> Result<()> {
        target.write(*written, bytes)?;
        *written += bytes.len();
        self.advance(bytes.len());
        Ok(())
    }

    /// The same with the numbers of `matrix`, rounded to bfloat16.
    pub(super) fn write_rounded(
        &mut self,
        target: &mut DeviceBuffer<u8>,
        written: &mut usize,
        matrix: &AnyMatrix,
    ) -> Result<()> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let rows_at_once = (ROUNDED_NUMBERS / columns.max(1)).max(1);
        for first in (0..rows).step_by(rows_at_once) {
            let count = rows_at_once.min(rows - first);
            let numbers = rounded_rows(matrix, first, count);
            let bytes = bytemuck::cast_slice(&numbers);
            target.write(*written, bytes)?;
            *written += bytes.len();
        }
        self.advance(matrix.bytes());
        Ok(())
    }

    /// A matrix as bfloat16.
    pub(super) fn matrix(&mut self, matrix: &AnyMatrix) -> Result<DeviceBuffer<bf16>> {
        let numbers = rounded_rows(matrix, 0, matrix.rows());
        self.advance(matrix.bytes());
        Ok(DeviceBuffer::from_host(self.context, &numbers)?)
    }

    /// A matrix as float32, which every format is exactly.
    pub(super) fn wide_matrix(&mut self, matrix: &AnyMatrix) -> Result<DeviceBuffer<f32>> {
        let mut numbers = vec![0f32; matrix.rows() * matrix.columns()];
        let rows = numbers.chunks_mut(matrix.columns().max(1)).enumerate();
        rows.for_each(|(row, out)| matrix.dequantize_row(row, out));
        self.advance(matrix.bytes());
        Ok(DeviceBuffer::from_host(self.context, &numbers)?)
    }

    /// A vector.
    pub(super) fn vector(&mut self, numbers: &[f32]) -> Result<DeviceBuffer<f32>> {
        self.advance(size_of_val(numbers));
        Ok(DeviceBuffer::from_host(self.context, numbers)?)
    }

    /// Numbers rounded to bfloat16.
    pub(super) fn rounded(&mut self, numbers: &[f32]) -> Result<DeviceBuffer<bf16>> {
        let rounded: Vec<bf16> = numbers.par_iter().map(|&number| bf16::from_f32(number)).collect();
        self.advance(size_of_val(rounded.as_slice()));
        Ok(DeviceBuffer::from_host(self.context, &rounded)?)
    }

    /// The experts of a layer.
    pub(super) fn experts(&mut self, layer: &AnyMoeLayer) -> Result<DeviceExperts> {
        let experts = layer.upload(self.context)?;
        self.advance(experts.bytes());
        Ok(experts)
    }
}

fn rounded_rows(matrix: &AnyMatrix, first: usize, count: usize) -> Vec<bf16> {
    let columns = matrix.columns();
    let mut numbers = vec![bf16::ZERO; count * columns];
    numbers.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
        || vec![0f32; columns],
        |wide, (row, out)| {
            matrix.dequantize_row(first + row, wide);
            out.iter_mut().zip(wide).for_each(|(out, wide)| *out = bf16::from_f32(*wide));
        },
    );
    numbers
}
