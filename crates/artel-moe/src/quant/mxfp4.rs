//! MXFP4: FP4 weights and a power of two per 32 neighbours in a row; activations stay bfloat16. The
//! format of gpt-oss. Source: "OCP Microscaling Formats (MX) Specification", version 1.0.

use artel_device::HostBuffer;
use half::bf16;

use super::e2m1::round_to_e2m1;
use super::e8m0::{e8m0_and_neighbours, e8m0_below};
use super::fp8::largest_magnitude;
use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, Fit, NumberFormat, e2m1_from_f32};
use crate::MoeError;

/// Columns that share a scale.
const GROUP: usize = 32;

/// FP4 weights in groups of 32 with powers of two, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Mxfp4;

impl NumberFormat for Mxfp4 {
    const NAME: &'static str = "mxfp4";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = Mxfp4Matrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Mxfp4Matrix, MoeError> {
        Mxfp4Matrix::quantize(rows, columns, fit, row)
    }
}

impl GroupedFormat for Mxfp4 {
    const CODE: Code = Code::E2m1;
    const SCALE: ScaleCode = ScaleCode::E8m0;
}

/// `[rows, columns]` e2m1 codes and `[rows, columns / 32]` e8m0 scales.
pub type Mxfp4Matrix = GroupedMatrix<Mxfp4>;

impl Mxfp4Matrix {
    /// A matrix over codes `[rows, ceil(columns / 2)]`, the even column in the low half of a byte, and
    /// e8m0 scales `[rows, ceil(columns / 32)]`.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for a wrong number of bytes.
    pub fn new(codes: HostBuffer, scales: HostBuffer, shape: [usize; 2]) -> Result<Self, MoeError> {
        Self::from_parts(codes, scales, shape, GROUP)
    }

    /// Quantises a matrix whose rows `row` writes as float32. The scale of a group is the power of two
    /// below its largest magnitude over 4, where a magnitude that rounds up to the next power counts
    /// as that one; or the power beside it that `fit` finds better.
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
            // From 1.75 times a power of two on, the largest would saturate: 7 is beyond 6.
            let rounded = largest_magnitude(0.0, values).to_bits() + 0x20_0000;
            let candidates = e8m0_and_neighbours(e8m0_below(rounded >> 23 & 0xff, 2));
            let rounded = |value, (_, scale)| round_to_e2m1(value / scale) * scale;
            let (scale, divisor) = fit.choose([values], candidates, rounded);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = e2m1_from_f32(value / divisor);
            }
            (scale, 0)
        };
        Ok(Self::quantize_groups([rows, columns], (GROUP, fit), row, quantize)?.0)
    }
}
