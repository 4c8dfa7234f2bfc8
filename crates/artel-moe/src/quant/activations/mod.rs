//! Activations as FP8 e4m3 codes with float32 scales, chosen from the numbers themselves.
//!
//! `scale = max(largest magnitude, 1e-10) / 448`, and a code is the e4m3 number nearest to
//! `value / scale`, the quotient rounded to float32 first. Scales are shared by 128 columns of a
//! row or by the whole row, or one scale is given for everything ([`ScaleBounds`] or a kernel of its
//! own).
//!
//! Example: a row of 128 columns `[448, 224, -1, 0, …]` has the scale 1 and the codes of `448`,
//! `224`, `-1` and `0`.

#[cfg(feature = "cuda")]
pub mod codes {
    //! Making codes within a kernel.
    pub mod cuda;
}
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use super::reference::{LEAST_ACTIVATED, LEAST_MAGNITUDE};
use super::{BLOCK, E4M3_MAX};

/// What shares a scale that is chosen from the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// 128 columns of a row; the last group of a row may be narrower.
    Groups,
    /// A row.
    Rows,
}

/// What a scale may be: the one that the numbers ask for, brought between these.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleBounds {
    /// So that zeros have a scale.
    pub least: f32,
    /// Infinite unless the scale was measured beforehand.
    pub most: f32,
}

impl ScaleBounds {
    /// Of hidden states. max(x, 1e-10) / 448 is max(x / 448, 1e-10 / 448): division keeps the order.
    pub const HIDDEN: Self = Self { least: LEAST_MAGNITUDE / E4M3_MAX, most: f32::INFINITY };

    /// Of what an activation makes: at least 1 / (448 * 512).
    pub const ACTIVATED: Self = Self { least: LEAST_ACTIVATED / E4M3_MAX, most: f32::INFINITY };

    /// The scale that was measured beforehand, if there is one.
    pub fn or_given(self, scale: Option<f32>) -> Self {
        scale.map_or(self, |scale| Self { least: scale, most: scale })
    }
}

impl Granularity {
    /// What weights ask of rows of `columns` numbers when their own scales cover `scale_columns`.
    pub fn under(scale_columns: usize, columns: usize) -> Self {
        if scale_columns >= columns { Self::Rows } else { Self::Groups }
    }

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
