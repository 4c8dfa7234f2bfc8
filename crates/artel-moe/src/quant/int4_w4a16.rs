//! INT4 weights with a float32 scale, and perhaps a zero point, per group of a row, and activations
//! that stay bfloat16 (W4A16): what GPTQ, AWQ and compressed-tensors write.
//!
//! Two's complement does not appear in it: code `q` stands for `q - 8`, and a zero point `z` of a
//! checkpoint, 0 to 15, for `z - 8`.

use artel_device::HostBuffer;
use half::bf16;

use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, NumberFormat};
use crate::MoeError;

/// Columns that share a scale unless it is said otherwise.
pub(super) const DEFAULT_GROUP: usize = 128;

/// Whether groups have zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPoints {
    /// Zero is in the middle: code 8.
    None,
    /// Between the smallest number of a group and the largest.
    Fitted,
}

/// INT4 weights in groups, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Int4W4A16;

impl NumberFormat for Int4W4A16 {
    const NAME: &'static str = "int4-w4a16";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = Int4Matrix;

    fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Int4Matrix, MoeError> {
        Int4Matrix::quantize(rows, columns, DEFAULT_GROUP, ZeroPoints::None, row)
    }
}

impl GroupedFormat for Int4W4A16 {
    const CODE: Code = Code::Int4;
    const SCALE: ScaleCode = ScaleCode::F32;
}

/// `[rows, columns]` codes of four bits and `[rows, columns / group]` float32 scales.
pub type Int4Matrix = GroupedMatrix<Int4W4A16>;

/// Shares of the widest scale among which the one with the smallest error is chosen.
const SCALE_SHARES: [f32; 9] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68];

impl Int4Matrix {
    /// A matrix over codes `[rows, ceil(columns / 2)]` (the even column in the low half of a byte) and
    /// float32 scales `[rows, ceil(columns / group)]`, zero in the middle.
    ///
    /// # Errors
    /// [`MoeError`] for a wrong number of bytes, or a group that is neither a power of two of at
    /// least 16 nor the whole row.
    pub fn new(
        codes: HostBuffer,
        scales: HostBuffer,
        shape: [usize; 2],
        group: usize,
    ) -> Result<Self, MoeError> {
        Self::from_parts(codes, scales, shape, group)
    }

    /// The same with a zero point of 0 to 15 for each scale.
    ///
    /// # Errors
    /// [`MoeError`] for a wrong number of them, or one beyond 15.
    pub fn with_zeros(self, zeros: &[u8]) -> Result<Self, MoeError> {
        if let Some((position, zero)) = zeros.iter().enumerate().find(|(_, zero)| **zero > 15) {
            return Err(MoeError::element("INT4 zero points", position, zero, "0 to 15"));
        }
        let relative: Vec<u8> = zeros.iter().map(|zero| zero.wrapping_sub(8)).collect();
        self.with_zero_points(HostBuffer::from_vec(relative))
    }

    /// Quantises a matrix whose rows `row` writes as float32. The widest scale of a group is twice its
    /// largest magnitude over 15, or its range over 15 with a zero point; of that one and some
    /// smaller ones it becomes the one with the smallest squared error. Codes are the nearest, ties to
    /// even. Zeros have scale 1; NaN becomes the zero.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large or the group is not allowed.
    pub fn quantize(
        rows: usize,
        columns: usize,
        group: usize,
        zero_points: ZeroPoints,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let fit = |values: &[f32], codes: &mut [u8]| {
            let (smallest, largest) = range(values, zero_points);
            let widest = (largest - smallest) / 15.0;
            let widest = if widest.is_normal() { widest } else { 1.0 };
            let candidates = SCALE_SHARES.map(|share| {
                let scale = widest * share;
                let zero = match zero_points {
                    ZeroPoints::None => 0,
                    ZeroPoints::Fitted => (-smallest / scale).round_ties_even().min(15.0) as i8 - 8,
                };
                (squared_error(values, scale, zero), scale, zero)
            });
            let best = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
            let (_, scale, zero) = best.expect("this is a bug: no scales to choose from");
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = (nearest(value, scale, zero) + 8) as u8;
            }
            (scale, zero)
        };
        let (matrix, zeros) = Self::quantize_groups([rows, columns], group, row, fit)?;
        match zero_points {
            ZeroPoints::None => Ok(matrix),
            ZeroPoints::Fitted => matrix.with_zero_points(HostBuffer::from_vec(zeros)),
        }
    }
}

/// The ends of what codes have to cover; zero is always inside.
fn range(values: &[f32], zero_points: ZeroPoints) -> (f32, f32) {
    let smallest = values.iter().fold(0f32, |smallest, value| smallest.min(*value));
    let largest = values.iter().fold(0f32, |largest, value| largest.max(*value));
    match zero_points {
        ZeroPoints::None => (-largest.max(-smallest), largest.max(-smallest)),
        ZeroPoints::Fitted => (smallest, largest),
    }
}

/// -8 to 7: the code of `value` less 8.
fn nearest(value: f32, scale: f32, zero: i8) -> i8 {
    ((value / scale).round_ties_even() + f32::from(zero)).clamp(-8.0, 7.0) as i8
}

fn squared_error(values: &[f32], scale: f32, zero: i8) -> f64 {
    let error = |value: f32| {
        let found = f32::from(nearest(value, scale, zero) - zero) * scale;
        f64::from(found - value).powi(2)
    };
    values.iter().map(|&value| error(value)).sum()
}
