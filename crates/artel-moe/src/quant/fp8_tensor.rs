//! FP8 e4m3 weights with one float32 scale per matrix, and activations with one scale per tensor
//! where the checkpoint has measured it, else with one per token.
//!
//! A scale per token instead of one that is made for the whole batch is as exact or better, and
//! keeps a token from seeing which others it is computed with.

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::fit::{add, error, least};
use super::fp8::{Fp8Codes, Fp8Format, largest_magnitude, quantize_weights};
use super::fp8::{rounded_weight, weight_scale, weight_scales};
use super::{
    ActivationScales, Fit, MatrixTensors, NumberFormat, ScaleGrid, Scales, WeightMatrix, room,
};
use crate::MoeError;

/// FP8 weights with a scale per matrix, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Tensor;

impl NumberFormat for Fp8Tensor {
    const NAME: &'static str = "fp8-tensor";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::Row;
    type Activation = bf16;
    type Matrix = Fp8TensorMatrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Fp8TensorMatrix, MoeError> {
        Fp8TensorMatrix::quantize(rows, columns, fit, row)
    }
}

impl Fp8Format for Fp8Tensor {}

/// `[rows, columns]` e4m3 codes and a float32 scale.
#[derive(Debug, Clone)]
pub struct Fp8TensorMatrix {
    codes: Fp8Codes,
    scale: f32,
    input_scale: Option<f32>,
}

impl Fp8TensorMatrix {
    /// A matrix over the bytes of a checkpoint, for activations with a scale per token.
    ///
    /// # Errors
    /// [`MoeError`] when the codes have the wrong number of bytes, or the scale is not finite.
    pub fn new(
        codes: HostBuffer,
        scale: f32,
        rows: usize,
        columns: usize,
    ) -> Result<Self, MoeError> {
        if !scale.is_finite() {
            return Err(MoeError::config("scale of FP8 weights", scale, "a finite number"));
        }
        Ok(Self { codes: Fp8Codes::new(codes, rows, columns)?, scale, input_scale: None })
    }

    /// The same for activations with a scale that was measured beforehand.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a scale that is not positive and finite.
    pub fn with_input_scale(self, input_scale: f32) -> Result<Self, MoeError> {
        if input_scale.is_finite() && input_scale > 0.0 {
            return Ok(Self { input_scale: Some(input_scale), ..self });
        }
        let allowed = "a positive, finite number";
        Err(MoeError::config("scale of FP8 activations", input_scale, allowed))
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale is the largest magnitude
    /// over 448, or 1 when all is zero, or what `fit` finds near it. NaN becomes the NaN code.
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
        let largest_of = |values: &mut Vec<f32>, index| {
            row(index, values);
            largest_magnitude(0.0, values)
        };
        let room = || vec![0f32; columns];
        let largest = (0..rows).into_par_iter().map_init(room, largest_of);
        let mut scale = weight_scale(largest.reduce(|| 0.0, f32::max));
        if let Fit::Inputs(mean_squares) = fit {
            let candidates = weight_scales(scale);
            let errors_of = |values: &mut Vec<f32>, index| {
                row(index, values);
                candidates.map(|scale| error(values, mean_squares, |x| rounded_weight(x, scale)))
            };
            // Summed in the order of the rows, so that the choice is the same every time.
            let errors: Vec<_> = (0..rows).into_par_iter().map_init(room, errors_of).collect();
            let mut sums = candidates.map(|_| 0.0);
            errors.into_iter().for_each(|errors| add(&mut sums, errors));
            scale = candidates[least(&sums)];
        }
        codes.par_chunks_mut(columns.max(1)).enumerate().for_each_init(
            room,
            |values, (index, codes)| {
                row(index, values);
                quantize_weights(values, scale, codes);
            },
        );
        Self::new(HostBuffer::from_vec(codes), scale, rows, columns)
    }
}

impl WeightMatrix for Fp8TensorMatrix {
    const NUMBER_BITS: usize = 8;

    fn rows(&self) -> usize {
        self.codes.rows
    }

    fn columns(&self) -> usize {
        self.codes.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.codes.dequantize_row(row, out, |_| self.scale);
    }

    fn numbers(&self) -> &[u8] {
        self.codes.as_bytes()
    }

    fn scale_grid(&self) -> ScaleGrid {
        ScaleGrid::Tensor
    }

    fn scales(&self) -> Scales<'_> {
        Scales::F32(std::slice::from_ref(&self.scale))
    }

    fn input_scale(&self) -> Option<f32> {
        self.input_scale
    }

    fn over(&self, tensors: MatrixTensors) -> Result<Self, MoeError> {
        let MatrixTensors { numbers, scales, input_scale, .. } = tensors;
        MoeError::check_shape("FP8 scale (bytes)", size_of::<f32>(), scales.len())?;
        let scale = scales.aligned_for::<f32>().as_slice()[0];
        let matrix = Self::new(numbers, scale, self.rows(), self.columns())?;
        match input_scale {
            Some(input_scale) => matrix.with_input_scale(input_scale),
            None => Ok(matrix),
        }
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        Ok(Self { codes: self.codes.cut_rows(&rows)?, ..*self })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        Ok(Self { codes: self.codes.cut_columns(&columns)?, ..*self })
    }
}
