//! NVFP4: FP4 weights, an FP8 scale per 16 neighbours in a row and a float32 scale of the matrix.
//! Activations stay bfloat16, as on GPUs whose tensor cores do not know the format.
//!
//! Two conventions for the scale of the matrix exist. ModelOpt stores `weight_scale_2`, which
//! multiplies; compressed-tensors stores `weight_global_scale`, which numbers were multiplied by and
//! which divides here.

use artel_device::HostBuffer;
use half::bf16;

use rayon::prelude::*;

use super::fp8::largest_magnitude;
use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, E2M1_MAX, E4M3_MAX, NumberFormat};
use super::{e2m1_from_f32, e4m3_from_f32, e4m3_to_f32};
use crate::MoeError;

/// Columns that share a scale.
const GROUP: usize = 16;

/// FP4 weights in groups of 16 with FP8 scales, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Nvfp4;

impl NumberFormat for Nvfp4 {
    const NAME: &'static str = "nvfp4";
    const ACTIVATION_SCALES: ActivationScales = ActivationScales::None;
    type Activation = bf16;
    type Matrix = Nvfp4Matrix;

    fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Nvfp4Matrix, MoeError> {
        Nvfp4Matrix::quantize(rows, columns, row)
    }
}

impl GroupedFormat for Nvfp4 {
    const CODE: Code = Code::E2m1;
    const SCALE: ScaleCode = ScaleCode::E4m3;
}

/// `[rows, columns]` e2m1 codes, `[rows, columns / 16]` e4m3 scales and a float32 scale.
pub type Nvfp4Matrix = GroupedMatrix<Nvfp4>;

impl Nvfp4Matrix {
    /// A matrix over codes `[rows, ceil(columns / 2)]`, the even column in the low half of a byte, and
    /// e4m3 scales `[rows, ceil(columns / 16)]`; `global` multiplies.
    ///
    /// # Errors
    /// [`MoeError`] for a wrong number of bytes, or a scale that is not finite.
    pub fn new(
        codes: HostBuffer,
        scales: HostBuffer,
        global: f32,
        shape: [usize; 2],
    ) -> Result<Self, MoeError> {
        Self::from_parts(codes, scales, shape, GROUP)?.with_global_scale(global)
    }

    /// Quantises a matrix whose rows `row` writes as float32. With `g = 448 * 6 / largest magnitude of
    /// the matrix`, the scale of a group is `g * its largest magnitude / 6` as e4m3, and a code is the
    /// one nearest to `x * g / scale`. A group whose scale is zero becomes zeros.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large.
    pub fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let largest_of = |values: &mut Vec<f32>, index| {
            row(index, values);
            largest_magnitude(0.0, values)
        };
        let largest = (0..rows).into_par_iter().map_init(|| vec![0f32; columns], largest_of);
        let encode = E4M3_MAX * E2M1_MAX / largest.reduce(|| 0.0, f32::max);
        let encode = if encode.is_normal() { encode } else { 1.0 };
        let fit = |values: &[f32], codes: &mut [u8]| {
            let scale = e4m3_from_f32(encode * largest_magnitude(0.0, values) / E2M1_MAX);
            let divisor = e4m3_to_f32(scale);
            for (code, value) in codes.iter_mut().zip(values) {
                let scaled = if divisor == 0.0 { 0.0 } else { value * encode / divisor };
                *code = e2m1_from_f32(scaled);
            }
            (scale, 0)
        };
        let (matrix, _) = Self::quantize_groups([rows, columns], GROUP, row, fit)?;
        matrix.with_global_scale(1.0 / encode)
    }
}
