//! FP8 e4m3 weights with one float32 scale per 128x128 block and activations quantised on the
//! fly, one scale per 1x128 group. The format of DeepSeek-V3 and MiniMax-M2 checkpoints, whose
//! tensor `weight_scale_inv` multiplies (its name notwithstanding).

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::fp8::{BLOCK, Fp8Codes, Fp8Format, largest_magnitude, quantize_weights};
use super::fp8::{rounded_weight, weight_scale, weight_scales};
use super::{
    ActivationScales, Fit, MatrixTensors, NumberFormat, ScaleGrid, Scales, WeightMatrix,
    columns_of, elements_of, room,
};
use crate::MoeError;

/// Block-quantised FP8 weights, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Block128;

impl NumberFormat for Fp8Block128 {
    const NAME: &'static str = "fp8-block128";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::Group;
    type Activation = bf16;
    type Matrix = Fp8BlockMatrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Fp8BlockMatrix, MoeError> {
        Fp8BlockMatrix::quantize(rows, columns, fit, row)
    }
}

impl Fp8Format for Fp8Block128 {}

/// `[rows, columns]` e4m3 codes and `[ceil(rows / 128), ceil(columns / 128)]` float32 scales. A
/// matrix that was cut out of another may begin inside a block, see [`ScaleGrid::Block`].
#[derive(Debug, Clone)]
pub struct Fp8BlockMatrix {
    codes: Fp8Codes,
    scales: HostBuffer,
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
        let codes = Fp8Codes::new(codes, rows, columns)?;
        let [scale_rows, scale_columns] = ScaleGrid::BLOCKS.shape(rows, columns);
        let blocks = scale_rows.saturating_mul(scale_columns);
        MoeError::check_shape("FP8 block scales (bytes)", blocks.saturating_mul(4), scales.len())?;
        let scales = scales.aligned_for::<f32>();
        Ok(Self { codes, scales, row_offset: 0, column_offset: 0 })
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a block is its largest
    /// magnitude over 448, or 1 when the block is zero, or what `fit` finds near it. NaN becomes the
    /// NaN code.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large to be addressed, or `fit` is for another one.
    pub fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        fit.check(columns)?;
        let blocks = columns.div_ceil(BLOCK);
        let mut codes = room(rows, columns)?;
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
                    quantize_block_row(&values, (columns, fit), codes, scales);
                });
        }
        Self::new(HostBuffer::from_vec(codes), HostBuffer::from_vec(scales), rows, columns)
    }
}

impl WeightMatrix for Fp8BlockMatrix {
    const NUMBER_BITS: usize = 8;

    fn rows(&self) -> usize {
        self.codes.rows
    }

    fn columns(&self) -> usize {
        self.codes.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let first = self.scale_grid().index(row, 0, self.columns());
        let scales = &self.scales.as_slice::<f32>()[first..];
        let scale = |column| scales[(self.column_offset + column) / BLOCK];
        self.codes.dequantize_row(row, out, scale);
    }

    fn numbers(&self) -> &[u8] {
        self.codes.as_bytes()
    }

    fn scale_grid(&self) -> ScaleGrid {
        let Self { row_offset, column_offset, .. } = *self;
        ScaleGrid::Block { row_offset, column_offset }
    }

    fn scales(&self) -> Scales<'_> {
        Scales::F32(self.scales.as_slice())
    }

    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError> {
        let MatrixTensors { numbers, scales, .. } = tensors;
        MoeError::check_shape("FP8 block scales (bytes)", self.scales.len(), scales.len())?;
        let codes = Fp8Codes::new(numbers, self.rows(), self.columns())?;
        Ok(Self { codes, scales: scales.aligned_for::<f32>(), ..*self })
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        let codes = self.codes.cut_rows(&rows)?;
        let [_, scale_columns] = self.scale_grid().shape(self.rows(), self.columns());
        let blocks = blocks_of(self.row_offset, &rows);
        let scales = elements_of::<f32>(&self.scales, &blocks, scale_columns);
        let row_offset = (self.row_offset + rows.start) % BLOCK;
        Ok(Self { codes, scales, row_offset, ..*self })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        let codes = self.codes.cut_columns(&columns)?;
        let [_, scale_columns] = self.scale_grid().shape(self.rows(), self.columns());
        let blocks = blocks_of(self.column_offset, &columns);
        let scales =
            HostBuffer::from_vec(columns_of(self.scales.as_slice::<f32>(), scale_columns, &blocks));
        let column_offset = (self.column_offset + columns.start) % BLOCK;
        Ok(Self { codes, scales, column_offset, ..*self })
    }
}

/// The blocks that rows or columns `part` lie in, where the first block begins `offset` early.
fn blocks_of(offset: usize, part: &Range<usize>) -> Range<usize> {
    let first = (offset + part.start) / BLOCK;
    first..(offset + part.end).div_ceil(BLOCK).max(first)
}

/// Up to 128 rows of `columns` values: one scale per 128 columns.
fn quantize_block_row(
    values: &[f32],
    (columns, fit): (usize, Fit<'_>),
    codes: &mut [u8],
    scales: &mut [f32],
) {
    scales.fill(0.0);
    for row in values.chunks(columns) {
        for (largest, group) in scales.iter_mut().zip(row.chunks(BLOCK)) {
            *largest = largest_magnitude(*largest, group);
        }
    }
    for (block, scale) in scales.iter_mut().enumerate() {
        let range = block * BLOCK..columns.min((block + 1) * BLOCK);
        let rows = values.chunks(columns).map(|row| &row[range.clone()]);
        let candidates = weight_scales(weight_scale(*scale));
        *scale = fit.cut(range.clone()).choose(rows, candidates, rounded_weight);
    }
    for (codes, row) in codes.chunks_mut(columns).zip(values.chunks(columns)) {
        let groups = codes.chunks_mut(BLOCK).zip(row.chunks(BLOCK));
        for ((codes, group), &scale) in groups.zip(&*scales) {
            quantize_weights(group, scale, codes);
        }
    }
}
