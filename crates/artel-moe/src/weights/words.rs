//! Weights in 32-bit words, as GPU kernels widen them.
//!
//! A row's columns are filled up with zeros to whole steps of 32 words. Words of four-bit codes hold
//! two planes of 128 columns: byte `b` of word `i` has column `4 i + b` of the step in its lower
//! plane and column `128 + 4 i + b` in its upper one. INT4 codes are the two halves of the byte. An
//! e2m1 number `s e e m` of the lower plane lies where e4m3 has those bits (7, 4, 3, 2), one of the
//! upper plane has its sign in bit 5, the first bit of its exponent in bit 6 and the others in bits 1
//! and 0, so that shifts by two bring them there. Integers of eight bits and e4m3 numbers are bytes as they are.
//!
//! Scales lie in words, too, `[E, parts, groups, rows]`: a float32 scale whose lowest byte is the zero
//! point of its group plus 8 (INT4), a float32 scale (INT8), or four scales of neighbouring groups,
//! the first one lowest (FP4, MXFP8). Behind them stands one float32 scale for each part of each expert.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use super::Stacked;
use crate::MoeError;
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::{BLOCK, ScaleGrid, Scales, WeightMatrix, e8m0_to_f32};

/// Largest exponent of a group of MXFP4 and MXFP8: scales beyond leave what kernels hold them with.
const EXPONENT_MAX: u8 = 192;
/// Zero points that kernels take off exactly.
const ZERO_POINTS: RangeInclusive<i8> = -8..=120;

/// Sizes of the matrices of one product in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordLayout {
    /// What words hold.
    pub format: WordFormat,
    /// Matrices of an expert that lie on top of each other: gate and up, or one.
    pub parts: usize,
    /// Output features of a part.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
}

impl WordLayout {
    /// Words of a row.
    pub fn row_words(&self) -> usize {
        self.format.padded(self.columns) / self.format.columns_per_word()
    }

    /// Words of scales of one row of a part.
    pub fn scale_words(&self) -> usize {
        match self.format.code {
            WordCode::Int8Rows => 1,
            _ => self.format.padded(self.columns) / BLOCK * self.format.scale_words_per_plane(),
        }
    }

    /// Words of codes of an expert.
    pub fn words_per_expert(&self) -> usize {
        self.parts * self.rows * self.row_words()
    }

    /// Words of scales of an expert, without those of its parts.
    pub fn scales_per_expert(&self) -> usize {
        self.parts * self.rows * self.scale_words()
    }

    /// Writes the words of one expert, the words of its scales, and the scale of each part to `out`,
    /// which was [made](ExpertWords::new) for this layout and may hold another expert's.
    ///
    /// # Errors
    /// [`MoeError::Config`] for matrices of other sizes, whose scales are finer than the layout's, or
    /// whose scales or zero points kernels do not take; what `out` holds then means nothing.
    pub fn write_words<M: WeightMatrix>(
        &self,
        expert: &Stacked<M>,
        out: &mut ExpertWords,
    ) -> Result<(), MoeError> {
        MoeError::check_shape("parts of an expert's matrix", self.parts, expert.parts().len())?;
        MoeError::check_shape("words of an expert", self.words_per_expert(), out.codes.len())?;
        MoeError::check_shape("scales of an expert", self.scales_per_expert(), out.scales.len())?;
        out.globals.clear();
        let codes = out.codes.chunks_mut((self.rows * self.row_words()).max(1));
        let scales = out.scales.chunks_mut((self.rows * self.scale_words()).max(1));
        for ((part, codes), scales) in expert.parts().iter().zip(codes).zip(scales) {
            MoeError::check_shape("rows of a part", self.rows, part.rows())?;
            MoeError::check_shape("columns of a part", self.columns, part.columns())?;
            self.write_codes(part, codes);
            self.write_scales(part, scales)?;
            out.globals.push(match part.scales() {
                Scales::E8m0(all) => e8m0_to_f32(all.iter().copied().max().unwrap_or(0)),
                _ => part.global_scale().unwrap_or(1.0),
            });
        }
        Ok(())
    }

    fn write_codes<M: WeightMatrix>(&self, part: &M, words: &mut [u32]) {
        let row_bytes = (self.columns * M::NUMBER_BITS).div_ceil(8).max(1);
        let rows =
            words.par_chunks_mut(self.row_words().max(1)).zip(part.numbers().par_chunks(row_bytes));
        match self.format.code {
            WordCode::Int8 | WordCode::Int8Rows | WordCode::Mxfp8 => {
                rows.for_each(|(words, row)| {
                    bytemuck::cast_slice_mut::<u32, u8>(words)[..self.columns].copy_from_slice(row);
                })
            }
            WordCode::Int4 => rows.for_each(|(words, row)| {
                self.write_planes(row, words, |lower, upper| lower | upper << 4);
            }),
            WordCode::Mxfp4 | WordCode::Nvfp4 => {
                rows.for_each(|(words, row)| self.write_planes(row, words, planes));
            }
        }
    }

    /// Both planes of every step of a row. `join` brings together two codes of each plane, one a
    /// byte: two at a time are simple enough to become vectors.
    fn write_planes(&self, row: &[u8], words: &mut [u32], join: impl Fn(u16, u16) -> u16) {
        for (words, codes) in words.chunks_mut(32).zip(row.chunks(BLOCK)) {
            let mut filled = [0; BLOCK];
            let codes = if codes.len() == BLOCK {
                codes
            } else {
                filled[..codes.len()].copy_from_slice(codes);
                if !self.columns.is_multiple_of(2) {
                    // Behind the last column is whatever the checkpoint has there.
                    filled[codes.len() - 1] &= 15;
                }
                &filled
            };
            let (lower, upper) = codes.split_at(BLOCK / 2);
            let pairs = bytemuck::cast_slice_mut::<u32, u16>(words);
            for ((pair, &lower), &upper) in pairs.iter_mut().zip(lower).zip(upper) {
                *pair = join(spread(lower), spread(upper)).to_le();
            }
        }
    }

    fn write_scales<M: WeightMatrix>(&self, part: &M, words: &mut [u32]) -> Result<(), MoeError> {
        let grid = part.scale_grid();
        let group = match (grid, self.format.code) {
            (ScaleGrid::Channel, WordCode::Int8Rows) => self.columns.max(1),
            (ScaleGrid::Groups { columns }, _) if columns % self.format.group == 0 => {
                self.format.group
            }
            _ => {
                let allowed = format!("groups of a multiple of {} columns", self.format.group);
                return Err(MoeError::config("scales of weights", format!("{grid:?}"), allowed));
            }
        };
        match (part.scales(), self.zero_points(part)?) {
            (Scales::E8m0(all), _) => {
                if let Some(place) = all.iter().position(|&code| code > EXPONENT_MAX) {
                    let found = part.scales().get(place);
                    return Err(MoeError::config("scale of a group", found, "at most 2^65"));
                }
                self.fill_scales(grid, group, words, |place| u32::from(all[place]));
            }
            (Scales::E4m3(all), _) => {
                if let Some(place) = all.iter().position(|&code| code >= 0x80) {
                    let found = part.scales().get(place);
                    return Err(MoeError::config("scale of a group", found, "0 or more"));
                }
                self.fill_scales(grid, group, words, |place| u32::from(all[place]));
            }
            (Scales::F32(all), Some(zero_points)) => {
                let zero_point =
                    |place: usize| zero_points.get(place).map_or(0, |&byte| byte as i8);
                let word = |place| with_zero_point(all[place], zero_point(place));
                self.fill_scales(grid, group, words, word);
            }
            (Scales::F32(all), None) => {
                self.fill_scales(grid, group, words, |place| all[place].to_bits());
            }
        }
        Ok(())
    }

    /// The zero points of a matrix, empty where all are zero; `None` for a format without such.
    fn zero_points<'a, M: WeightMatrix>(&self, part: &'a M) -> Result<Option<&'a [u8]>, MoeError> {
        let zero_points = part.zero_points();
        if !self.format.has_zero_points() {
            let allowed = "none in this format on a GPU";
            return match zero_points {
                None => Ok(None),
                Some(_) => Err(MoeError::config("zero points of weights", "some", allowed)),
            };
        }
        let zero_points = zero_points.unwrap_or_default();
        let mut all = zero_points.iter().map(|&byte| byte as i8);
        match all.find(|zero_point| !ZERO_POINTS.contains(zero_point)) {
            None => Ok(Some(zero_points)),
            Some(found) => {
                let allowed = format!("from {} to {}", ZERO_POINTS.start(), ZERO_POINTS.end());
                Err(MoeError::config("zero point of a group", found, allowed))
            }
        }
    }

    /// Words of scales, `[words, rows]`, of what stands at a place of the matrix's scales.
    fn fill_scales(
        &self,
        grid: ScaleGrid,
        group: usize,
        words: &mut [u32],
        scale: impl Fn(usize) -> u32 + Sync,
    ) {
        let per_word = self.format.scales_per_word();
        let next_row = grid.index(1, 0, self.columns);
        words.par_chunks_mut(self.rows.max(1)).enumerate().for_each(|(word, words)| {
            let columns = (word * per_word..(word + 1) * per_word).map(|index| index * group);
            let columns = columns.filter(|&column| column < self.columns);
            let of_first_row: Vec<usize> =
                columns.map(|column| grid.index(0, column, self.columns)).collect();
            for (row, word) in words.iter_mut().enumerate() {
                let of_row = of_first_row.iter().map(|place| place + row * next_row);
                *word = of_row.enumerate().map(|(byte, place)| scale(place) << (8 * byte)).sum();
            }
        });
    }
}

/// The words of one expert.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertWords {
    /// `[parts, rows, words of a row]`.
    pub codes: Vec<u32>,
    /// `[parts, words of scales, rows]`.
    pub scales: Vec<u32>,
    /// `[parts]`: scales of the matrices, or the largest of their groups' scales (MXFP4, MXFP8).
    pub globals: Vec<f32>,
}

impl ExpertWords {
    /// Zeros, to be written for one expert after the other.
    pub fn new(layout: &WordLayout) -> Self {
        Self {
            codes: vec![0; layout.words_per_expert()],
            scales: vec![0; layout.scales_per_expert()],
            globals: Vec::with_capacity(layout.parts),
        }
    }
}

/// The two codes of a byte, each in a byte of its own.
fn spread(codes: u8) -> u16 {
    let codes = u16::from(codes);
    (codes | codes << 4) & 0x0f0f
}

/// An e2m1 number of each plane in one byte, for both bytes.
fn planes(lower: u16, upper: u16) -> u16 {
    let lower = (lower & 0x0808) << 4 | (lower & 0x0707) << 2;
    let upper = (upper & 0x0808) << 2 | (upper & 0x0404) << 4 | upper & 0x0303;
    lower | upper
}

/// A scale to 16 bits of mantissa, and what is taken off the codes 0 to 15 in its lowest byte. The
/// zero point is one of [`ZERO_POINTS`].
fn with_zero_point(scale: f32, zero_point: i8) -> u32 {
    let code = (i32::from(zero_point) + 8) as u32;
    // Rounding up may carry into the exponent, which is then the nearest number, too.
    (scale.to_bits() + 0x80) & !0xff | code
}

#[cfg(test)]
mod tests;
