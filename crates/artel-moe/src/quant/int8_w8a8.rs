//! INT8 weights with one float32 scale per output feature, and activations that become INT8 with one
//! scale per token (W8A8).
//!
//! Products of codes are summed as integers, so their sum is exact; it is scaled at its end.

use std::ops::Range;

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::fp8::largest_magnitude;
use super::{ActivationScales, Element, Fit, MatrixTensors, NumberFormat};
use super::{ScaleGrid, Scales, WeightMatrix};
use super::{check_cut, columns_of, elements_of, room};
use crate::MoeError;

/// Largest INT8 code in use: the range is symmetric.
pub const INT8_MAX: f32 = 127.0;

/// Columns whose products of codes still have a sum that 32 bits hold.
const COLUMNS_MAX: usize = (i32::MAX as usize) / (128 * 128);

/// Smallest magnitude that an activation scale is made for, so that zeros have one.
const SMALLEST_MAGNITUDE: f32 = 1e-10;

/// INT8 weights with a scale per row, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Int8W8A8;

impl NumberFormat for Int8W8A8 {
    const NAME: &'static str = "int8-w8a8";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::Int8Row;
    type Activation = bf16;
    type Matrix = Int8ChannelMatrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Int8ChannelMatrix, MoeError> {
        Int8ChannelMatrix::quantize(rows, columns, fit, row)
    }
}

/// `[rows, columns]` INT8 codes and `[rows]` float32 scales.
#[derive(Debug, Clone)]
pub struct Int8ChannelMatrix {
    codes: HostBuffer,
    scales: HostBuffer,
    rows: usize,
    columns: usize,
}

impl Int8ChannelMatrix {
    /// A matrix over the bytes of a checkpoint.
    ///
    /// # Errors
    /// [`MoeError`] when codes or scales have the wrong number of bytes, or there are more columns
    /// than a sum of 32 bits can hold.
    pub fn new(
        codes: HostBuffer,
        scales: HostBuffer,
        rows: usize,
        columns: usize,
    ) -> Result<Self, MoeError> {
        if columns > COLUMNS_MAX {
            let allowed = format!("at most {COLUMNS_MAX}");
            return Err(MoeError::config("columns of an INT8 matrix", columns, allowed));
        }
        MoeError::check_shape("INT8 codes", rows.saturating_mul(columns), codes.len())?;
        MoeError::check_shape("INT8 row scales (bytes)", rows.saturating_mul(4), scales.len())?;
        Ok(Self { codes, scales: scales.aligned_for::<f32>(), rows, columns })
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a row is its largest
    /// magnitude over 127, or 1 when the row is zero, or what `fit` finds near it. Codes are the
    /// nearest, halves away from zero; NaN becomes zero.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large, or `fit` is for another one.
    pub fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        fit.check(columns)?;
        let mut codes = room::<i8>(rows, columns)?;
        let mut scales = vec![1f32; rows];
        let work = codes.par_chunks_mut(columns.max(1)).zip(&mut scales).enumerate();
        work.for_each_init(
            || vec![0f32; columns],
            |values, (index, (codes, scale))| {
                row(index, values);
                let candidates = int8_scales(int8_scale(values));
                *scale = fit.choose([&values[..]], candidates, rounded_to_int8);
                for (code, value) in codes.iter_mut().zip(values) {
                    *code = int8_from_f32(*value / *scale);
                }
            },
        );
        Self::new(HostBuffer::from_vec(codes), HostBuffer::from_vec(scales), rows, columns)
    }

    /// The codes of some rows and their scales.
    pub(crate) fn panel(&self, rows: Range<usize>) -> (&[i8], &[f32]) {
        let codes: &[i8] = bytemuck::cast_slice(self.codes.as_bytes());
        let codes = &codes[rows.start * self.columns..rows.end * self.columns];
        (codes, &self.scales.as_slice()[rows])
    }
}

/// The scale of weights: their largest magnitude becomes 127; 1 for zeros and for numbers so small
/// that their scale would be subnormal.
pub(super) fn int8_scale(values: &[f32]) -> f32 {
    let exact = largest_magnitude(0.0, values) / INT8_MAX;
    if exact.is_normal() { exact } else { 1.0 }
}

/// What a scale is multiplied by to try others, which cut the largest number off.
const SCALE_FACTORS: [f32; 14] =
    [1.0, 1.01, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75];

/// The scale that numbers ask for, and others beside it.
pub(super) fn int8_scales(usual: f32) -> [f32; SCALE_FACTORS.len()] {
    SCALE_FACTORS.map(|factor| usual * factor)
}

/// What a code makes of a number.
#[inline(always)]
pub(super) fn rounded_to_int8(value: f32, scale: f32) -> f32 {
    f32::from(int8_from_f32(value / scale)) * scale
}

/// Nearest code, halves away from zero; beyond 127 saturates, NaN becomes zero.
#[inline(always)]
pub fn int8_from_f32(value: f32) -> i8 {
    let limited = value.clamp(-INT8_MAX, INT8_MAX);
    // Just below a half: with a half itself the number below 0.5 would be rounded up to 1.
    (limited + 0.499_999_97_f32.copysign(limited)) as i8
}

/// Quantises a row of activations: `codes * scale` is the quantised input. Returns the scale,
/// `max(largest magnitude, 1e-10) / 127`.
#[inline(always)]
pub(crate) fn quantize_row_to_int8(row: &[bf16], codes: &mut [i8]) -> f32 {
    let mut largest = SMALLEST_MAGNITUDE;
    for value in row {
        let magnitude = Element::to_f32(*value).abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    let factor = INT8_MAX / largest;
    for (code, value) in codes.iter_mut().zip(row) {
        *code = int8_from_f32(Element::to_f32(*value) * factor);
    }
    largest / INT8_MAX
}

impl WeightMatrix for Int8ChannelMatrix {
    const NUMBER_BITS: usize = 8;

    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (codes, scales) = self.panel(row..row + 1);
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = f32::from(code) * scales[0];
        }
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
        Self::new(tensors.numbers, tensors.scales, self.rows, self.columns)
    }

    fn cut_rows(&self, rows: Range<usize>) -> Result<Self, MoeError> {
        check_cut("rows of a matrix", &rows, self.rows)?;
        Ok(Self {
            codes: elements_of::<i8>(&self.codes, &rows, self.columns),
            scales: elements_of::<f32>(&self.scales, &rows, 1),
            rows: rows.len(),
            columns: self.columns,
        })
    }

    fn cut_columns(&self, columns: Range<usize>) -> Result<Self, MoeError> {
        check_cut("columns of a matrix", &columns, self.columns)?;
        let codes = columns_of(self.codes.as_bytes(), self.columns, &columns);
        let codes = HostBuffer::from_vec(codes);
        Ok(Self { codes, columns: columns.len(), ..self.clone() })
    }
}
