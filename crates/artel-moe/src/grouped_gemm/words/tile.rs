//! Sizes of layers and tiles.

use super::{WordCode, WordFormat};
#[cfg(feature = "cuda")]
use crate::MoeError;
use crate::activation::Gating;

/// Sizes of the experts of one layer, as this rank has them.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// What becomes of gate and up.
    pub gating: Gating,
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

    /// The tiles of the first and of the second product that were fastest for blocks of so many rows,
    /// of MiniMax-M2.5 on two H200s.
    pub fn fastest(code: WordCode, is_direct: bool, rows: usize) -> [Self; 2] {
        let tiles = match (code, is_direct, rows) {
            (WordCode::Int8Rows, true, _) => [[64, 4, 2], [128, 4, 2]],
            (WordCode::Int8Rows, false, 0..=32) => [[64, 4, 3], [128, 4, 2]],
            (WordCode::Int8 | WordCode::Int8Rows, _, 0..=64) => [[128, 4, 2]; 2],
            (WordCode::Int8 | WordCode::Int8Rows, ..) => [[128, 8, 1]; 2],
            (WordCode::Nvfp4, true, _) => [[64, 4, 3]; 2],
            (_, true, _) => [[64, 4, 4]; 2],
            (_, false, 0..=8) => [[128, 8, 3]; 2],
            (_, false, _) => [[64, 4, 4], [128, 8, 2]],
        };
        tiles.map(|tile| Self::new(rows, tile))
    }

    /// All tiles that are worth measuring for blocks of so many rows, of either product. Eight warps
    /// three times a multiprocessor are not for the direct form: the compiler divides registers among
    /// warps so that the last of a block wait for some that never come.
    pub fn candidates(format: WordFormat, is_direct: bool, rows: usize) -> Vec<Self> {
        let tiles: &[[usize; 3]] = match (format.number_bytes(), is_direct, rows) {
            (1, true, 0..=16) => &[[128, 4, 2], [128, 4, 3], [128, 4, 4], [64, 4, 2], [64, 4, 4]],
            (1, false, 0..=8) => &[[128, 4, 2], [128, 4, 3], [128, 4, 4], [64, 4, 3]],
            (1, _, 0..=32) => &[[128, 4, 2], [64, 4, 3], [128, 8, 1]],
            (1, _, 33..=64) => &[[128, 4, 2], [128, 8, 1]],
            (1, ..) => &[[128, 8, 1]],
            (_, true, 0..=16) => &[[64, 4, 4], [64, 4, 5], [64, 4, 3], [128, 4, 3]],
            (_, false, 0..=8) => &[[128, 8, 3], [64, 4, 5], [64, 4, 4], [64, 4, 6]],
            (_, _, 0..=16) => &[[64, 4, 4], [64, 4, 3], [128, 8, 2]],
            (..) => &[[64, 4, 3], [64, 4, 2]],
        };
        tiles.iter().map(|&tile| Self::new(rows, tile)).collect()
    }

    /// The same for weights that are widened for all rows of a block, the fastest first.
    pub fn widened(rows: usize) -> Vec<Self> {
        let tiles: &[[usize; 3]] = match rows {
            0..=16 => &[[128, 8, 2], [64, 4, 3]],
            17..=32 => &[[64, 4, 2], [128, 8, 1]],
            _ => &[[128, 8, 1], [64, 4, 2]],
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
