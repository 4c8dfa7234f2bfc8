//! INT8 weights with a float32 scale, and perhaps a zero point, per group of a row, and activations
//! that stay bfloat16 (W8A16).

use artel_device::HostBuffer;
use half::bf16;

use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::int4_w4a16::DEFAULT_GROUP;
use super::int8_w8a8::{int8_from_f32, int8_scale, int8_scales, rounded_to_int8};
use super::{ActivationScales, Fit, NumberFormat};
use crate::MoeError;

/// INT8 weights in groups, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Int8W8A16;

impl NumberFormat for Int8W8A16 {
    const NAME: &'static str = "int8-w8a16";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = Int8GroupMatrix;

    fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Int8GroupMatrix, MoeError> {
        Int8GroupMatrix::quantize([rows, columns], DEFAULT_GROUP, fit, row)
    }
}

impl GroupedFormat for Int8W8A16 {
    const CODE: Code = Code::Int8;
    const SCALE: ScaleCode = ScaleCode::F32;
}

/// `[rows, columns]` codes of eight bits and `[rows, columns / group]` float32 scales.
pub type Int8GroupMatrix = GroupedMatrix<Int8W8A16>;

impl Int8GroupMatrix {
    /// A matrix over codes `[rows, columns]`, two's complement, and float32 scales
    /// `[rows, ceil(columns / group)]`.
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

    /// The same with a zero point of 0 to 255 for each scale; 128 is the code 0 of two's complement.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for a wrong number of them.
    pub fn with_zeros(self, zeros: &[u8]) -> Result<Self, MoeError> {
        let relative: Vec<u8> = zeros.iter().map(|zero| zero ^ 128).collect();
        self.with_zero_points(HostBuffer::from_vec(relative))
    }

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a group is its largest
    /// magnitude over 127, or 1 where all is zero, or what `fit` finds near it. Codes are the nearest,
    /// halves away from zero; NaN becomes zero.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large, the group is not allowed or `fit` is for another
    /// matrix.
    pub fn quantize(
        shape: [usize; 2],
        group: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let quantize = |values: &[f32], fit: Fit<'_>, codes: &mut [u8]| {
            let candidates = int8_scales(int8_scale(values));
            let scale = fit.choose([values], candidates, rounded_to_int8);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = int8_from_f32(value / scale) as u8;
            }
            (scale, 0)
        };
        Ok(Self::quantize_groups(shape, (group, fit), row, quantize)?.0)
    }
}
