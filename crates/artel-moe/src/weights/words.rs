//! Weights in 32-bit words, as GPU kernels widen them.
//!
//! A row's columns are filled up with zeros to whole steps of 32 words. Words of four-bit codes hold
//! two planes of 128 columns: byte `b` of word `i` has column `4 i + b` of the step in its lower
//! plane and column `128 + 4 i + b` in its upper one. INT4 codes are the two halves of the byte. An
//! e2m1 number `s e e m` of the lower plane lies where e4m3 has those bits (7, 4, 3, 2), one of the
//! upper plane has its sign in bit 5, the first bit of its exponent in bit 6 and the others in bits 1
//! and 0, so that shifts by two bring them there. Integers of eight bits are bytes as they are.
//!
//! Scales lie in words, too, `[E, parts, groups, rows]`: a float32 scale whose lowest byte is the zero
//! point of its group plus 8 (INT4), a float32 scale (INT8), or four scales of neighbouring groups,
//! the first one lowest (FP4). Behind them stands one float32 scale for each part of each expert.

use rayon::prelude::*;

use super::Stacked;
use crate::MoeError;
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::{BLOCK, ScaleGrid, Scales, WeightMatrix};

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

    /// The words of one expert, the words of its scales, and the scale of each part.
    ///
    /// # Errors
    /// [`MoeError::Config`] for matrices of other sizes, whose scales are finer than the layout's, or
    /// whose zero points a byte does not hold.
    pub fn words_of<M: WeightMatrix>(&self, expert: &Stacked<M>) -> Result<ExpertWords, MoeError> {
        MoeError::check_shape("parts of an expert's matrix", self.parts, expert.parts().len())?;
        let mut all = ExpertWords {
            codes: vec![0; self.words_per_expert()],
            scales: vec![0; self.scales_per_expert()],
            globals: Vec::new(),
        };
        let codes = all.codes.chunks_mut((self.rows * self.row_words()).max(1));
        let scales = all.scales.chunks_mut((self.rows * self.scale_words()).max(1));
        for ((part, codes), scales) in expert.parts().iter().zip(codes).zip(scales) {
            MoeError::check_shape("rows of a part", self.rows, part.rows())?;
            MoeError::check_shape("columns of a part", self.columns, part.columns())?;
            self.write_codes(part, codes);
            self.write_scales(part, scales)?;
            all.globals.push(part.global_scale().unwrap_or(1.0));
        }
        Ok(all)
    }

    fn write_codes<M: WeightMatrix>(&self, part: &M, words: &mut [u32]) {
        let row_bytes = (self.columns * M::NUMBER_BITS).div_ceil(8).max(1);
        let rows =
            words.par_chunks_mut(self.row_words().max(1)).zip(part.numbers().par_chunks(row_bytes));
        match self.format.code {
            WordCode::Int8 | WordCode::Int8Rows => rows.for_each(|(words, row)| {
                bytemuck::cast_slice_mut::<u32, u8>(words)[..self.columns].copy_from_slice(row);
            }),
            code => rows.for_each(|(words, row)| {
                for (step, words) in words.chunks_mut(32).enumerate() {
                    let bytes = bytemuck::cast_slice_mut::<u32, u8>(words);
                    for (index, byte) in bytes.iter_mut().enumerate() {
                        let column = step * 2 * BLOCK + index;
                        let [lower, upper] =
                            [column, column + BLOCK].map(|at| self.nibble(row, at));
                        *byte = if code == WordCode::Int4 {
                            lower | upper << 4
                        } else {
                            planes(lower, upper)
                        };
                    }
                }
            }),
        }
    }

    /// The code of a column, zero behind the last.
    fn nibble(&self, row: &[u8], column: usize) -> u8 {
        if column < self.columns { row[column / 2] >> (column % 2 * 4) & 15 } else { 0 }
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
        let (scales, zero_points) = (part.scales(), part.zero_points());
        if zero_points.is_some() && !self.format.has_zero_points() {
            let allowed = "none in this format on a GPU";
            return Err(MoeError::config("zero points of weights", "some", allowed));
        }
        let per_word = self.format.scales_per_word();
        for (word, words) in words.chunks_mut(self.rows.max(1)).enumerate() {
            for (row, out) in words.iter_mut().enumerate() {
                for byte in 0..per_word {
                    let column = (word * per_word + byte) * group;
                    if column >= self.columns {
                        break;
                    }
                    let place = grid.index(row, column, self.columns);
                    *out |= match scales {
                        Scales::E8m0(all) => u32::from(all[place]) << (8 * byte),
                        Scales::E4m3(all) if all[place] < 0x80 => {
                            u32::from(all[place]) << (8 * byte)
                        }
                        Scales::E4m3(_) => {
                            let found = scales.get(place);
                            return Err(MoeError::config("scale of a group", found, "0 or more"));
                        }
                        Scales::F32(all) if self.format.has_zero_points() => {
                            let zero_point = zero_points.map_or(0, |all| all[place] as i8);
                            with_zero_point(all[place], zero_point)?
                        }
                        Scales::F32(all) => all[place].to_bits(),
                    };
                }
            }
        }
        Ok(())
    }
}

/// The words of one expert.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertWords {
    /// `[parts, rows, words of a row]`.
    pub codes: Vec<u32>,
    /// `[parts, words of scales, rows]`.
    pub scales: Vec<u32>,
    /// `[parts]`.
    pub globals: Vec<f32>,
}

/// Two e2m1 numbers in one byte.
fn planes(lower: u8, upper: u8) -> u8 {
    let lower = (lower & 8) << 4 | (lower & 7) << 2;
    let upper = (upper & 8) << 2 | (upper & 4) << 4 | upper & 3;
    lower | upper
}

/// A scale to 16 bits of mantissa, and what is taken off the codes 0 to 15 in its lowest byte.
fn with_zero_point(scale: f32, zero_point: i8) -> Result<u32, MoeError> {
    let code = i16::from(zero_point) + 8;
    let code = u8::try_from(code)
        .map_err(|_| MoeError::config("zero point of a group", zero_point, "-8 or more"))?;
    // Rounding up may carry into the exponent, which is then the nearest number, too.
    Ok((scale.to_bits() + 0x80) & !0xff | u32::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Int4W4A16, Mxfp4, NumberFormat, Nvfp4, e2m1_to_f32};

    fn value(index: usize) -> f32 {
        ((index * 7919) % 1013) as f32 / 100.0 - 5.0
    }

    fn expert<F: NumberFormat>(rows: usize, columns: usize) -> Stacked<F::Matrix> {
        let part = |part: usize| {
            F::quantize(rows, columns, |row, out| {
                let first = (part * rows + row) * columns;
                out.iter_mut().enumerate().for_each(|(at, out)| *out = value(first + at));
            })
        };
        Stacked::new(vec![part(0).unwrap(), part(1).unwrap()]).unwrap()
    }

    /// The number of a byte's plane, as kernels make it, times 2^6.
    fn e2m1_of(byte: u8, upper: bool) -> f32 {
        let code = match upper {
            false => byte & 0x9c,
            true => (byte & 0x23) << 2 | byte >> 2 & 0x10,
        };
        crate::quant::e4m3_to_f32(code) * 64.0
    }

    fn layout(code: WordCode, group: usize, rows: usize, columns: usize) -> WordLayout {
        WordLayout { format: WordFormat { code, group }, parts: 2, rows, columns }
    }

    #[test]
    fn bytes_of_two_planes_widen_to_the_numbers() {
        for lower in 0..16 {
            for upper in 0..16 {
                let byte = planes(lower, upper);
                assert_eq!(e2m1_of(byte, false), e2m1_to_f32(lower), "{lower} {upper}");
                assert_eq!(e2m1_of(byte, true), e2m1_to_f32(upper), "{lower} {upper}");
            }
        }
    }

    /// All numbers again, from the words alone.
    fn check<F: NumberFormat>(code: WordCode, group: usize, [rows, columns]: [usize; 2]) {
        let (expert, layout) = (expert::<F>(rows, columns), layout(code, group, rows, columns));
        let words = layout.words_of(&expert).unwrap();
        assert_eq!(layout.row_words() % 32, 0);
        let mut expected = vec![0.0; columns];
        for row in 0..2 * rows {
            expert.dequantize_row(row, &mut expected);
            let codes = &words.codes[row * layout.row_words()..(row + 1) * layout.row_words()];
            for column in 0..layout.format.padded(columns) {
                let (step, plane, index) = (column / 256, column / 128 % 2, column % 128);
                let byte = codes[step * 32 + index / 4].to_le_bytes()[index % 4];
                let place = column / group;
                let per_word = layout.format.scales_per_word();
                let (part, row_of_part) = (row / rows, row % rows);
                let word = (part * layout.scale_words() + place / per_word) * rows + row_of_part;
                let word = words.scales[word];
                let number = match code {
                    WordCode::Int4 => {
                        let code = f32::from(byte >> (4 * plane) & 15);
                        (code - (word & 255) as f32) * f32::from_bits(word & !255)
                    }
                    _ => {
                        let scale = word.to_le_bytes()[place % 4];
                        let scale = match code {
                            WordCode::Mxfp4 => crate::quant::e8m0_to_f32(scale),
                            _ => crate::quant::e4m3_to_f32(scale),
                        };
                        e2m1_of(byte, plane == 1) * scale * words.globals[part]
                    }
                };
                // Behind the last column activations are zero; codes are too, whatever they stand for.
                let Some(&expected) = expected.get(column) else {
                    let code = match code {
                        WordCode::Int4 => f32::from(byte >> (4 * plane) & 15),
                        _ => e2m1_of(byte, plane == 1),
                    };
                    assert_eq!(code, 0.0, "{row} {column}");
                    continue;
                };
                let limit = expected.abs() * 2e-5;
                assert!((number - expected).abs() <= limit, "{row} {column}: {number} {expected}");
            }
        }
    }

    #[test]
    fn words_hold_the_numbers_of_every_format() {
        for shape in [[3, 256], [4, 512], [2, 192], [1, 130]] {
            check::<Int4W4A16>(WordCode::Int4, 128, shape);
            check::<Int4W4A16>(WordCode::Int4, 32, shape);
            check::<Mxfp4>(WordCode::Mxfp4, 32, shape);
            check::<Nvfp4>(WordCode::Nvfp4, 16, shape);
        }
    }

    #[test]
    fn matrices_of_another_kind_are_refused() {
        let coarse = layout(WordCode::Int4, 128, 2, 256);
        let error = coarse.words_of(&expert::<Mxfp4>(2, 256)).unwrap_err().to_string();
        assert!(error.contains("groups of a multiple of 128"), "{error}");
        assert!(coarse.words_of(&expert::<Int4W4A16>(3, 256)).is_err());
        assert!(with_zero_point(1.0, -9).is_err());
        assert_eq!(with_zero_point(1.0, 3), Ok(0x3f80_000b));
    }
}
