//! INT4 weights with a float32 scale, and perhaps a zero point, per group of a row, and activations
//! that stay bfloat16 (W4A16): what GPTQ, AWQ and compressed-tensors write.
//!
//! Two's complement does not appear in it: code `q` stands for `q - 8`, and a zero point `z` of a
//! checkpoint, 0 to 15, for `z - 8`.

use artel_device::HostBuffer;
use half::bf16;

use super::fit::least;
use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, Fit, NumberFormat};
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
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Int4Matrix, MoeError> {
        Int4Matrix::quantize([rows, columns], DEFAULT_GROUP, ZeroPoints::None, fit, row)
    }
}

impl GroupedFormat for Int4W4A16 {
    const CODE: Code = Code::Int4;
    const SCALE: ScaleCode = ScaleCode::F32;
}

/// `[rows, columns]` codes of four bits and `[rows, columns / group]` float32 scales.
pub type Int4Matrix = GroupedMatrix<Int4W4A16>;

/// Shares of the widest scale among which the one with the smallest squared error is chosen.
const USUAL_SHARES: [f32; 9] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68];

/// How many shares a [`Fit`] tries.
const SHARES: usize = 16;

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
    /// smaller ones it becomes the one with the smallest squared error, or what `fit` finds in a finer
    /// row of scales and zero points. Codes are the nearest, ties to even. Zeros have scale 1; NaN
    /// becomes the zero.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large, the group is not allowed or `fit` is for another
    /// matrix.
    pub fn quantize(
        shape: [usize; 2],
        group: usize,
        zero_points: ZeroPoints,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let quantize = |values: &[f32], fit: Fit<'_>, codes: &mut [u8]| {
            let range = Range::of(values, zero_points);
            let usual = range.usual_scale(values);
            let (scale, zero) = match zero_points {
                ZeroPoints::None => fit.choose([values], range.scales(usual), rounded),
                ZeroPoints::Fitted => fit.choose([values], range.scales_and_zeros(usual), rounded),
            };
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = (nearest(value, scale, zero) + 8.0) as u8;
            }
            (scale, zero as i8)
        };
        let (matrix, zeros) = Self::quantize_groups(shape, (group, fit), row, quantize)?;
        match zero_points {
            ZeroPoints::None => Ok(matrix),
            ZeroPoints::Fitted => matrix.with_zero_points(HostBuffer::from_vec(zeros)),
        }
    }
}

/// What the codes of a group have to cover; zero is always inside.
struct Range {
    smallest: f32,
    /// The scale with which all of it is covered.
    widest: f32,
    zero_points: ZeroPoints,
}

/// A scale, and the code less 8 that stands for zero.
type ScaleAndZero = (f32, f32);

impl Range {
    fn of(values: &[f32], zero_points: ZeroPoints) -> Self {
        let smallest = values.iter().fold(0f32, |smallest, value| smallest.min(*value));
        let largest = values.iter().fold(0f32, |largest, value| largest.max(*value));
        let (smallest, largest) = match zero_points {
            ZeroPoints::None => (-largest.max(-smallest), largest.max(-smallest)),
            ZeroPoints::Fitted => (smallest, largest),
        };
        let widest = (largest - smallest) / 15.0;
        let widest = if widest.is_normal() { widest } else { 1.0 };
        Self { smallest, widest, zero_points }
    }

    /// A share of the widest scale.
    fn share(&self, share: f32) -> ScaleAndZero {
        let scale = self.widest * share;
        let zero = match self.zero_points {
            ZeroPoints::None => 0.0,
            ZeroPoints::Fitted => (-self.smallest / scale).round_ties_even().min(15.0) - 8.0,
        };
        (scale, zero)
    }

    /// The share with the smallest squared error.
    fn usual_scale(&self, values: &[f32]) -> ScaleAndZero {
        let candidates = USUAL_SHARES.map(|share| self.share(share));
        let squares = |scale| values.iter().map(move |&x| f64::from(rounded(x, scale) - x).powi(2));
        candidates[least(&candidates.map(|scale| squares(scale).sum::<f64>()))]
    }

    /// `usual` and all shares.
    fn scales(&self, usual: ScaleAndZero) -> [ScaleAndZero; 1 + SHARES] {
        std::array::from_fn(|index| if index == 0 { usual } else { self.share(share(index - 1)) })
    }

    /// The same, and the shares with the zero points beside theirs.
    fn scales_and_zeros(&self, usual: ScaleAndZero) -> [ScaleAndZero; 1 + 3 * SHARES] {
        std::array::from_fn(|index| {
            if index == 0 {
                return usual;
            }
            let (scale, zero) = self.share(share((index - 1) / 3));
            let step = ((index - 1) % 3) as f32 - 1.0;
            (scale, (zero + step).clamp(-8.0, 7.0))
        })
    }
}

/// Share `index` of the widest scale that a [`Fit`] tries: from a little more, with which small numbers
/// may lie better, to where most of the range is cut off.
fn share(index: usize) -> f32 {
    1.06 - 0.03 * index as f32
}

/// -8 to 7: the code of `value` less 8. Without calls and branches, so that loops become vectors.
#[inline(always)]
fn nearest(value: f32, scale: f32, zero: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds, ties to even; codes are less than 32 from zero.
    const SHIFT: f32 = 12_582_912.0;
    let limited = (value / scale).clamp(-32.0, 32.0);
    let code = (limited + SHIFT) - SHIFT + zero;
    if code.is_nan() { zero } else { code.clamp(-8.0, 7.0) }
}

/// What a scale and a zero point make of a number.
#[inline(always)]
fn rounded(value: f32, (scale, zero): ScaleAndZero) -> f32 {
    (nearest(value, scale, zero) - zero) * scale
}
