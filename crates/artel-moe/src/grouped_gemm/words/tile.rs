//! Sizes of layers and tiles.

use super::WordFormat;
#[cfg(feature = "cuda")]
use crate::MoeError;

/// Sizes of the experts of one layer, as this rank has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordShape {
    /// `E`.
    pub experts: usize,
    /// `K` of a token.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// `I`.
    pub intermediate_size: usize,
    /// Of `w13` and of `w2`.
    pub formats: [WordFormat; 2],
}

/// Sizes of the work of one block of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordTile {
    /// Rows of activations: of the direct form at least the tokens, of the aligned form its blocks.
    pub rows: usize,
    /// Weight rows; of the first product half of them gate, half of them up.
    pub columns: usize,
    /// Warps that compute, 4 or 8.
    pub warps: usize,
    /// Blocks that are to share a multiprocessor.
    pub occupancy: usize,
}

impl WordTile {
    const fn new(rows: usize, [columns, warps, occupancy]: [usize; 3]) -> Self {
        Self { rows, columns, warps, occupancy }
    }

    /// The tile that was fastest for blocks of so many rows, for either product.
    pub fn fastest(is_direct: bool, rows: usize) -> Self {
        let tile = match (is_direct, rows) {
            (true, _) | (false, 9..=16) => [64, 4, 4],
            (false, 0..=8) => [128, 8, 3],
            (false, 17..=32) => [64, 4, 3],
            (false, _) => [128, 8, 1],
        };
        Self::new(rows, tile)
    }

    /// All tiles that are worth measuring for blocks of so many rows, of either product. Eight warps
    /// three times a multiprocessor are not for the direct form: the compiler divides registers among
    /// warps so that the last of a block wait for some that never come.
    pub fn candidates(is_direct: bool, rows: usize) -> Vec<Self> {
        let tiles: &[[usize; 3]] = match (is_direct, rows) {
            (true, 0..=16) => &[[64, 4, 4], [64, 4, 3], [128, 4, 3]],
            (true, _) => &[[64, 4, 3], [64, 4, 2]],
            (false, 0..=8) => &[[128, 8, 3], [64, 4, 6], [64, 4, 4], [128, 4, 3]],
            (false, 9..=16) => &[[64, 4, 4], [128, 8, 2], [64, 4, 3]],
            (false, 17..=32) => &[[64, 4, 3], [128, 8, 2], [128, 8, 1]],
            (false, _) => &[[128, 8, 1], [64, 4, 2]],
        };
        tiles.iter().map(|&tile| Self::new(rows, tile)).collect()
    }

    /// Checks what a kernel needs of its tile.
    #[cfg(feature = "cuda")]
    pub(super) fn check(&self) -> Result<(), MoeError> {
        let Self { rows, columns, warps, occupancy } = *self;
        let powers = rows.is_power_of_two() && columns.is_power_of_two();
        if powers && rows >= 8 && columns >= 64 && matches!(warps, 4 | 8) && occupancy > 0 {
            return Ok(());
        }
        let allowed = "powers of two, at least 8 rows and 64 columns, 4 or 8 warps";
        Err(MoeError::config("a tile of weights in words", format!("{self:?}"), allowed))
    }
}
