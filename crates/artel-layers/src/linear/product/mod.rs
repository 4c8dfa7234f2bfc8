//! How products are cut into tiles, and the kernels of one tile.

mod ahead;
pub(super) mod cuda;

use super::cuda::{LinearNumbers, LinearShape};

/// Most rows of products that are cut the same way, however many there are.
pub const FEW_ROWS_MAX: usize = 64;

/// Blocks of threads that keep the memory of an H200 busy: one for each multiprocessor, nearly.
pub(super) const BLOCKS_WANTED: usize = 128;

/// Multiprocessors of an H200.
pub(super) const MULTIPROCESSORS: usize = 132;

/// Steps of a part whose weights are read before its rows are there.
const STEPS_AHEAD: usize = 4;

/// Most parts of a product.
const PARTS_MAX: usize = 8;

/// Columns of the tiles that parts are counted by.
const COLUMNS: usize = 128;

/// Numbers that the sums of all parts take at most: parts double while blocks are fewer than wanted.
pub(super) const SUMS_MAX: usize = FEW_ROWS_MAX * 2 * BLOCKS_WANTED * COLUMNS;

/// How a product is cut. Measured on an H200 with cold weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProductTile {
    /// Rows of a block.
    pub(super) rows: usize,
    /// Output features of a block.
    pub(super) columns: usize,
    /// Inputs of a step.
    pub(super) depth: usize,
    /// Blocks that share the steps of a tile, a power of two.
    pub(super) parts: usize,
    /// Whether the weights of the first steps are read before rows are there.
    pub(super) ahead: bool,
    /// Warps of a block.
    pub(super) warps: usize,
    /// Blocks that a multiprocessor shall hold.
    pub(super) occupancy: usize,
}

impl ProductTile {
    /// For up to `rows` of the few rows.
    pub(super) fn few(shape: &LinearShape, rows: usize) -> Self {
        let parts = parts(shape);
        let (columns, depth) = match (rows, shape.numbers) {
            (FEW_ROWS_MAX.., LinearNumbers::Plain) => (64, 64),
            (FEW_ROWS_MAX.., LinearNumbers::Fp8Block128) => (64, 128),
            _ => (COLUMNS, 128),
        };
        let base = Self { rows, columns, depth, parts, ahead: false, warps: 4, occupancy: 2 };
        let steps = shape.inputs.div_ceil(depth).div_ceil(parts);
        let is_few = rows < FEW_ROWS_MAX && parts > 1 && steps >= STEPS_AHEAD;
        // FP8 weights gain nothing from it: they are half the bytes.
        if !is_few || shape.numbers != LinearNumbers::Plain {
            return base;
        }
        // One block on each multiprocessor, or two half as wide where that would leave many without.
        match 4 * parts * shape.outputs.div_ceil(COLUMNS) >= 3 * MULTIPROCESSORS {
            true => Self { ahead: true, occupancy: 1, ..base },
            false => Self { ahead: true, columns: COLUMNS / 2, ..base },
        }
    }

    /// Large tiles for more rows.
    pub(super) fn large(shape: &LinearShape) -> Self {
        match shape.numbers {
            LinearNumbers::Plain => Self {
                rows: 128,
                columns: 128,
                depth: 64,
                parts: 1,
                ahead: false,
                warps: 8,
                occupancy: 1,
            },
            LinearNumbers::Fp8Block128 => Self {
                rows: 128,
                columns: 64,
                depth: 128,
                parts: 1,
                ahead: false,
                warps: 4,
                occupancy: 2,
            },
        }
    }

    /// Small tiles, where large ones would leave much of the GPU idle.
    pub(super) fn small(shape: &LinearShape) -> Self {
        Self { parts: 1, ..Self::few(shape, FEW_ROWS_MAX) }
    }

    /// Tokens from which on the large tiles are the faster ones.
    pub(super) fn large_from(shape: &LinearShape) -> usize {
        let tile = Self::large(shape);
        let blocks = match shape.numbers {
            LinearNumbers::Plain => BLOCKS_WANTED / 2,
            LinearNumbers::Fp8Block128 => BLOCKS_WANTED,
        };
        let row_tiles = blocks.div_ceil(shape.outputs.div_ceil(tile.columns));
        (row_tiles - 1) * tile.rows + 1
    }
}

/// Parts of a product of few rows: as many as give every multiprocessor a block, of 16-bit numbers no
/// more than that, as the blocks fill its memory.
fn parts(shape: &LinearShape) -> usize {
    let (tiles, steps) = (shape.outputs.div_ceil(COLUMNS), shape.inputs.div_ceil(128));
    let most = match shape.numbers {
        LinearNumbers::Plain => MULTIPROCESSORS,
        LinearNumbers::Fp8Block128 => 2 * BLOCKS_WANTED - 1,
    };
    let mut parts = 1;
    while parts < PARTS_MAX && 2 * tiles * parts <= most && 2 * parts <= steps {
        parts *= 2;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(outputs: usize, inputs: usize, numbers: LinearNumbers) -> LinearShape {
        LinearShape { outputs, inputs, numbers, bias: false }
    }

    #[test]
    fn parts_fill_the_gpu_and_fit_the_sums() {
        let numbers = [LinearNumbers::Plain, LinearNumbers::Fp8Block128];
        for (outputs, inputs, expected) in [
            (5120, 2048, [2, 4]),
            (2048, 4096, [8, 8]),
            (8192, 3072, [2, 2]),
            (3072, 6144, [4, 8]),
            (151_936, 2048, [1, 1]),
            (8, 16, [1, 1]),
        ] {
            for (numbers, expected) in numbers.into_iter().zip(expected) {
                let shape = shape(outputs, inputs, numbers);
                assert_eq!(parts(&shape), expected, "{shape:?}");
                let sums = FEW_ROWS_MAX * parts(&shape) * outputs;
                assert!(parts(&shape) == 1 || sums <= SUMS_MAX, "{sums}");
            }
        }
    }

    #[test]
    fn few_rows_are_cut_the_same_way_however_many_they_are() {
        let shape = shape(3072, 6144, LinearNumbers::Fp8Block128);
        let parts = [8, 16, 32, 64].map(|rows| ProductTile::few(&shape, rows).parts);
        assert_eq!(parts, [8; 4]);
    }

    #[test]
    fn weights_are_read_ahead_where_a_part_has_steps_enough() {
        let tile = |outputs, inputs, numbers, rows| {
            let ProductTile { columns, ahead, occupancy, .. } =
                ProductTile::few(&shape(outputs, inputs, numbers), rows);
            (columns, ahead, occupancy)
        };
        let plain = LinearNumbers::Plain;
        assert_eq!(tile(5120, 2048, plain, 8), (64, true, 2));
        assert_eq!(tile(2048, 4096, plain, 32), (128, true, 1));
        assert_eq!(tile(2048, 4096, plain, 64), (64, false, 2));
        assert_eq!(tile(2048, 768, plain, 8), (128, false, 2));
        assert_eq!(tile(151_936, 2048, plain, 8), (128, false, 2));
        assert_eq!(tile(2048, 4096, LinearNumbers::Fp8Block128, 8), (128, false, 2));
    }

    #[test]
    fn large_tiles_wait_for_enough_rows() {
        assert_eq!(ProductTile::large_from(&shape(5120, 2048, LinearNumbers::Plain)), 129);
        assert_eq!(ProductTile::large_from(&shape(2048, 4096, LinearNumbers::Plain)), 385);
    }
}
