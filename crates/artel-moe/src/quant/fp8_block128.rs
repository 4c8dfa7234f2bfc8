//! FP8 e4m3 weights with one float32 scale per 128x128 block and activations quantised on the
//! fly, one scale per 1x128 group. The format of DeepSeek-V3 and MiniMax-M2 checkpoints, whose
//! tensor `weight_scale_inv` multiplies (its name notwithstanding).

use artel_device::HostBuffer;
use half::bf16;

use super::{NumberFormat, WeightMatrix};
use crate::MoeError;

/// Rows and columns of a weight block, and elements of an activation group.
pub const BLOCK: usize = 128;

/// Largest finite e4m3fn value.
pub const E4M3_MAX: f32 = 448.0;

/// Block-quantised FP8 weights, bfloat16 hidden states.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Block128;

impl NumberFormat for Fp8Block128 {
    const NAME: &'static str = "fp8-block128";
    type Activation = bf16;
    type Matrix = Fp8BlockMatrix;
}

/// `[rows, columns]` e4m3 codes and `[ceil(rows / 128), ceil(columns / 128)]` float32 scales.
#[derive(Debug, Clone)]
pub struct Fp8BlockMatrix {
    codes: HostBuffer,
    scales: HostBuffer,
    rows: usize,
    columns: usize,
}

impl Fp8BlockMatrix {
    /// A matrix over the bytes of a checkpoint. Edge blocks may be partial.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when codes or scales have the wrong number of bytes.
    pub fn new(
        codes: HostBuffer,
        scales: HostBuffer,
        rows: usize,
        columns: usize,
    ) -> Result<Self, MoeError> {
        let blocks = rows.div_ceil(BLOCK).saturating_mul(columns.div_ceil(BLOCK));
        MoeError::check_shape("FP8 codes", rows.saturating_mul(columns), codes.len())?;
        MoeError::check_shape("FP8 block scales (bytes)", blocks.saturating_mul(4), scales.len())?;
        let scales = scales.aligned_for::<f32>();
        Ok(Self { codes, scales, rows, columns })
    }

    /// e4m3 codes, row-major.
    pub fn codes(&self) -> &[u8] {
        self.codes.as_bytes()
    }

    /// Scales by block row, then block column.
    pub fn scales(&self) -> &[f32] {
        self.scales.as_slice()
    }
}

impl WeightMatrix for Fp8BlockMatrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len()
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes()[row * self.columns..(row + 1) * self.columns];
        let scales = &self.scales()[row / BLOCK * self.columns.div_ceil(BLOCK)..];
        for (column, (out, &code)) in out.iter_mut().zip(codes).enumerate() {
            *out = e4m3_to_f32(code) * scales[column / BLOCK];
        }
    }
}

/// Value of an e4m3fn code: no infinities, `0x7f` and `0xff` are NaN, largest 448.
pub const fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = (code >> 3 & 0xf) as u32;
    let mantissa = (code & 7) as u32;
    match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => sign * (mantissa as f32 / 512.0),
        _ => sign * f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    }
}

/// Nearest e4m3fn code, ties to even; beyond 448 saturates, NaN stays NaN.
pub fn e4m3_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    // Steps between neighbours are 2^-9 up to 2^-6, then 2^(exponent - 3).
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as i32;
    // A rounded-up mantissa carries into the exponent by itself.
    sign | ((exponent + 6) * 8 + steps) as u8
}

/// The value of the nearest e4m3fn code, as [`e4m3_from_f32`] chooses it, without branches.
#[inline(always)]
pub(crate) fn round_to_e4m3(value: f32) -> f32 {
    // A number 2^20 times the magnitude's power of two has its last place where e4m3 has it, so
    // adding and subtracting it rounds. Below 2^-6 the step stays 2^-9.
    let magnitude = f32::from_bits(value.to_bits() & 0x7fff_ffff);
    let exponent = (magnitude.to_bits() >> 23).clamp(121, 135);
    let shift = f32::from_bits((exponent + 20) << 23);
    let rounded = (magnitude + shift) - shift;
    let limited = if rounded > 448.0 { 448.0 } else { rounded };
    f32::from_bits(limited.to_bits() | value.to_bits() & 0x8000_0000)
}

/// Quantises one group of at most [`BLOCK`] activations: `out` becomes e4m3 values, and
/// `out * scale` is the quantised input, with `scale = max(absmax, 1e-10) / 448`.
#[inline(always)]
pub(crate) fn quantize_group(group: &[bf16], out: &mut [f32]) -> f32 {
    let mut largest = 1e-10f32;
    for (out, value) in out.iter_mut().zip(group) {
        *out = bf16::to_f32(*value);
        let magnitude = out.abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    let scale = largest / E4M3_MAX;
    for out in out.iter_mut() {
        *out = round_to_e4m3(*out / scale);
    }
    scale
}
