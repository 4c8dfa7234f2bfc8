//! Activations as FP8 e4m3 codes with float32 scales, chosen from the numbers themselves.
//!
//! `scale = max(largest magnitude, 1e-10) / 448`, and a code is the e4m3 number nearest to
//! `value / scale`, the quotient rounded to float32 first. Scales are shared by 128 columns of a
//! row or by the whole row, or one scale is given for everything.
//!
//! Example: a row of 128 columns `[448, 224, -1, 0, …]` has the scale 1 and the codes of `448`,
//! `224`, `-1` and `0`.

#[cfg(feature = "cuda")]
pub(crate) mod codes {
    pub mod cuda;
}
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use super::BLOCK;

/// What shares a scale that is chosen from the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// 128 columns of a row; the last group of a row may be narrower.
    Groups,
    /// A row.
    Rows,
}

impl Granularity {
    /// Scales of a row of `columns` numbers.
    pub fn groups(self, columns: usize) -> usize {
        match self {
            Self::Groups => columns.div_ceil(BLOCK),
            Self::Rows => 1,
        }
    }

    /// Columns that share a scale in a row of `columns` numbers.
    pub fn width(self, columns: usize) -> usize {
        match self {
            Self::Groups => BLOCK,
            Self::Rows => columns,
        }
    }
}
