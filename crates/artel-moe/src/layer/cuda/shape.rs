//! What kernels must know of a layer before there are weights.

use crate::MoeError;
use crate::activation::GateLayout;
use crate::config::{MoeConfig, RouterWeight};
use crate::grouped_gemm::decode::{DecodeShape, DecodeTile};
use crate::grouped_gemm::words::WordTile;
use crate::plan::gpu::{ExpertsShape, Tile};
use crate::quant::Format;

/// Refuses what no kernel computes.
pub(super) fn check(config: &MoeConfig) -> Result<(), MoeError> {
    let on_input = config.router_weight() == RouterWeight::OnInput;
    if on_input && (config.shape().top_k != 1 || config.gating().biases) {
        let allowed = "on the output, but for one expert a token without biases on a GPU";
        return Err(MoeError::config("router weight", "on the input", allowed));
    }
    if config.activation().layout() == GateLayout::Ungated {
        let found = config.activation();
        return Err(MoeError::config("activation", found, "one with a gate on a GPU"));
    }
    Ok(())
}

/// Sizes of the experts of this rank.
pub(super) fn decode_shape(config: &MoeConfig, format: Format) -> Result<DecodeShape, MoeError> {
    check(config)?;
    let shape = ExpertsShape::of(config, format);
    shape.decode_shape().ok_or_else(|| shape.without_kernels())
}

/// The plan's tile as the kernels of small batches name it.
pub(super) fn decode_tile(tile: Tile) -> DecodeTile {
    let Tile { rows, columns, depth, warps, occupancy } = tile;
    DecodeTile { rows, columns, depth, warps, occupancy }
}

/// The same tile for weights in words.
pub(super) fn word_tile(tile: Tile) -> WordTile {
    let Tile { rows, columns, warps, occupancy, .. } = tile;
    WordTile { rows, columns, warps, occupancy }
}
