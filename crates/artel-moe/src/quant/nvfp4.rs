//! NVFP4: FP4 weights, an FP8 scale per 16 neighbours in a row and a float32 scale of the matrix.
//! Activations stay bfloat16, as on GPUs whose tensor cores do not know the format.
//!
//! Two conventions for the scale of the matrix exist. ModelOpt stores `weight_scale_2`, which
//! multiplies; compressed-tensors stores `weight_global_scale`, which numbers were multiplied by and
//! which divides here.

use artel_device::HostBuffer;
use half::bf16;

use rayon::prelude::*;

use super::e2m1::round_to_e2m1;
use super::fp8::largest_magnitude;
use super::grouped::{Code, GroupedFormat, GroupedMatrix, ScaleCode};
use super::{ActivationScales, E2M1_MAX, E4M3_MAX, Fit, NumberFormat};
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
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Nvfp4Matrix, MoeError> {
        Nvfp4Matrix::quantize(rows, columns, fit, row)
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
    /// one nearest to `x * g / scale`. A group whose scale is zero becomes zeros. `fit` may find one of
    /// the next e4m3 numbers better.
    ///
    /// # Errors
    /// [`MoeError`] when the matrix is too large, or `fit` is for another one.
    pub fn quantize(
        rows: usize,
        columns: usize,
        fit: Fit<'_>,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let largest_of = |values: &mut Vec<f32>, index| {
            row(index, values);
            largest_magnitude(0.0, values)
        };
        let largest = (0..rows).into_par_iter().map_init(|| vec![0f32; columns], largest_of);
        let encode = E4M3_MAX * E2M1_MAX / largest.reduce(|| 0.0, f32::max);
        let encode = if encode.is_normal() { encode } else { 1.0 };
        let decode = 1.0 / encode;
        let scaled = |value: f32, divisor: f32| {
            if divisor == 0.0 { 0.0 } else { value * encode / divisor }
        };
        let quantize = |values: &[f32], fit: Fit<'_>, codes: &mut [u8]| {
            let usual = e4m3_from_f32(encode * largest_magnitude(0.0, values) / E2M1_MAX);
            let rounded = |value, (_, scale)| round_to_e2m1(scaled(value, scale)) * scale * decode;
            let (scale, divisor) = fit.choose([values], scale_candidates(usual), rounded);
            for (code, &value) in codes.iter_mut().zip(values) {
                *code = e2m1_from_f32(scaled(value, divisor));
            }
            (scale, 0)
        };
        let (matrix, _) = Self::quantize_groups([rows, columns], (GROUP, fit), row, quantize)?;
        matrix.with_global_scale(decode)
    }
}

/// The e4m3 code that a group asks for and its neighbours, of which half an octave is tried on either
/// side, each with its value.
fn scale_candidates(usual: u8) -> [(u8, f32); 9] {
    let largest = e4m3_from_f32(E4M3_MAX);
    [0, -1, 1, -2, 2, -3, 3, -4, 4].map(|step| {
        let code = usual.saturating_add_signed(step).min(largest);
        (code, e4m3_to_f32(code))
    })
}
