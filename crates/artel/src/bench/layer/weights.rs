//! Random weights for measurements: no zeros, no NaN, values as in trained layers.

use anyhow::Result;
use artel_device::HostBuffer;
use artel_moe::quant::{AnyMatrix, BLOCK, DenseMatrix, Format};
use artel_moe::quant::{Fp8BlockMatrix, Fp8ChannelMatrix, Fp8TensorMatrix, Int4Matrix};
use artel_moe::quant::{Int8ChannelMatrix, Int8GroupMatrix, Mxfp4Matrix, Mxfp8Matrix, Nvfp4Matrix};
use artel_moe::weights::ExpertTensors;
use bytemuck::Pod;
use rayon::prelude::*;

/// A matrix `[rows, columns]`.
///
/// # Errors
/// When the sizes overflow.
pub fn random_matrix(format: Format, rows: usize, columns: usize, seed: u64) -> Result<AnyMatrix> {
    let buffer = random_buffer(format, rows * columns, seed);
    matrix_over(format, buffer, rows, columns)
}

/// `count` numbers of a format.
pub fn random_buffer(format: Format, count: usize, seed: u64) -> HostBuffer {
    match format {
        Format::F32 => HostBuffer::from_vec(random_floats(count, seed)),
        // Sign and mantissa random, exponents around 2^-5.
        Format::F16 => {
            HostBuffer::from_vec(random_words(count, seed, |word| word & 0x87ff | 0x2800))
        }
        Format::Bf16 => {
            HostBuffer::from_vec(random_words(count, seed, |word| word & 0x81ff | 0x3c00))
        }
        _ => HostBuffer::from_vec(random_codes(bytes_of(format, count), seed)),
    }
}

/// Bytes of `count` numbers, without scales.
pub fn bytes_of(format: Format, count: usize) -> usize {
    count * format.number_bits() / 8
}

/// A matrix over numbers that are already there. Codes get scales of their own, in groups of 128
/// where the format does not say how many share one.
///
/// # Errors
/// When the buffer does not have the size.
pub fn matrix_over(
    format: Format,
    buffer: HostBuffer,
    rows: usize,
    columns: usize,
) -> Result<AnyMatrix> {
    Ok(match format {
        Format::F32 => AnyMatrix::F32(DenseMatrix::new(buffer, rows, columns)?),
        Format::F16 => AnyMatrix::F16(DenseMatrix::new(buffer, rows, columns)?),
        Format::Bf16 => AnyMatrix::Bf16(DenseMatrix::new(buffer, rows, columns)?),
        Format::Fp8Block128 => {
            let scales = random_scales(rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK));
            AnyMatrix::Fp8Block128(Fp8BlockMatrix::new(buffer, scales, rows, columns)?)
        }
        Format::Fp8Tensor => {
            AnyMatrix::Fp8Tensor(Fp8TensorMatrix::new(buffer, 1.5e-4, rows, columns)?)
        }
        Format::Fp8Channel => {
            let scales = random_scales(rows);
            AnyMatrix::Fp8Channel(Fp8ChannelMatrix::new(buffer, scales, rows, columns)?)
        }
        Format::Int8W8A8 => {
            let scales = random_scales(rows);
            AnyMatrix::Int8W8A8(Int8ChannelMatrix::new(buffer, scales, rows, columns)?)
        }
        Format::Int8W8A16 => {
            let scales = random_scales(rows * columns.div_ceil(128));
            AnyMatrix::Int8W8A16(Int8GroupMatrix::new(buffer, scales, [rows, columns], 128)?)
        }
        Format::Int4W4A16 => {
            let scales = random_scales(rows * columns.div_ceil(128));
            AnyMatrix::Int4W4A16(Int4Matrix::new(buffer, scales, [rows, columns], 128)?)
        }
        Format::Nvfp4 => {
            // No scale is negative.
            let codes = random_codes(rows * columns.div_ceil(16), 5);
            let scales = codes.iter().map(|code| 0x30 + (code & 0x3f)).collect();
            let scales = HostBuffer::from_vec::<u8>(scales);
            AnyMatrix::Nvfp4(Nvfp4Matrix::new(buffer, scales, 1.5e-4, [rows, columns])?)
        }
        Format::Mxfp4 => {
            let scales = powers_of_two(rows * columns.div_ceil(32));
            AnyMatrix::Mxfp4(Mxfp4Matrix::new(buffer, scales, [rows, columns])?)
        }
        Format::Mxfp8 => {
            let scales = powers_of_two(rows * columns.div_ceil(32));
            AnyMatrix::Mxfp8(Mxfp8Matrix::new(buffer, scales, [rows, columns])?)
        }
    })
}

fn random_scales(count: usize) -> HostBuffer {
    let scales = random_floats(count, 5).iter().map(|x| 1e-4 + x.abs() * 1e-4).collect();
    HostBuffer::from_vec::<f32>(scales)
}

fn powers_of_two(count: usize) -> HostBuffer {
    HostBuffer::from_vec(random_codes(count, 5).iter().map(|code| 118 + code % 4).collect())
}

/// Expert number `expert` of a buffer that holds gate, up and down of one expert after the other.
///
/// # Errors
/// When the buffer is too short.
pub fn expert_over(
    format: Format,
    buffer: &HostBuffer,
    expert: usize,
    [hidden_size, intermediate_size]: [usize; 2],
) -> Result<ExpertTensors> {
    let bytes = bytes_of(format, hidden_size * intermediate_size);
    let part = |part: usize, rows, columns| {
        let start = (3 * expert + part) * bytes;
        matrix_over(format, buffer.slice(start..start + bytes)?, rows, columns)
    };
    Ok(ExpertTensors {
        w13: vec![
            part(0, intermediate_size, hidden_size)?,
            part(1, intermediate_size, hidden_size)?,
        ],
        w13_bias: None,
        w2: part(2, hidden_size, intermediate_size)?,
        w2_bias: None,
    })
}

/// Numbers from -1/16 to 1/16.
pub fn random_floats(count: usize, seed: u64) -> Vec<f32> {
    let mut out = vec![0f32; count];
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| {
        let mut random = Random::new(seed, index);
        out.iter_mut().for_each(|out| *out = (random.next() >> 32) as i32 as f32 / 2f32.powi(35));
    });
    out
}

fn random_words(count: usize, seed: u64, shape: impl Fn(u16) -> u16 + Sync) -> Vec<u16> {
    let mut out = vec![0u16; count];
    fill(&mut out, seed, shape);
    out
}

fn random_codes(count: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0u8; count];
    // The two NaN codes become the largest number.
    fill(&mut out, seed, |byte| if byte & 0x7f == 0x7f { byte - 1 } else { byte });
    out
}

/// Random bits, eight bytes at a time, as `shape` changes each element.
fn fill<T: Pod + Send>(out: &mut [T], seed: u64, shape: impl Fn(T) -> T + Sync) {
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| {
        let mut random = Random::new(seed, index);
        for bytes in bytemuck::cast_slice_mut::<T, u8>(out).chunks_mut(size_of::<u64>()) {
            bytes.copy_from_slice(&random.next().to_le_bytes()[..bytes.len()]);
        }
        out.iter_mut().for_each(|out| *out = shape(*out));
    });
}

const CHUNK: usize = 1 << 16;

/// SplitMix64 (Steele, Lea, Flood 2014): gigabytes of weights in a second or two.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: usize) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (stream as u64) << 32)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
