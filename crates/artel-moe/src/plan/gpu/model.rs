//! How long a batch takes, where nobody has measured it: a roofline with waves.
//!
//! *Decode*: one block lasts a start (ids, expert, the first tiles) and then a step for each `depth`
//! of input features. All blocks run in waves of `multiprocessors * occupancy`. A product lasts as
//! long as its waves, or as the slowest of its bytes from memory, its bytes from the second-level
//! cache and its padded operations plus the half block in which the machine runs empty.
//!
//! *Prefill*: as long as its padded operations at the rate that its inner loop reaches, and the end
//! of each tile, or as its bytes from memory, whichever is longer, and a quarter of the other, which
//! the two do not hide of each other.
//!
//! *Four bits in tiles as high as an expert has rows*: as long as its weights are read or widened, once for each tile,
//! or as its padded operations, and half of the shorter.
//!
//! The constants were fitted to times of kernels on an H200, MiniMax-M2.5 in FP8 on two GPUs and
//! Qwen3-30B-A3B in bfloat16, part of which the tests hold the model against; its choices are held to within a tenth of the best
//! times of the bundled records.

use super::device::GpuCeilings;
use super::kernel::{ExpertKernels, GemmFamily, GemmKernel, GpuPath, GpuProduct, Tile, Way};
use super::work::ExpertsShape;
use crate::MoeError;
use crate::grouped_gemm::prefill::{PrefillForm, warpgroup};
use crate::quant::{BLOCK, Format};

/// Between two kernels of one graph, seconds.
const LAUNCH: f64 = 1.5e-6;
/// From the start of a decode block to its first product.
const START: f64 = 2.5e-6;
/// One tile of weights of `STEP_BYTES` on its way through one multiprocessor's memory pipeline.
const STEP: f64 = 0.35e-6;
const STEP_BYTES: f64 = 16384.0;
/// What reading and multiplying do not hide of each other in prefill.
const UNHIDDEN: f64 = 0.25;
/// What their ring of stages reaches of the memory's rate.
const WARPGROUP_READ: f64 = 0.97;
/// What the kernel with rows on the long side makes of the matrix units.
const LONG_SHARE: f64 = 0.77;
/// Weights of four bits a second that tiles of at most 16, of at most 64 and of more rows widen, of MXFP4, NVFP4 and
/// INT4; and what the end of a tile lasts, in steps of 128 input features.
const WIDENED: [[f64; 3]; 3] =
    [[6.3e12, 5.9e12, 7.7e12], [5.6e12, 5.4e12, 5.8e12], [3.8e12, 3.6e12, 5.0e12]];
const WIDENED_END: f64 = 0.5;
/// Of the kernel of both products: its start and its end, and what it reaches of the memory's rate, on
/// weights of eight and of four bits.
const STREAMED_ENDS: f64 = 4.8e-6;
const STREAMED_READ: f64 = 0.89;
const STREAMED_WORDS_READ: f64 = 0.77;
/// Sorting pairs by expert, its launch included.
const ALIGN: f64 = 4.0e-6;

/// Seconds of the experts' work on a batch with uniform routing.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels on that GPU.
pub fn seconds(
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
    way: Way,
    tokens: usize,
) -> Result<f64, MoeError> {
    let ExpertKernels { first, second } = way.kernels;
    let product = |product, kernel| product_seconds(gpu, shape, product, way.path, kernel, tokens);
    let products = product(GpuProduct::GateUp, first)? + product(GpuProduct::Down, second)?;
    Ok(steps_seconds(gpu, shape, way, tokens) + products)
}

/// Seconds of what is done besides the products: quantising, sorting, bringing rows into order, the
/// activation where no product does it, the sum over experts.
fn steps_seconds(gpu: &GpuCeilings, shape: &ExpertsShape, way: Way, tokens: usize) -> f64 {
    let pairs = shape.pairs(tokens);
    let [quantise, quantise_inner] = match shape.format {
        // The first product quantises the activation.
        Format::Fp8Block128 => [LAUNCH, 0.0],
        Format::F32 | Format::F16 | Format::Bf16 => [0.0; 2],
        _ => [LAUNCH; 2],
    };
    let row_out = (shape.hidden_size * 2) as f64;
    let combine = LAUNCH + pairs * row_out / gpu.read;
    match (way.path, way.kernels.first.family) {
        (GpuPath::Direct, GemmFamily::Streamed) => 0.0,
        // The second product sums; its input is quantised by a launch of its own.
        (GpuPath::Direct, _) => 2.0 * quantise,
        (GpuPath::Aligned { .. }, GemmFamily::Decode | GemmFamily::Streamed) => {
            ALIGN + quantise + quantise_inner + combine
        }
        (
            GpuPath::Aligned { .. },
            GemmFamily::Prefill | GemmFamily::Warpgroup | GemmFamily::Long,
        ) => {
            let permuted = 2.0 * shape.row_bytes(GpuProduct::GateUp);
            let permute = LAUNCH + pairs * permuted / gpu.read;
            // What FP8 rows of the second product are made of: gate and up in float32, or one number.
            let form = shape.prefill_form(GpuProduct::GateUp, way.kernels.first.family);
            let sums = match (form, shape.format) {
                (PrefillForm::SiluAndMultiply, Format::Bf16 | Format::F16) => 0,
                // Integers become codes in a step of their own, too, words of others in the product.
                (_, Format::Int8W8A8) => 4 * shape.intermediate_size,
                _ if shape.word_formats().is_some() => 0,
                (PrefillForm::SiluAndMultiply, _) => 4 * shape.intermediate_size,
                (PrefillForm::Sums, _) => 8 * shape.intermediate_size,
            };
            let row = sums as f64 + shape.row_bytes(GpuProduct::Down);
            let activate = if sums > 0 { LAUNCH + pairs * row / gpu.read } else { 0.0 };
            ALIGN + permute + activate + combine
        }
    }
}

/// Seconds of one product of a batch with uniform routing.
fn product_seconds(
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
    product: GpuProduct,
    path: GpuPath,
    kernel: GemmKernel,
    tokens: usize,
) -> Result<f64, MoeError> {
    let (features_out, features_in) = shape.features(product);
    let blocks = row_blocks(shape, path, kernel, tokens);
    let stored = features_out / parts(shape, product, kernel.family);
    let bytes = shape.experts_touched(tokens) * shape.matrix_bytes(product)
        + shape.pairs(tokens) * (shape.row_bytes(product) + stored as f64 * 2.0);
    let rows = rows_of_block(kernel);
    let operations = 2.0 * blocks * (rows * features_out * features_in) as f64;
    let (reading, peak) = (bytes / gpu.read, shape.arithmetic(gpu)?);
    let launch = match (kernel.family, product) {
        (GemmFamily::Streamed, GpuProduct::Down) => 0.0,
        _ => LAUNCH,
    };
    Ok(launch
        + match kernel.family {
            GemmFamily::Streamed => {
                let ends = if product == GpuProduct::GateUp { STREAMED_ENDS } else { 0.0 };
                let share = match has_narrow_codes(shape) {
                    true => STREAMED_WORDS_READ,
                    false => STREAMED_READ,
                };
                reading / share + ends
            }
            GemmFamily::Decode => decode(
                gpu,
                shape,
                product,
                kernel.tile,
                blocks,
                [
                    reading,
                    // The matrix units take 32 rows in the time of 8; sums in float32 cost as much again.
                    operations / (peak * 0.5 * (kernel.tile.rows as f64 / 32.0).min(1.0)),
                ],
            ),
            GemmFamily::Warpgroup if has_narrow_codes(shape) => {
                let times = [reading / WARPGROUP_READ, operations / peak];
                widened(shape, product, kernel.tile.rows, tokens, times)
            }
            GemmFamily::Prefill | GemmFamily::Warpgroup | GemmFamily::Long => {
                let columns = parts(shape, product, kernel.family) * kernel.tile.columns;
                let (share, reading) = match kernel.family {
                    GemmFamily::Warpgroup => {
                        let (inner, end) = warpgroup_share(shape.format);
                        (ended(inner, end, features_in), reading / WARPGROUP_READ)
                    }
                    GemmFamily::Long => (LONG_SHARE, reading / WARPGROUP_READ),
                    _ => (prefill_share(shape, kernel.tile, columns, features_in), reading),
                };
                let multiplying = operations / peak / share;
                reading.max(multiplying) + UNHIDDEN * reading.min(multiplying)
            }
        })
}

/// Whether a word has more than four weights.
fn has_narrow_codes(shape: &ExpertsShape) -> bool {
    shape.word_formats().is_some_and(|[format, _]| format.columns_per_word() > 4)
}

/// Seconds of `blocks` blocks of rows, for which weights are read and multiplied that long.
fn decode(
    gpu: &GpuCeilings,
    shape: &ExpertsShape,
    product: GpuProduct,
    tile: Tile,
    blocks: f64,
    [reading, multiplying]: [f64; 2],
) -> f64 {
    let (features_out, features_in) = shape.features(product);
    let (matrix, row) = (shape.matrix_bytes(product), shape.row_bytes(product));
    // Of gate and of up so many each.
    let columns = parts(shape, product, GemmFamily::Decode) * tile.columns;
    let column_blocks = features_out.div_ceil(columns) as f64;
    let weights = matrix * (columns * tile.depth) as f64 / (features_out * features_in) as f64;
    let step_bytes = weights + (tile.rows * tile.depth) as f64 * row / features_in as f64;
    let steps = features_in.div_ceil(tile.depth) as f64;
    let block = START + steps * STEP * (step_bytes / STEP_BYTES).max(0.5);
    let slots = (gpu.multiprocessors * tile.occupancy) as f64;
    let waves = (blocks * column_blocks / slots).max(1.0);
    // Whole waves count for arithmetic: an idle multiprocessor's share is lost.
    let quantised = if waves < 8.0 { waves.ceil() / waves } else { 1.0 };
    let from_cache = blocks * (matrix + column_blocks * tile.rows as f64 * row) / gpu.l2_read;
    let slowest = reading.max(from_cache).max(multiplying * quantised);
    let tail = (block / 2.0).min(slowest / 4.0);
    (slowest + tail).max(waves * block)
}

/// Seconds of weights of four bits that are widened once for each tile, which `rows_max` rows fit, where reading
/// them and multiplying by them take that long. Half of the shorter is not hidden.
fn widened(
    shape: &ExpertsShape,
    product: GpuProduct,
    rows_max: usize,
    tokens: usize,
    [reading, multiplying]: [f64; 2],
) -> f64 {
    let (features_out, features_in) = shape.features(product);
    let weights = shape.blocks(tokens, rows_max) * (features_out * features_in) as f64;
    let rates = WIDENED[usize::from(rows_max > 16) + usize::from(rows_max > 64)];
    let rate = match shape.format {
        Format::Mxfp4 => rates[0],
        Format::Nvfp4 => rates[1],
        _ => rates[2],
    };
    let widening = weights / rate / ended(1.0, WIDENED_END, features_in);
    let multiplying = multiplying / ended(0.97, 1.0, features_in);
    let making = widening.max(reading);
    making.max(multiplying) + 0.5 * making.min(multiplying)
}

/// Sums that become one number of the output.
fn parts(shape: &ExpertsShape, product: GpuProduct, family: GemmFamily) -> usize {
    match (family, product) {
        (GemmFamily::Prefill | GemmFamily::Warpgroup | GemmFamily::Long, _) => {
            shape.prefill_form(product, family).parts()
        }
        (GemmFamily::Decode | GemmFamily::Streamed, GpuProduct::GateUp) => 2,
        (GemmFamily::Decode | GemmFamily::Streamed, GpuProduct::Down) => 1,
    }
}

/// What a prefill kernel makes of the matrix units: in its inner loop, and with the end of each tile,
/// where nothing runs beside it.
fn prefill_share(shape: &ExpertsShape, tile: Tile, columns: usize, features_in: usize) -> f64 {
    let (inner, end) = match (shape.format, tile.rows, tile.occupancy) {
        // Widened on the way.
        _ if shape.word_formats().is_some() => (0.62, 0.0),
        (Format::F32 | Format::F16 | Format::Bf16, 64, _) => (0.66, 0.0),
        (Format::F32 | Format::F16 | Format::Bf16, _, 1) => (1.0, 0.6),
        (Format::F32 | Format::F16 | Format::Bf16, ..) => (0.8, 0.0),
        // Half as many columns are summed at once, and twice as often.
        _ if tile.depth < BLOCK && tile.occupancy == 1 => (0.6, 3.0),
        // Measured with 128-blocks; other scales only come later.
        (_, _, 1) => (0.94, 3.0),
        _ => (0.72, 1.2),
    };
    let narrow = (columns as f64 / 128.0).min(1.0);
    ended(inner * narrow, end, features_in)
}

/// What a warpgroup kernel makes of the matrix units in its inner loop, and what the end of a tile
/// lasts, in steps of 128 input features.
fn warpgroup_share(format: Format) -> (f64, f64) {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => (1.0, 1.2),
        // Reading hides behind long sums of integers better than behind others.
        Format::Int8W8A8 => (1.15, 2.2),
        // Every group of columns has scales of its rows; without them sums are shorter.
        Format::Fp8Block128 => (0.63, 0.45),
        _ => (0.64, 0.0),
    }
}

/// A share of the matrix units' rate with the end of each tile, which lasts as long as some steps of
/// 128 input features.
fn ended(inner: f64, end: f64, features_in: usize) -> f64 {
    inner / (1.0 + end * 128.0 / features_in as f64)
}

/// Blocks of rows that a kernel works on.
fn row_blocks(shape: &ExpertsShape, path: GpuPath, kernel: GemmKernel, tokens: usize) -> f64 {
    match path {
        // The block of the first pair of an expert serves the others.
        GpuPath::Direct => shape.experts_touched(tokens),
        // A tile without a single row ends at once.
        GpuPath::Aligned { .. } => shape.blocks(tokens, rows_of_block(kernel)),
    }
}

/// What the rows of an expert are a multiple of.
fn rows_of_block(kernel: GemmKernel) -> usize {
    match kernel.family {
        GemmFamily::Warpgroup => warpgroup::BLOCK_ROWS,
        // Each of two warpgroups has half of a tile.
        GemmFamily::Long => warpgroup::LONG_ROWS / 2,
        _ => kernel.tile.rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Gating;

    const MINIMAX_TP2: ExpertsShape = ExpertsShape {
        experts: 256,
        local_experts: 256,
        top_k: 8,
        hidden_size: 3072,
        intermediate_size: 768,
        format: Format::Fp8Block128,
        gating: Gating::SILU,
    };

    const QWEN3: ExpertsShape = ExpertsShape {
        experts: 128,
        local_experts: 128,
        top_k: 8,
        hidden_size: 2048,
        intermediate_size: 768,
        format: Format::Bf16,
        gating: Gating::SILU,
    };

    const MINIMAX: ExpertsShape = ExpertsShape { intermediate_size: 1536, ..MINIMAX_TP2 };
    const QWEN3_FP8: ExpertsShape = ExpertsShape { format: Format::Fp8Block128, ..QWEN3 };
    const INTEGERS: ExpertsShape = ExpertsShape { format: Format::Int8W8A8, ..MINIMAX_TP2 };
    const CHANNEL: ExpertsShape = ExpertsShape { format: Format::Fp8Channel, ..MINIMAX_TP2 };

    const NVFP4: ExpertsShape = ExpertsShape { format: Format::Nvfp4, ..MINIMAX_TP2 };
    const MXFP4: ExpertsShape = ExpertsShape { format: Format::Mxfp4, ..MINIMAX_TP2 };
    const INT4: ExpertsShape = ExpertsShape { format: Format::Int4W4A16, ..MINIMAX_TP2 };

    fn h200() -> &'static GpuCeilings {
        GpuCeilings::of_architecture("sm_90").unwrap()
    }

    /// Quantisation and both products; the direct form sums within the second.
    #[test]
    fn decode_meets_what_was_measured() {
        for (shape, way, tokens, measured) in [
            (MINIMAX_TP2, "direct: decode 8x32x128 w4 o4 + decode 8x128x128 w4 o3", 1, 22.7),
            (MINIMAX_TP2, "direct: decode 8x64x128 w4 o2 + decode 8x128x128 w4 o3", 2, 36.3),
            (MINIMAX_TP2, "direct: decode 8x64x128 w4 o2 + decode 8x128x128 w4 o2", 8, 115.7),
            (MINIMAX_TP2, "aligned/8: decode 8x128x128 w4 o2 + decode 8x128x128 w4 o4", 8, 110.4),
            (MINIMAX_TP2, "aligned/8: decode 8x128x128 w4 o2 + decode 8x128x128 w4 o4", 64, 369.8),
            (
                MINIMAX_TP2,
                "aligned/16: decode 16x128x128 w4 o2 + decode 16x128x128 w4 o3",
                64,
                378.7,
            ),
            (
                MINIMAX_TP2,
                "aligned/16: decode 16x128x128 w4 o2 + decode 16x128x128 w4 o3",
                256,
                440.7,
            ),
            (MINIMAX_TP2, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 1, 20.9),
            (MINIMAX_TP2, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 2, 34.9),
            (MINIMAX_TP2, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 4, 60.1),
            (MINIMAX_TP2, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 8, 111.3),
            (NVFP4, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 1, 16.3),
            (NVFP4, "direct: streamed 8x32x3072 w8 o1 + streamed 8x128x768 w8 o1", 4, 41.7),
            (NVFP4, "direct: streamed 8x32x3072 w8 o1 + streamed 8x128x768 w8 o1", 8, 74.7),
            (MXFP4, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 2, 25.0),
            (MXFP4, "direct: streamed 8x32x3072 w8 o1 + streamed 8x128x768 w8 o1", 8, 71.8),
            (INTEGERS, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 1, 20.8),
            (INTEGERS, "direct: streamed 8x16x3072 w8 o1 + streamed 8x64x768 w8 o1", 8, 108.9),
            (QWEN3, "direct: decode 8x32x128 w4 o4 + decode 8x64x64 w4 o4", 1, 22.5),
            (QWEN3, "direct: decode 8x32x128 w4 o3 + decode 8x128x128 w4 o2", 4, 72.3),
            (QWEN3, "aligned/8: decode 8x64x128 w4 o1 + decode 8x128x64 w4 o3", 8, 120.2),
            (QWEN3, "aligned/8: decode 8x64x128 w4 o1 + decode 8x128x64 w4 o3", 64, 272.4),
            (QWEN3, "aligned/32: decode 32x64x64 w4 o1 + decode 32x128x64 w4 o2", 256, 295.5),
        ] {
            let way: Way = way.parse().unwrap();
            let aligned = way.path != GpuPath::Direct;
            let combine =
                LAUNCH + shape.pairs(tokens) * (shape.hidden_size * 2) as f64 / h200().read;
            let beside = if aligned { ALIGN + combine } else { 0.0 };
            let modelled = (seconds(h200(), &shape, way, tokens).unwrap() - beside) * 1e6;
            let error = (modelled / measured - 1.0).abs();
            assert!(error < 0.1, "{way} {tokens}: {modelled:.1} us, measured {measured}");
        }
    }

    #[test]
    fn prefill_meets_what_was_measured() {
        for (shape, product, kernel, tokens, measured) in [
            (MINIMAX_TP2, GpuProduct::GateUp, "prefill 64x128x128 w4 o2", 1024, 322.6),
            (MINIMAX_TP2, GpuProduct::GateUp, "prefill 64x128x128 w4 o2", 8192, 843.1),
            (MINIMAX_TP2, GpuProduct::GateUp, "prefill 128x128x128 w8 o1", 4096, 493.4),
            (MINIMAX_TP2, GpuProduct::GateUp, "prefill 128x128x128 w8 o1", 8192, 776.0),
            (MINIMAX_TP2, GpuProduct::Down, "prefill 64x128x128 w4 o2", 1024, 176.5),
            (MINIMAX_TP2, GpuProduct::Down, "prefill 64x128x128 w4 o2", 8192, 474.4),
            (MINIMAX_TP2, GpuProduct::Down, "prefill 128x128x128 w8 o1", 8192, 532.5),
            (QWEN3, GpuProduct::GateUp, "prefill 64x128x64 w4 o1", 512, 201.7),
            (QWEN3, GpuProduct::GateUp, "prefill 128x128x64 w8 o1", 1024, 215.6),
            (QWEN3, GpuProduct::GateUp, "prefill 128x128x64 w8 o1", 2048, 257.9),
            (QWEN3, GpuProduct::GateUp, "prefill 128x128x64 w8 o1", 8192, 633.4),
            (QWEN3, GpuProduct::GateUp, "prefill 128x64x64 w4 o2", 8192, 822.2),
            (QWEN3, GpuProduct::Down, "prefill 64x256x64 w4 o1", 512, 109.2),
            (QWEN3, GpuProduct::Down, "prefill 128x256x64 w8 o1", 2048, 148.0),
            (QWEN3, GpuProduct::Down, "prefill 128x256x64 w8 o1", 8192, 349.1),
            (QWEN3, GpuProduct::GateUp, "warpgroup 288x64x64 w8 o1", 1024, 219.1),
            (QWEN3, GpuProduct::GateUp, "warpgroup 288x64x64 w8 o1", 2048, 241.9),
            (QWEN3, GpuProduct::GateUp, "warpgroup 288x64x64 w8 o1", 4096, 334.8),
            (QWEN3, GpuProduct::GateUp, "warpgroup 288x64x64 w8 o1", 8192, 629.9),
            (QWEN3, GpuProduct::Down, "warpgroup 288x128x64 w8 o1", 2048, 141.5),
            (QWEN3, GpuProduct::Down, "warpgroup 288x128x64 w8 o1", 4096, 201.2),
            (QWEN3, GpuProduct::Down, "warpgroup 288x128x64 w8 o1", 8192, 358.5),
            (MINIMAX_TP2, GpuProduct::GateUp, "warpgroup 144x64x128 w8 o1", 1024, 302.4),
            (MINIMAX_TP2, GpuProduct::GateUp, "warpgroup 144x64x128 w8 o1", 4096, 450.1),
            (MINIMAX_TP2, GpuProduct::GateUp, "warpgroup 144x64x128 w8 o1", 8192, 823.6),
            (MINIMAX_TP2, GpuProduct::Down, "warpgroup 144x128x128 w8 o1", 1024, 166.7),
            (MINIMAX_TP2, GpuProduct::Down, "warpgroup 144x128x128 w8 o1", 4096, 253.3),
            (MINIMAX_TP2, GpuProduct::Down, "warpgroup 144x128x128 w8 o1", 8192, 458.8),
            (QWEN3_FP8, GpuProduct::GateUp, "long 128x96x128 w8 o1", 4096, 273.0),
            (QWEN3_FP8, GpuProduct::GateUp, "long 128x96x128 w8 o1", 8192, 473.0),
            (QWEN3_FP8, GpuProduct::Down, "long 128x192x128 w8 o1", 4096, 143.2),
            (QWEN3_FP8, GpuProduct::Down, "long 128x192x128 w8 o1", 8192, 258.4),
            (QWEN3_FP8, GpuProduct::Down, "long 128x192x128 w8 o1", 16384, 488.8),
            (MINIMAX, GpuProduct::GateUp, "long 128x96x128 w8 o1", 8192, 1562.1),
            (MINIMAX, GpuProduct::GateUp, "long 128x96x128 w8 o1", 16384, 2764.5),
            (MINIMAX, GpuProduct::Down, "long 128x192x128 w8 o1", 8192, 748.0),
            (MINIMAX, GpuProduct::Down, "long 128x192x128 w8 o1", 16384, 1286.9),
            (QWEN3_FP8, GpuProduct::GateUp, "prefill 128x64x64 w8 o1", 8192, 663.8),
            (MINIMAX, GpuProduct::GateUp, "prefill 128x64x64 w8 o1", 8192, 2351.2),
            (CHANNEL, GpuProduct::GateUp, "warpgroup 144x64x128 w8 o1", 4096, 449.3),
            (CHANNEL, GpuProduct::GateUp, "warpgroup 144x64x128 w8 o1", 8192, 816.6),
            (CHANNEL, GpuProduct::Down, "warpgroup 144x128x128 w8 o1", 4096, 235.8),
            (CHANNEL, GpuProduct::Down, "warpgroup 144x128x128 w8 o1", 8192, 418.4),
            (INTEGERS, GpuProduct::GateUp, "warpgroup 288x64x128 w8 o1", 1024, 313.0),
            (INTEGERS, GpuProduct::GateUp, "warpgroup 288x64x128 w8 o1", 4096, 360.3),
            (INTEGERS, GpuProduct::GateUp, "warpgroup 288x64x128 w8 o1", 8192, 487.1),
            (INTEGERS, GpuProduct::Down, "warpgroup 288x128x128 w8 o1", 4096, 231.9),
            (INTEGERS, GpuProduct::Down, "warpgroup 288x128x128 w8 o1", 8192, 371.1),
        ] {
            check_product(&shape, product, kernel, tokens, measured);
        }
    }

    /// Four bits in tiles as high as an expert has rows.
    #[test]
    fn widened_products_meet_what_was_measured() {
        for (shape, product, kernel, tokens, measured) in [
            (NVFP4, GpuProduct::GateUp, "warpgroup 16x128x256 w16 o1", 64, 202.7),
            (NVFP4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 64, 113.5),
            (NVFP4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 256, 129.0),
            (NVFP4, GpuProduct::GateUp, "warpgroup 64x128x256 w16 o1", 256, 242.9),
            (NVFP4, GpuProduct::GateUp, "warpgroup 64x128x256 w16 o1", 1024, 287.6),
            (NVFP4, GpuProduct::GateUp, "warpgroup 64x128x256 w16 o1", 2048, 441.7),
            (NVFP4, GpuProduct::Down, "warpgroup 64x256x256 w16 o1", 1024, 166.3),
            (NVFP4, GpuProduct::GateUp, "warpgroup 256x64x256 w8 o1", 4096, 628.0),
            (NVFP4, GpuProduct::GateUp, "warpgroup 256x64x256 w8 o1", 8192, 1083.5),
            (NVFP4, GpuProduct::Down, "warpgroup 256x128x256 w8 o1", 8192, 602.7),
            (MXFP4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 64, 104.6),
            (MXFP4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 256, 121.5),
            (MXFP4, GpuProduct::GateUp, "warpgroup 64x128x256 w16 o1", 1024, 284.6),
            (MXFP4, GpuProduct::GateUp, "warpgroup 256x64x256 w8 o1", 4096, 620.3),
            (INT4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 64, 87.9),
            (INT4, GpuProduct::Down, "warpgroup 16x256x256 w16 o1", 256, 101.7),
            (INT4, GpuProduct::GateUp, "warpgroup 64x64x256 w8 o1", 256, 221.8),
            (INT4, GpuProduct::GateUp, "warpgroup 64x64x256 w8 o1", 1024, 280.2),
            (INT4, GpuProduct::GateUp, "warpgroup 144x64x256 w8 o1", 4096, 582.5),
            (INT4, GpuProduct::GateUp, "warpgroup 144x64x256 w8 o1", 8192, 1085.7),
            (INT4, GpuProduct::Down, "warpgroup 144x128x256 w8 o1", 8192, 615.3),
        ] {
            check_product(&shape, product, kernel, tokens, measured);
        }
    }

    fn check_product(
        shape: &ExpertsShape,
        product: GpuProduct,
        kernel: &str,
        tokens: usize,
        measured: f64,
    ) {
        let kernel: GemmKernel = kernel.parse().unwrap();
        let path = GpuPath::Aligned { block_size: rows_of_block(kernel) };
        let modelled = product_seconds(h200(), shape, product, path, kernel, tokens).unwrap();
        let error = (modelled * 1e6 / measured - 1.0).abs();
        assert!(error < 0.1, "{kernel} {tokens}: {modelled:e} s, measured {measured} us");
    }
}
