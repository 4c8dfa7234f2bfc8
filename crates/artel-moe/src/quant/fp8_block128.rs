//! FP8 e4m3 weights with one float32 scale per 128x128 block and activations quantised on the
//! fly, one scale per 1x128 group. The format of DeepSeek-V3 and MiniMax-M2 checkpoints, whose
//! tensor `weight_scale_inv` multiplies (its name notwithstanding).

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::e4m3::{E4M3_MAX, e4m3_from_f32, e4m3_to_f32, round_to_e4m3};
use super::{Element, NumberFormat, ScaleGrid, WeightMatrix};
use super::{check_cut, columns_of, elements_of};
use crate::MoeError;

/// Rows and columns of a weight block, and elements of an activation group.
pub const BLOCK: usize = 128;

/// Block-quantised FP8 weights, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Block128;

impl NumberFormat for Fp8Block128 {
    const NAME: &'static str = "fp8-block128";
    type Activation = bf16;
    type Matrix = Fp8BlockMatrix;
}

/// `[rows, columns]` e4m3 codes and `[ceil(rows / 128), ceil(columns / 128)]` float32 scales. A
/// matrix that was cut out of another may begin inside a block, see [`ScaleGrid::Block`].
#[derive(Debug, Clone)]
pub struct Fp8BlockMatrix {
    codes: HostBuffer,
    scales: HostBuffer,
    rows: usize,
    columns: usize,
    row_offset: usize,
    column_offset: usize,
}

impl Fp8BlockMatrix {
    /// A matrix over the bytes of a checkpoint. Edge blocks may be partial.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when codes or scales have the wrong number of bytes.
    pub fn new(
        codes: HostBuffer,
        scales: HostBuffer,
        rows: usize,
        columns: usize,
    ) -> Result<Self, MoeError> {
        let [scale_rows, scale_columns] = ScaleGrid::BLOCKS.shape(rows, columns);
        let blocks = scale_rows.saturating_mul(scale_columns);
        MoeError::check_shape("FP8 codes", rows.saturating_mul(columns), codes.len())?;
        MoeError::check_shape("FP8 block scales (bytes)", blocks.saturating_mul(4), scales.len())?;
        let scales = scales.aligned_for::<f32>();
        Ok(Self { codes, scales, rows, columns, row_offset: 0, column_offset: 0 })
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a block is its largest
    /// magnitude over 448, or 1 when the block is zero. NaN becomes the NaN code.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the matrix is too large to be addressed.
    pub fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let blocks = columns.div_ceil(BLOCK);
        let size = rows.checked_mul(columns).filter(|&size| size <= isize::MAX as usize);
        let Some(size) = size else {
            return Err(MoeError::config("rows of a matrix", rows, "what memory can address"));
        };
        let mut codes = vec![0u8; size];
        let mut scales = vec![1f32; rows.div_ceil(BLOCK) * blocks];
        if columns > 0 {
            codes
                .par_chunks_mut(BLOCK * columns)
                .zip(scales.par_chunks_mut(blocks))
                .enumerate()
                .for_each(|(block_row, (codes, scales))| {
                    let mut values = vec![0f32; codes.len()];
                    for (index, values) in values.chunks_mut(columns).enumerate() {
                        row(block_row * BLOCK + index, values);
                    }
                    quantize_block_row(&values, columns, codes, scales);
                });
        }
        Self::new(HostBuffer::from_vec(codes), HostBuffer::from_vec(scales), rows, columns)
    }

    /// e4m3 codes, row-major.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_bytes()
    }
}

impl WeightMatrix for Fp8BlockMatrix {
    const NUMBER_BYTES: usize = 1;

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes()[row * self.columns..(row + 1) * self.columns];
        let scales = &self.scales()[self.scale_grid().index(row, 0, self.columns)..];
        for (column, (out, &code)) in out.iter_mut().zip(codes).enumerate() {
            *out = e4m3_to_f32(code) * scales[(self.column_offset + column) / BLOCK];
        }
    }

    fn numbers(&self) -> &[u8] {
        self.codes()
    }

    fn scale_grid(&self) -> ScaleGrid {
        let Self { row_offset, column_offset, .. } = *self;
        ScaleGrid::Block { row_offset, column_offset }
    }

    fn scales(&self) -> &[f32] {
        self.scales.as_slice()
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        check_cut("rows of a matrix", &rows, self.rows)?;
        let [_, scale_columns] = self.scale_grid().shape(self.rows, self.columns);
        let scale_rows = blocks_of(self.row_offset, &rows);
        Ok(Self {
            codes: elements_of::<u8>(&self.codes, &rows, self.columns),
            scales: elements_of::<f32>(&self.scales, &scale_rows, scale_columns),
            rows: rows.len(),
            row_offset: (self.row_offset + rows.start) % BLOCK,
            ..self.clone()
        })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        check_cut("columns of a matrix", &columns, self.columns)?;
        let [_, scale_columns] = self.scale_grid().shape(self.rows, self.columns);
        let blocks = blocks_of(self.column_offset, &columns);
        Ok(Self {
            codes: HostBuffer::from_vec(columns_of(self.codes(), self.columns, &columns)),
            scales: HostBuffer::from_vec(columns_of(self.scales(), scale_columns, &blocks)),
            columns: columns.len(),
            column_offset: (self.column_offset + columns.start) % BLOCK,
            ..self.clone()
        })
    }
}

/// The blocks that rows or columns `part` lie in, where the first block begins `offset` early.
fn blocks_of(offset: usize, part: &Range<usize>) -> Range<usize> {
    let first = (offset + part.start) / BLOCK;
    first..(offset + part.end).div_ceil(BLOCK).max(first)
}

/// Up to 128 rows of `columns` values: one scale per 128 columns.
fn quantize_block_row(values: &[f32], columns: usize, codes: &mut [u8], scales: &mut [f32]) {
    let mut largest = vec![0f32; scales.len()];
    for row in values.chunks(columns) {
        for (largest, group) in largest.iter_mut().zip(row.chunks(BLOCK)) {
            *largest = group.iter().fold(*largest, |largest, value| largest.max(value.abs()));
        }
    }
    for (scale, &largest) in scales.iter_mut().zip(&largest) {
        // A block of subnormal numbers would have a scale of zero; its values round to zero.
        let exact = largest / E4M3_MAX;
        *scale = if exact.is_normal() { exact } else { 1.0 };
    }
    for (codes, row) in codes.chunks_mut(columns).zip(values.chunks(columns)) {
        for (column, (code, value)) in codes.iter_mut().zip(row).enumerate() {
            *code = e4m3_from_f32(value / scales[column / BLOCK]);
        }
    }
}

/// Quantises one group of at most [`BLOCK`] activations: `out` becomes e4m3 values, and
/// `out * scale` is the quantised input, with `scale = max(absmax, 1e-10) / 448`.
#[inline(always)]
pub(crate) fn quantize_group(group: &[bf16], out: &mut [f32]) -> f32 {
    let mut largest = 1e-10f32;
    for (out, value) in out.iter_mut().zip(group) {
        *out = Element::to_f32(*value);
        let magnitude = out.abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    let scale = largest / E4M3_MAX;
    for out in out.iter_mut() {
        *out = round_to_e4m3(*out / scale);
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_edge_blocks_and_nan_quantise() {
        let (rows, columns) = (130, 257);
        let value = |row: usize, column: usize| match (row, column) {
            (0..=127, 128..=255) => 0.0,
            (129, 256) => f32::NAN,
            _ => (row as f32 - 60.0) * (column as f32 - 100.0),
        };
        let matrix = Fp8BlockMatrix::quantize(rows, columns, |row, out| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = value(row, column));
        })
        .unwrap();
        assert_eq!(matrix.scales().len(), 6);
        assert_eq!(matrix.scales()[1], 1.0);
        let mut found = vec![0.0; columns];
        for row in 0..rows {
            matrix.dequantize_row(row, &mut found);
            for (column, &found) in found.iter().enumerate() {
                let (expected, scale) =
                    (value(row, column), matrix.scales()[row / BLOCK * 3 + column / BLOCK]);
                let step = (expected.abs() / 16.0).max(scale / 1024.0) * 1.0001;
                let near = (found - expected).abs() <= step;
                assert!(near || expected.is_nan() && found.is_nan(), "{found}, not {expected}");
            }
        }
        assert!(Fp8BlockMatrix::quantize(usize::MAX, 2, |_, _| {}).is_err());
        assert_eq!(Fp8BlockMatrix::quantize(0, 5, |_, _| {}).unwrap().bytes(), 0);
    }
}
