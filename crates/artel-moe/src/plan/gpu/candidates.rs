//! Which kernels there are to choose from.

use super::kernel::{GemmFamily, GemmKernel, GpuPath, GpuProduct, Tile};
use super::work::ExpertsShape;
use crate::assignment::{AssignmentPath, PathQuery, choose_path};
use crate::config::{MoeConfig, Parallelism};
use crate::quant::Format;

/// Rows, columns, depth, warps, occupancy.
type Sizes = [usize; 5];

const DECODE: [Sizes; 8] = [
    [8, 128, 128, 4, 2],
    [8, 128, 128, 4, 3],
    [16, 128, 128, 4, 2],
    [16, 128, 128, 4, 3],
    [32, 128, 128, 4, 2],
    [32, 128, 128, 4, 1],
    [64, 128, 128, 4, 2],
    [64, 128, 128, 4, 1],
];

const PREFILL_FP8: [Sizes; 3] =
    [[64, 128, 128, 4, 2], [128, 128, 128, 8, 1], [128, 128, 128, 4, 1]];

const PREFILL_BF16: [Sizes; 3] = [[128, 256, 64, 8, 1], [128, 128, 64, 4, 2], [64, 128, 64, 4, 2]];

/// The kernels of one product that its sizes allow: no tile may reach over the edge of a matrix.
pub fn kernels(shape: &ExpertsShape, product: GpuProduct) -> Vec<GemmKernel> {
    let (features_out, features_in) = shape.features(product);
    let prefill = match shape.format {
        Format::Fp8Block128 => PREFILL_FP8,
        _ => PREFILL_BF16,
    };
    let kernel = |family| {
        move |[rows, columns, depth, warps, occupancy]: Sizes| GemmKernel {
            family,
            tile: Tile { rows, columns, depth, warps, occupancy },
        }
    };
    let decode = DECODE.into_iter().map(kernel(GemmFamily::Decode));
    let all = decode.chain(prefill.into_iter().map(kernel(GemmFamily::Prefill)));
    let fits = |tile: Tile| {
        features_out.is_multiple_of(tile.columns) && features_in.is_multiple_of(tile.depth)
    };
    all.filter(|kernel| fits(kernel.tile)).collect()
}

/// The ways in which pairs can come to a kernel's blocks. The direct form has one row a block, so
/// only the smallest tiles serve it, and only where the published rule allows it.
pub fn paths(config: &MoeConfig, kernel: GemmKernel, tokens: usize) -> Vec<GpuPath> {
    let query = PathQuery {
        tokens,
        top_k: config.shape().top_k,
        num_experts: config.shape().num_experts,
        has_expert_map: matches!(config.parallelism(), Parallelism::Expert(_)),
        ..PathQuery::default()
    };
    let mut paths = vec![GpuPath::Aligned { block_size: kernel.tile.rows }];
    let smallest = kernel.family == GemmFamily::Decode && kernel.tile.rows == DECODE[0][0];
    if smallest && choose_path(&query) == AssignmentPath::Direct {
        paths.push(GpuPath::Direct);
    }
    paths
}
