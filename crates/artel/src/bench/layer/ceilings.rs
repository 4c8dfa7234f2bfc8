//! What this machine can do at best, measured in the same run as the layer.

use std::hint::black_box;
use std::time::Instant;

use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, Isa, Vectorized};
use artel_moe::quant::Format;
use half::bf16;
use rayon::prelude::*;
use serde::Serialize;

use super::simd::dense_product;
use super::simd::units::{
    TILE_OPERATIONS, Tiles, multiply_add_vectors, multiply_tiles, vector_operations,
};
use super::weights::random_floats;

/// 64-bit words that one thread reads at a time: 256 KiB.
const READ_WORDS: usize = 1 << 15;

/// Rates of the processor alone. A multiply-add is two operations.
#[derive(Debug, Clone, Serialize)]
pub struct Ceilings {
    /// Multiply-adds on float32 vectors in registers, 1e9 operations a second.
    pub vector_gigaflops: f64,
    /// Products of bfloat16 tiles in registers, 1e9 operations a second; absent without AMX. FP8
    /// is widened to bfloat16, so it has the same ceiling.
    pub tile_gigaflops: Option<f64>,
    /// Largest rate at which weights were read, 1e9 bytes a second.
    pub read_gigabytes_per_second: f64,
}

impl Ceilings {
    /// Measures the arithmetic of this processor on all threads, whatever the layer may use of it.
    pub fn measure() -> Self {
        let features = CpuFeatures::detect();
        Self {
            vector_gigaflops: vector_gigaflops(features),
            tile_gigaflops: tile_gigaflops(features),
            read_gigabytes_per_second: 0.0,
        }
    }

    /// The units that products of `format` can use at best.
    pub fn gigaflops(&self, format: Format) -> f64 {
        match format {
            Format::F32 | Format::F16 => self.vector_gigaflops,
            _ => self.tile_gigaflops.unwrap_or(self.vector_gigaflops),
        }
    }
}

fn vector_gigaflops(features: CpuFeatures) -> f64 {
    let operands = [0.5, 0.25].map(black_box);
    best_rate(vector_operations(features), |rounds| {
        black_box(multiply_add_vectors(features, operands, rounds));
    })
}

fn tile_gigaflops(features: CpuFeatures) -> Option<f64> {
    let numbers = random_floats(4 * 16 * 32, 6);
    let tiles = Tiles(std::array::from_fn(|index| bf16::from_f32(numbers[index]).to_bits()));
    (features.isa() == Isa::Amx)
        .then(|| best_rate(TILE_OPERATIONS, |rounds| multiply_tiles(features, &tiles, rounds)))
}

/// Best of some short runs on all threads at once.
fn best_rate(operations: usize, work: impl Fn(usize) + Sync) -> f64 {
    // Long enough that waking the threads is nothing beside it.
    const OPERATIONS_PER_RUN: usize = 1 << 31;
    const RUNS: usize = 15;
    let rounds = OPERATIONS_PER_RUN / operations;
    let rate = || {
        let start = Instant::now();
        let threads = rayon::broadcast(|_| work(rounds)).len();
        (threads * rounds * operations) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..RUNS).map(|_| rate()).fold(0.0, f64::max)
}

/// All threads read all of `buffers`, `repetitions` times: the median rate in 1e9 bytes a second.
pub fn read_rate(buffers: &[HostBuffer], repetitions: usize) -> f64 {
    let features = CpuFeatures::detect();
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
