//! FP8 e4m3 weights with one float32 scale per 128x128 block and activations quantised on the
//! fly, one scale per 1x128 group. The format of DeepSeek-V3 and MiniMax-M2 checkpoints, whose
//! tensor `weight_scale_inv` multiplies (its name notwithstanding).

use artel_device::HostBuffer;
use half::bf16;
use rayon::prelude::*;

use super::{Element, NumberFormat, WeightMatrix};
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

    /// Quantises a matrix whose rows `row` writes as float32: the scale of a block is its largest
    /// magnitude over 448, or 1 when the block is zero. NaN becomes the NaN code.
    ///
    /// # Errors
    /// [`MoeError::Config`] when the matrix is too large to be addressed.
    pub fn quantize(
        rows: usize,
        columns: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, MoeError> {
        let blocks = columns.div_ceil(BLOCK);
        let size = rows.checked_mul(columns).filter(|&size| size <= isize::MAX as usize);
        let Some(size) = size else {
            return Err(MoeError::config("rows of a matrix", rows, "what memory can address"));
        };
        let mut codes = vec![0u8; size];
        let mut scales = vec![1f32; rows.div_ceil(BLOCK) * blocks];
        if columns > 0 {
            codes
                .par_chunks_mut(BLOCK * columns)
                .zip(scales.par_chunks_mut(blocks))
                .enumerate()
                .for_each(|(block_row, (codes, scales))| {
                    let mut values = vec![0f32; codes.len()];
                    for (index, values) in values.chunks_mut(columns).enumerate() {
                        row(block_row * BLOCK + index, values);
                    }
                    quantize_block_row(&values, columns, codes, scales);
                });
        }
        Self::new(HostBuffer::from_vec(codes), HostBuffer::from_vec(scales), rows, columns)
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

/// Up to 128 rows of `columns` values: one scale per 128 columns.
fn quantize_block_row(values: &[f32], columns: usize, codes: &mut [u8], scales: &mut [f32]) {
    let mut largest = vec![0f32; scales.len()];
    for row in values.chunks(columns) {
        for (largest, group) in largest.iter_mut().zip(row.chunks(BLOCK)) {
            *largest = group.iter().fold(*largest, |largest, value| largest.max(value.abs()));
        }
    }
    for (scale, &largest) in scales.iter_mut().zip(&largest) {
        // A block of subnormal numbers would have a scale of zero; its values round to zero.
        let exact = largest / E4M3_MAX;
        *scale = if exact.is_normal() { exact } else { 1.0 };
    }
    for (codes, row) in codes.chunks_mut(columns).zip(values.chunks(columns)) {
        for (column, (code, value)) in codes.iter_mut().zip(row).enumerate() {
            *code = e4m3_from_f32(value / scales[column / BLOCK]);
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
        *out = Element::to_f32(*value);
        let magnitude = out.abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    let scale = largest / E4M3_MAX;
    for out in out.iter_mut() {
        *out = round_to_e4m3(*out / scale);
    }
    scale
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All finite codes without sign, ascending.
    fn magnitudes() -> impl Iterator<Item = (u8, f32)> {
        (0..0x7f).map(|code| (code, e4m3_to_f32(code)))
    }

    #[test]
    fn all_codes_have_the_values_of_the_standard() {
        for code in 0..=255u8 {
            let sign = if code < 128 { 1.0 } else { -1.0 };
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let expected = match (exponent, code & 7) {
                (15, 7) => f32::NAN,
                (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
                _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
            };
            let found = e4m3_to_f32(code);
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{code:#x}");
            assert_eq!(found.is_sign_negative() || found.is_nan(), code >= 128 || found.is_nan());
        }
        assert_eq!(e4m3_to_f32(0x7e), E4M3_MAX);
    }

    #[test]
    fn all_codes_come_back() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(e4m3_from_f32(e4m3_to_f32(code)), code);
        }
        assert_eq!(e4m3_from_f32(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn all_ties_go_to_even_and_their_neighbours_to_the_nearest() {
        for ((low, a), (high, b)) in magnitudes().zip(magnitudes().skip(1)) {
            let middle = f32::midpoint(a, b);
            let even = if low % 2 == 0 { low } else { high };
            assert_eq!(e4m3_from_f32(middle), even, "between {a} and {b}");
            assert_eq!(e4m3_from_f32(middle.next_down()), low);
            assert_eq!(e4m3_from_f32(middle.next_up()), high);
            assert_eq!(e4m3_from_f32(-middle), even | 0x80);
        }
    }

    #[test]
    fn beyond_the_largest_saturates() {
        for value in [448.0, 464.0, 480.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!((e4m3_from_f32(value), e4m3_from_f32(-value)), (0x7e, 0xfe));
        }
    }

    #[test]
    fn zero_blocks_edge_blocks_and_nan_quantise() {
        let (rows, columns) = (130, 257);
        let value = |row: usize, column: usize| match (row, column) {
            (0..=127, 128..=255) => 0.0,
            (129, 256) => f32::NAN,
            _ => (row as f32 - 60.0) * (column as f32 - 100.0),
        };
        let matrix = Fp8BlockMatrix::quantize(rows, columns, |row, out| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = value(row, column));
        })
        .unwrap();
        assert_eq!(matrix.scales().len(), 6);
        assert_eq!(matrix.scales()[1], 1.0);
        let mut found = vec![0.0; columns];
        for row in 0..rows {
            matrix.dequantize_row(row, &mut found);
            for (column, &found) in found.iter().enumerate() {
                let (expected, scale) =
                    (value(row, column), matrix.scales()[row / BLOCK * 3 + column / BLOCK]);
                let step = (expected.abs() / 16.0).max(scale / 1024.0) * 1.0001;
                let near = (found - expected).abs() <= step;
                assert!(near || expected.is_nan() && found.is_nan(), "{found}, not {expected}");
            }
        }
        assert!(Fp8BlockMatrix::quantize(usize::MAX, 2, |_, _| {}).is_err());
        assert_eq!(Fp8BlockMatrix::quantize(0, 5, |_, _| {}).unwrap().bytes(), 0);
    }

    proptest! {
        #[test]
        fn rounding_without_branches_is_the_same(value in -600f32..600.0, shift in -20i32..1) {
            let value = value * 2f32.powi(shift);
            let expected = e4m3_to_f32(e4m3_from_f32(value));
            prop_assert_eq!(round_to_e4m3(value).to_bits(), expected.to_bits());
        }
    }
}
