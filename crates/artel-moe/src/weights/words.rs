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

use std::ops::RangeInclusive;

use rayon::prelude::*;

use super::Stacked;
use crate::MoeError;
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::{BLOCK, ScaleGrid, Scales, WeightMatrix, e8m0_to_f32};

/// Largest exponent of a group of MXFP4: scales beyond leave what kernels hold them with.
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
            WordCode::Int8 | WordCode::Int8Rows => rows.for_each(|(words, row)| {
                bytemuck::cast_slice_mut::<u32, u8>(words)[..self.columns].copy_from_slice(row);
            }),
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
    /// `[parts]`: scales of the matrices, or the largest of their groups' scales (MXFP4).
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
mod tests {
    use super::*;
    use artel_device::HostBuffer;

    use crate::quant::{Fit, MatrixTensors, NumberFormat, e2m1_to_f32};
    use crate::quant::{Int4Matrix, Int4W4A16, Int8W8A8, Int8W8A16, Mxfp4, Mxfp4Matrix, Nvfp4};

    fn value(index: usize) -> f32 {
        ((index * 7919) % 1013) as f32 / 100.0 - 5.0
    }

    fn expert<F: NumberFormat>(rows: usize, columns: usize) -> Stacked<F::Matrix> {
        let part = |part: usize| {
            F::quantize(rows, columns, Fit::Weights, |row, out| {
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
        for lower in 0..16u8 {
            for upper in 0..16u8 {
                // Of two bytes the second has the codes the other way round.
                let pair = |first, second| u16::from_le_bytes([first, second]);
                let [first, second] = planes(pair(lower, upper), pair(upper, lower)).to_le_bytes();
                for (byte, lower, upper) in [(first, lower, upper), (second, upper, lower)] {
                    assert_eq!(e2m1_of(byte, false), e2m1_to_f32(lower), "{lower} {upper}");
                    assert_eq!(e2m1_of(byte, true), e2m1_to_f32(upper), "{lower} {upper}");
                }
            }
        }
    }

    fn words_of<M: WeightMatrix>(
        layout: &WordLayout,
        expert: &Stacked<M>,
    ) -> Result<ExpertWords, MoeError> {
        let mut words = ExpertWords::new(layout);
        layout.write_words(expert, &mut words)?;
        Ok(words)
    }

    /// The words as the head of this file describes them, one code and one scale at a time.
    fn described<M: WeightMatrix>(layout: &WordLayout, expert: &Stacked<M>) -> ExpertWords {
        let WordLayout { format: WordFormat { code, group }, rows, columns, .. } = *layout;
        let (mut codes, mut words) = (Vec::new(), ExpertWords::new(layout));
        codes.resize(4 * layout.words_per_expert(), 0u8);
        for (index, part) in expert.parts().iter().enumerate() {
            let row_bytes = (columns * M::NUMBER_BITS).div_ceil(8);
            for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |at| (row, at))) {
                let stored = part.numbers()[row * row_bytes + column * M::NUMBER_BITS / 8];
                let nibble = stored >> (4 * (column % 2)) & 15;
                let (plane, byte) = (column / 128 % 2, column / 256 * 128 + column % 128);
                let bits =
                    |code: u8, to: [u8; 4]| (0..4).map(|at| (code >> at & 1) << to[at]).sum();
                let (byte, value): (usize, u8) = match (code, plane) {
                    (WordCode::Int8 | WordCode::Int8Rows, _) => (column, stored),
                    (WordCode::Int4, _) => (byte, nibble << (4 * plane)),
                    (_, 0) => (byte, bits(nibble, [2, 3, 4, 7])),
                    (_, _) => (byte, bits(nibble, [0, 1, 6, 5])),
                };
                codes[4 * (index * rows + row) * layout.row_words() + byte] |= value;
            }
            let groups = if code == WordCode::Int8Rows { 1 } else { columns.div_ceil(group) };
            for (row, at) in (0..rows).flat_map(|row| (0..groups).map(move |at| (row, at))) {
                let per_word = layout.format.scales_per_word();
                let place = part.scale_grid().index(row, at * group, columns);
                let scale = match (part.scales(), part.zero_points()) {
                    (Scales::E8m0(all) | Scales::E4m3(all), _) => u32::from(all[place]),
                    (Scales::F32(all), None) if code != WordCode::Int4 => all[place].to_bits(),
                    (Scales::F32(all), zero_points) => {
                        let zero_point = zero_points.map_or(0, |all| i32::from(all[place] as i8));
                        (all[place].to_bits() + 0x80) / 256 * 256 + (zero_point + 8) as u32
                    }
                };
                let word = (index * layout.scale_words() + at / per_word) * rows + row;
                words.scales[word] |= scale << (8 * (at % per_word));
            }
            words.globals.push(match part.scales() {
                Scales::E8m0(all) => all.iter().map(|&code| e8m0_to_f32(code)).fold(0.0, f32::max),
                _ => part.global_scale().unwrap_or(1.0),
            });
        }
        words.codes = bytemuck::pod_collect_to_vec(&codes);
        words
    }

    #[test]
    fn words_are_as_described() {
        fn check<F: NumberFormat>(code: WordCode, group: usize) {
            for [rows, columns] in [[3, 768], [2, 131], [5, 700], [4, 256], [1, 129]] {
                let layout = layout(code, group, rows, columns);
                let expert = expert::<F>(rows, columns);
                // Another expert's words lie there before.
                let mut words = ExpertWords::new(&layout);
                words.codes.fill(match code {
                    WordCode::Int8 | WordCode::Int8Rows => 0,
                    _ => u32::MAX,
                });
                words.scales.fill(u32::MAX);
                layout.write_words(&expert, &mut words).unwrap();
                let expected = described(&layout, &expert);
                assert!(words == expected, "{code:?} in groups of {group}: {rows} x {columns}");
            }
        }
        check::<Int4W4A16>(WordCode::Int4, 128);
        check::<Int4W4A16>(WordCode::Int4, 32);
        check::<Mxfp4>(WordCode::Mxfp4, 32);
        check::<Nvfp4>(WordCode::Nvfp4, 16);
        check::<Int8W8A16>(WordCode::Int8, 128);
        check::<Int8W8A8>(WordCode::Int8Rows, 128);
    }

    #[test]
    fn what_lies_behind_an_odd_last_column_is_left_out() {
        let codes = HostBuffer::from_vec(vec![0xffu8; 66]);
        let scales = HostBuffer::from_vec(vec![1f32; 2]);
        let matrix = Int4Matrix::new(codes, scales, [1, 131], 128).unwrap();
        let expert = Stacked::new(vec![matrix]).unwrap();
        let layout = WordLayout { parts: 1, ..layout(WordCode::Int4, 128, 1, 131) };
        assert_eq!(words_of(&layout, &expert).unwrap(), described(&layout, &expert));
    }

    /// All numbers again, from the words alone.
    fn check<F: NumberFormat>(code: WordCode, group: usize, [rows, columns]: [usize; 2]) {
        let (expert, layout) = (expert::<F>(rows, columns), layout(code, group, rows, columns));
        let words = words_of(&layout, &expert).unwrap();
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
                            WordCode::Mxfp4 => e8m0_to_f32(scale),
                            _ => crate::quant::e4m3_to_f32(scale) * words.globals[part],
                        };
                        e2m1_of(byte, plane == 1) * scale
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
        let error = words_of(&coarse, &expert::<Mxfp4>(2, 256)).unwrap_err().to_string();
        assert!(error.contains("groups of a multiple of 128"), "{error}");
        assert!(words_of(&coarse, &expert::<Int4W4A16>(3, 256)).is_err());
        let zero_points = |byte: i8| {
            let buffer = |bytes: Vec<u8>| HostBuffer::from_vec(bytes);
            let scales = HostBuffer::from_vec(vec![1f32; 2]);
            let matrix = Int4Matrix::new(buffer(vec![0; 128]), scales, [2, 128], 128).unwrap();
            let tensors = MatrixTensors {
                numbers: buffer(vec![0; 128]),
                scales: HostBuffer::from_vec(vec![1f32; 2]),
                zero_points: Some(buffer(vec![0, byte as u8])),
                global_scale: None,
                input_scale: None,
            };
            let matrix = matrix.over(tensors).unwrap();
            let layout = WordLayout { parts: 1, ..layout(WordCode::Int4, 128, 2, 128) };
            words_of(&layout, &Stacked::new(vec![matrix]).unwrap())
        };
        assert!(zero_points(-9).unwrap_err().to_string().contains("-9"));
        assert!(zero_points(121).unwrap_err().to_string().contains("from -8 to 120"));
        assert!(zero_points(120).is_ok());
        // A step is two groups wide.
        assert_eq!(zero_points(3).unwrap().scales, [0x3f80_0008, 0x3f80_000b, 0, 0]);
    }

    #[test]
    fn scales_that_kernels_cannot_hold_are_refused() {
        let exponents = |exponent: u8| {
            let buffer = |byte: u8, count| HostBuffer::from_vec(vec![byte; count]);
            let matrix = Mxfp4Matrix::new(buffer(0x22, 128), buffer(exponent, 8), [2, 128]);
            let layout = WordLayout { parts: 1, ..layout(WordCode::Mxfp4, 32, 2, 128) };
            words_of(&layout, &Stacked::new(vec![matrix.unwrap()]).unwrap())
        };
        assert!(exponents(EXPONENT_MAX).is_ok());
        let error = exponents(EXPONENT_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("at most 2^65"), "{error}");
    }
}
