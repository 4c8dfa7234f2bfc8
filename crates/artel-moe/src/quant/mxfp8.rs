//! MXFP8: FP8 weights and a power of two per 32 neighbours in a row; activations stay bfloat16.
//! Source: "OCP Microscaling Formats (MX) Specification", version 1.0.

use artel_device::HostBuffer;
use half::bf16;

use super::e8m0::{e8m0_and_neighbours, e8m0_below};
use super::fp8::{largest_magnitude, rounded_weight};
use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, Fit, NumberFormat, e4m3_from_f32};
use crate::MoeError;

/// Columns that share a scale.
const GROUP: usize = 32;

/// FP8 weights in groups of 32 with powers of two, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Mxfp8;

impl NumberFormat for Mxfp8 {
    const NAME: &'static str = "mxfp8";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = Mxfp8Matrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Mxfp8Matrix, MoeError> {
        Mxfp8Matrix::quantize(rows, columns, fit, row)
    }
}

impl GroupedFormat for Mxfp8 {
    const CODE: Code = Code::E4m3;
    const SCALE: ScaleCode = ScaleCode::E8m0;
}

/// `[rows, columns]` e4m3 codes and `[rows, columns / 32]` e8m0 scales.
pub type Mxfp8Matrix = GroupedMatrix<Mxfp8>;

impl Mxfp8Matrix {
    /// A matrix over codes `[rows, columns]` and e8m0 scales `[rows, ceil(columns / 32)]`.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for a wrong number of bytes.
    pub fn new(codes: HostBuffer, scales: HostBuffer, shape: [usize; 2]) -> Result<Self, MoeError> {
        Self::from_parts(codes, scales, shape, GROUP)
    }

    /// Quantises a matrix whose rows `row` writes as float32. The scale of a group is the smallest
    /// power of two with which its largest magnitude is at most 448, or the power beside it that `fit`
    /// finds better. NaN becomes the NaN code.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large, or `fit` is for another one.
    pub fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let quantize = |values: &[f32], fit: Fit<'_>, codes: &mut [u8]| {
            // 448 is 1.75 times 2^8: a number with a larger mantissa needs the next power.
            let rounded = largest_magnitude(0.0, values).to_bits() + 0x1f_ffff;
            let candidates = e8m0_and_neighbours(e8m0_below(rounded >> 23 & 0xff, 8));
            let rounded = |value, (_, scale)| rounded_weight(value, scale);
            let (scale, divisor) = fit.choose([values], candidates, rounded);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = e4m3_from_f32(value / divisor);
            }
            (scale, 0)
        };
        Ok(Self::quantize_groups([rows, columns], (GROUP, fit), row, quantize)?.0)
    }
}
