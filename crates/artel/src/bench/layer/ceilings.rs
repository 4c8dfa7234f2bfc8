//! What this machine can do at best, measured in the same run as the layer.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, Vectorized};
use artel_moe::grouped_gemm::{GemmScratch, dense};
use artel_moe::quant::Format;
use rayon::prelude::*;
use serde::Serialize;

use super::simd::dense_product;
use super::weights::{random_floats, random_matrix};

/// 64-bit words that one thread reads at a time: 256 KiB.
const READ_WORDS: usize = 1 << 15;

/// Rates of the processor alone. A multiply-add is two operations.
#[derive(Debug, Clone, Serialize)]
pub struct Ceilings {
    /// This project's own product of a bfloat16 matrix that stays in the cache with many rows,
    /// 1e9 operations a second.
    pub own_peak_bf16_gigaflops: f64,
    /// The same in FP8.
    pub own_peak_fp8_gigaflops: f64,
    /// Largest rate at which weights were read, 1e9 bytes a second.
    pub read_gigabytes_per_second: f64,
}

/// Rates of `features` on all threads.
///
/// # Errors
/// When the product refuses its input, which is a bug.
pub fn peak_gigaflops(features: CpuFeatures, format: Format) -> Result<f64> {
    const TOKENS: usize = 512;
    const SIZE: usize = 512;
    let matrix = random_matrix(format, SIZE, SIZE, 1)?;
    let x = random_floats(TOKENS * SIZE, 2);
    let mut out = vec![0f32; TOKENS * SIZE];
    let mut scratch = GemmScratch::default();
    let mut best = 0f64;
    for _ in 0..100 {
        let start = Instant::now();
        dense(features, &x, &matrix, &mut out, &mut scratch)?;
        let operations = (2 * TOKENS * SIZE * SIZE) as f64;
        best = best.max(operations / start.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best)
}

/// All threads read all of `buffers`, `repetitions` times: the median rate in 1e9 bytes a second.
pub fn read_rate(features: CpuFeatures, buffers: &[HostBuffer], repetitions: usize) -> f64 {
    let bytes: usize = buffers.iter().map(HostBuffer::len).sum();
    let rate = || {
        let start = Instant::now();
        let chunks =
            buffers.par_iter().flat_map(|buffer| buffer.as_slice::<u64>().par_chunks(READ_WORDS));
        let sum = chunks.map(|words| features.vectorize(Sum(words))).reduce(|| 0, |a, b| a ^ b);
        black_box(sum);
        bytes as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    median((0..repetitions).map(|_| rate()).collect())
}

struct Sum<'a>(&'a [u64]);

impl Vectorized for Sum<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let (blocks, rest) = self.0.as_chunks::<64>();
        let mut sums = [0u64; 64];
        for block in blocks {
            for (sum, word) in sums.iter_mut().zip(block) {
                *sum ^= word;
            }
        }
        sums.iter().chain(rest).fold(0, |a, b| a ^ b)
    }
}

/// The `gemm` crate on the dense products that equal one layer step: `rows` rows through
/// `[2I, H]` and `[H, I]`. 1e9 operations a second.
pub fn gemm_crate_gigaflops(rows: usize, hidden_size: usize, intermediate_size: usize) -> f64 {
    let rate = |features: usize, columns: usize| {
        let x = random_floats(rows * columns, 3);
        let weights = random_floats(features * columns, 4);
        let mut out = vec![0f32; rows * features];
        let seconds = (0..3).map(|_| {
            let start = Instant::now();
            dense_product(columns, &x, &weights, &mut out);
            start.elapsed().as_secs_f64()
        });
        seconds.fold(f64::INFINITY, f64::min)
    };
    let seconds = rate(2 * intermediate_size, hidden_size) + rate(hidden_size, intermediate_size);
    (6 * rows * hidden_size * intermediate_size) as f64 / seconds / 1e9
}

/// Middle value; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
