//! How long a kernel takes, where nobody has measured it: a roofline with waves.
//!
//! One block lasts a start (ids, expert, the first tiles) and then a step for each `depth` of input
//! features. All blocks run in waves of `multiprocessors * occupancy`. A product lasts as long as
//! its waves, or as the slowest of its bytes from memory, its bytes from the second-level cache and
//! its padded operations plus the half block in which the machine runs empty; and the launch.
//!
//! The constants were fitted to decode kernels on an H200 (13.7 us at 1 token, 68.9 at 8, 241.7 at
//! 64 and 282.2 at 256 for the first product of MiniMax-M2.5 on two GPUs; 7.7, 35.1, 125.0 and
//! 159.7 for the second), which the tests hold the model against.

use super::device::GpuCeilings;
use super::kernel::{GemmFamily, GemmKernel, GpuPath, GpuProduct};
use super::work::ExpertsShape;
use crate::MoeError;
use crate::quant::Format;

/// Between two kernels of one graph, seconds.
const LAUNCH: f64 = 1.5e-6;
/// From the start of a block to its first product, rows gathered by pair or lying together.
const START_GATHERING: f64 = 2.5e-6;
const START: f64 = 0.5e-6;
/// One tile of weights of `STEP_BYTES` on its way through one multiprocessor's memory pipeline.
const STEP: f64 = 0.35e-6;
const STEP_BYTES: f64 = 16384.0;
/// Share of the memory's rate that blocks reach which have a multiprocessor to themselves.
const ALONE: f64 = 0.86;
/// Sorting pairs by expert, its launch included.
const ALIGN: f64 = 4.0e-6;

/// Seconds of bringing the pairs of a batch to their experts.
pub fn assign_seconds(path: GpuPath, shape: &ExpertsShape, tokens: usize) -> f64 {
    match path {
        GpuPath::Direct => 0.0,
        GpuPath::Aligned { .. } => ALIGN + shape.pairs(tokens) * 0.2e-9,
    }
}

/// Seconds of one product of a batch with uniform routing.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels on that GPU.
pub fn product_seconds(
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
    product: GpuProduct,
    path: GpuPath,
    kernel: GemmKernel,
    tokens: usize,
) -> Result<f64, MoeError> {
    let (features_out, features_in) = shape.features(product);
    let tile = kernel.tile;
    let matrix = shape.matrix_bytes(product);
    let blocks = row_blocks(shape, path, kernel, tokens);
    let column_blocks = features_out.div_ceil(tile.columns) as f64;

    let steps = features_in.div_ceil(tile.depth) as f64;
    let step_bytes = matrix * (tile.columns * tile.depth) as f64
        / (features_out * features_in) as f64
        + (tile.rows * tile.depth) as f64 * shape.row_bytes(product) / features_in as f64;
    let start = match kernel.family {
        GemmFamily::Decode => START_GATHERING,
        GemmFamily::Prefill => START,
    };
    let block = start + steps * STEP * (step_bytes / STEP_BYTES).max(0.5);
    let slots = (gpu.multiprocessors * tile.occupancy) as f64;
    let waves = (blocks * column_blocks / slots).max(1.0);

    let memory_rate = if tile.occupancy == 1 { gpu.read * ALONE } else { gpu.read };
    let rows = shape.pairs(tokens);
    let from_memory = weight_bytes(gpu, shape, product, path, tokens)
        + rows * (shape.row_bytes(product) + features_out as f64 * 2.0);
    let rows_again = column_blocks * tile.rows as f64 * shape.row_bytes(product);
    let from_cache = blocks * (matrix + rows_again);
    let operations = 2.0 * blocks * (tile.rows * features_out * features_in) as f64;
    let arithmetic = shape.arithmetic(gpu)? * sustained_share(kernel, shape.format);
    // Whole waves count for arithmetic: an idle multiprocessor's share is lost.
    let quantised = if waves < 8.0 { waves.ceil() / waves } else { 1.0 };

    let slowest = (from_memory / memory_rate)
        .max(from_cache / gpu.l2_read)
        .max(operations / arithmetic * quantised);
    let tail = (block / 2.0).min(slowest / 4.0);
    Ok(LAUNCH + (slowest + tail).max(waves * block))
}

/// Blocks of rows that a kernel works on.
fn row_blocks(shape: &ExpertsShape, path: GpuPath, kernel: GemmKernel, tokens: usize) -> f64 {
    match path {
        GpuPath::Direct => shape.pairs(tokens),
        // A tile without a single row ends at once.
        GpuPath::Aligned { .. } => shape.blocks(tokens, kernel.tile.rows),
    }
}

/// Bytes of weights that come from memory: every touched expert once. The direct form reads an
/// expert again for each further pair, which the cache serves as far as it holds what lies between.
fn weight_bytes(
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
    product: GpuProduct,
    path: GpuPath,
    tokens: usize,
) -> f64 {
    let (matrix, touched) = (shape.matrix_bytes(product), shape.experts_touched(tokens));
    let again = match path {
        GpuPath::Direct => {
            let repeated = shape.pairs(tokens) - touched;
            let kept = (gpu.l2_bytes / (shape.pairs(tokens) * matrix)).min(1.0);
            repeated * (1.0 - kept)
        }
        GpuPath::Aligned { .. } => 0.0,
    };
    (touched + again) * matrix
}

/// What the inner loop of a kernel makes of the matrix units, measured on an H200.
fn sustained_share(kernel: GemmKernel, format: Format) -> f64 {
    let tile = kernel.tile;
    match (kernel.family, format) {
        // The units take 32 rows in the time of 8; float32 sums of FP8 cost as much again.
        (GemmFamily::Decode, _) => 0.5 * (tile.rows as f64 / 32.0).min(1.0),
        (GemmFamily::Prefill, Format::Fp8Block128) => 0.53,
        // Half the columns: rows are read twice as often.
        (GemmFamily::Prefill, _) if tile.columns * tile.rows >= 128 * 256 => 0.93,
        (GemmFamily::Prefill, _) => 0.84,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAX_TP2: ExpertsShape = ExpertsShape {
        experts: 256,
        local_experts: 256,
        top_k: 8,
        hidden_size: 3072,
        intermediate_size: 768,
        format: Format::Fp8Block128,
    };

    fn microseconds(product: GpuProduct, kernel: &str, tokens: usize) -> f64 {
        let gpu = GpuCeilings::of_architecture("sm_90").unwrap();
        let kernel: GemmKernel = kernel.parse().unwrap();
        let path = GpuPath::Aligned { block_size: kernel.tile.rows };
        product_seconds(gpu, &MINIMAX_TP2, product, path, kernel, tokens).unwrap() * 1e6
    }

    #[test]
    fn the_model_meets_what_was_measured() {
        for (product, kernel, tokens, measured) in [
            (GpuProduct::GateUp, "decode 8x128x128 w4 o3", 1, 13.7),
            (GpuProduct::GateUp, "decode 8x128x128 w4 o3", 8, 68.9),
            (GpuProduct::GateUp, "decode 16x128x128 w4 o2", 64, 241.7),
            (GpuProduct::GateUp, "decode 16x128x128 w4 o2", 256, 282.2),
            (GpuProduct::Down, "decode 8x128x128 w4 o2", 1, 7.7),
            (GpuProduct::Down, "decode 8x128x128 w4 o2", 8, 35.1),
            (GpuProduct::Down, "decode 8x128x128 w4 o2", 64, 125.0),
            (GpuProduct::Down, "decode 8x128x128 w4 o2", 256, 159.7),
            (GpuProduct::GateUp, "prefill 64x128x128 w4 o2", 8192, 950.0),
            (GpuProduct::Down, "prefill 128x128x128 w8 o1", 8192, 530.0),
        ] {
            let modelled = microseconds(product, kernel, tokens);
            let error = (modelled / measured - 1.0).abs();
            assert!(error < 0.12, "{kernel} {tokens}: {modelled:.1} us, measured {measured}");
        }
    }

    #[test]
    fn one_block_a_multiprocessor_reads_slower() {
        let time = |occupancy| {
            let kernel = format!("decode 16x128x128 w4 o{occupancy}");
            microseconds(GpuProduct::GateUp, &kernel, 64)
        };
        assert!(time(1) / time(2) > 1.1 && time(1) / time(2) < 1.25);
    }

    #[test]
    fn few_experts_share_a_repeated_read_only_as_far_as_the_cache_holds_it() {
        let gpu = GpuCeilings::of_architecture("sm_90").unwrap();
        let bytes = |path, tokens| {
            let bytes = weight_bytes(gpu, &MINIMAX_TP2, GpuProduct::GateUp, path, tokens);
            bytes / MINIMAX_TP2.matrix_bytes(GpuProduct::GateUp)
        };
        let aligned = GpuPath::Aligned { block_size: 8 };
        assert_eq!((bytes(GpuPath::Direct, 1), bytes(aligned, 1)), (8.0, 8.0));
        assert!(bytes(GpuPath::Direct, 8) > bytes(aligned, 8) + 4.0);
    }
}
