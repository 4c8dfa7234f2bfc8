//! FP8 e4m3 weights with one float32 scale per output feature, and activations with one scale per
//! token.

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::fp8::{Fp8Codes, Fp8Format, largest_magnitude, quantize_weights};
use super::fp8::{rounded_weight, weight_scale, weight_scales};
use super::{
    ActivationScales, Fit, MatrixTensors, NumberFormat, ScaleGrid, Scales, WeightMatrix,
    elements_of, room,
};
use crate::MoeError;

/// FP8 weights with a scale per row, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Channel;

impl NumberFormat for Fp8Channel {
    const NAME: &'static str = "fp8-channel";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::Row;
    type Activation = bf16;
    type Matrix = Fp8ChannelMatrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Fp8ChannelMatrix, MoeError> {
        Fp8ChannelMatrix::quantize(rows, columns, fit, row)
    }
}

impl Fp8Format for Fp8Channel {}

/// `[rows, columns]` e4m3 codes and `[rows]` float32 scales.
#[derive(Debug, Clone)]
pub struct Fp8ChannelMatrix {
    codes: Fp8Codes,
    scales: HostBuffer,
}

impl Fp8ChannelMatrix {
    /// A matrix over the bytes of a checkpoint.
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
        MoeError::check_shape("FP8 row scales (bytes)", rows.saturating_mul(4), scales.len())?;
        Ok(Self { codes, scales: scales.aligned_for::<f32>() })
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a row is its largest
    /// magnitude over 448, or 1 when the row is zero, or what `fit` finds near it. NaN becomes the
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
        let mut codes = room(rows, columns)?;
        let mut scales = vec![1f32; rows];
        let work = codes.par_chunks_mut(columns.max(1)).zip(&mut scales).enumerate();
        work.for_each_init(
            || vec![0f32; columns],
            |values, (index, (codes, scale))| {
                row(index, values);
                let usual = weight_scale(largest_magnitude(0.0, values));
                *scale = fit.choose([&values[..]], weight_scales(usual), rounded_weight);
                quantize_weights(values, *scale, codes);
            },
        );
        Self::new(HostBuffer::from_vec(codes), HostBuffer::from_vec(scales), rows, columns)
    }
}

impl WeightMatrix for Fp8ChannelMatrix {
    const NUMBER_BITS: usize = 8;

    fn rows(&self) -> usize {
        self.codes.rows
    }

    fn columns(&self) -> usize {
        self.codes.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let scale = self.scales().get(row);
        self.codes.dequantize_row(row, out, |_| scale);
    }

    fn numbers(&self) -> &[u8] {
        self.codes.as_bytes()
    }

    fn scale_grid(&self) -> ScaleGrid {
        ScaleGrid::Channel
    }

    fn scales(&self) -> Scales<'_> {
        Scales::F32(self.scales.as_slice())
    }

    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError> {
        let MatrixTensors { numbers, scales, .. } = tensors;
        Self::new(numbers, scales, self.rows(), self.columns())
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        let codes = self.codes.cut_rows(&rows)?;
        Ok(Self { codes, scales: elements_of::<f32>(&self.scales, &rows, 1) })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        Ok(Self { codes: self.codes.cut_columns(&columns)?, scales: self.scales.clone() })
    }
}
