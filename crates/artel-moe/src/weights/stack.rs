//! The experts of one product as one stack, which is how a device keeps them.
//!
//! Host memory holds an expert wherever its checkpoint has it, gate and up possibly apart. A device
//! wants one buffer of numbers `[E, N, K]` and one of float32 scales. [`StackLayout`] says how large
//! they are and what a scale covers; [`ExpertMatrices::write_numbers`] and
//! [`ExpertMatrices::write_scales`] fill them expert by expert, so that no second copy of all
//! weights is ever made.
//!
//! Example: gate and up `[192, 3072]` in FP8 blocks, cut from 1536 rows. The second part begins at
//! row 192 of the stack, which is inside a block of 128 rows, so each scale is repeated for 64 rows:
//! `scale_block` is `[64, 128]` and an expert has `6 * 24` scales.

use super::ExpertMatrices;
use super::words::WordLayout;
use crate::MoeError;
use crate::grouped_gemm::words::WordFormat;
use crate::quant::{BLOCK, NumberFormat, ScaleGrid, WeightMatrix};

/// Sizes of one product's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackLayout {
    /// `E`.
    pub experts: usize,
    /// Output features, `N`: gate and up together.
    pub rows: usize,
    /// Input features, `K`.
    pub columns: usize,
    /// Bytes of one stored number.
    pub number_bytes: usize,
    /// Rows and columns that one scale covers, `None` for plain numbers: the scale of number
    /// `[e, n, k]` is `[e, n / rows, k / columns]`. `[128, 128]` for FP8 in whole blocks, a power of
    /// two below 128 where parts or shards begin inside a block; `[1, K]` for a scale per channel;
    /// for a scale per tensor `[rows of a part, K]`.
    pub scale_block: Option<[usize; 2]>,
    /// Codes and scales as words, see [`words`](super::words); numbers have no bytes of their own then.
    pub words: Option<WordStack>,
}

/// How the words of one stack lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordStack {
    /// What they hold.
    pub format: WordFormat,
    /// Matrices of an expert that lie on top of each other.
    pub parts: usize,
}

impl StackLayout {
    /// Bytes of the numbers `[N, K]` of one expert.
    pub fn number_bytes_per_expert(&self) -> usize {
        match self.word_layout() {
            Some(layout) => 4 * layout.words_per_expert(),
            None => self.rows * self.columns * self.number_bytes,
        }
    }

    /// Sizes of an expert's words, where it is stored in such.
    pub fn word_layout(&self) -> Option<WordLayout> {
        let WordStack { format, parts } = self.words?;
        Some(WordLayout { format, parts, rows: self.rows / parts, columns: self.columns })
    }

    /// Shape of the scales, `[E, ceil(N / rows), ceil(K / columns)]` of `scale_block`.
    pub fn scale_shape(&self) -> [usize; 3] {
        match self.scale_block {
            None => [self.experts, 0, 0],
            Some([rows, columns]) => {
                [self.experts, self.rows.div_ceil(rows), self.columns.div_ceil(columns)]
            }
        }
    }

    /// Checks that `other` is the same stack, each scale perhaps repeated for smaller blocks.
    fn check_refined(&self, other: &Self) -> Result<(), MoeError> {
        let scales_fit = match (self.scale_block, other.scale_block) {
            (None, None) => true,
            (Some(own), Some(other)) => {
                own.iter().zip(other).all(|(own, other)| other > 0 && own % other == 0)
            }
            _ => false,
        };
        if scales_fit && *self == (Self { scale_block: self.scale_block, ..*other }) {
            return Ok(());
        }
        let allowed = format!("{self:?}, or scales of parts of its blocks");
        Err(MoeError::config("layout of weights", format!("{other:?}"), allowed))
    }

    /// Scales of one expert; of words with one for each of its parts.
    pub fn scales_per_expert(&self) -> usize {
        let [_, rows, columns] = self.scale_shape();
        let of_words = self.word_layout().map(|layout| layout.scales_per_expert() + layout.parts);
        of_words.unwrap_or(rows * columns)
    }
}

impl<F: NumberFormat> ExpertMatrices<F> {
    /// How all experts lie in one stack.
    pub fn stack_layout(&self) -> StackLayout {
        StackLayout {
            experts: self.experts(),
            rows: self.rows(),
            columns: self.columns(),
            number_bytes: F::Matrix::NUMBER_BITS.div_ceil(8),
            scale_block: self.scale_block(),
            words: None,
        }
    }

    /// The stored numbers of one expert: runs of bytes that follow each other in the stack.
    pub fn numbers(&self, expert: usize) -> impl Iterator<Item = &[u8]> {
        self.matrix(expert).parts().iter().map(WeightMatrix::numbers)
    }

    /// Copies the numbers `[N, K]` of one expert.
    ///
    /// # Errors
    /// [`MoeError`] for an expert that is not there, or when `out` does not have
    /// [`StackLayout::number_bytes_per_expert`] bytes.
    pub fn write_numbers(&self, expert: usize, mut out: &mut [u8]) -> Result<(), MoeError> {
        self.check_expert(expert)?;
        let bytes = self.stack_layout().number_bytes_per_expert();
        MoeError::check_shape("numbers of an expert (bytes)", bytes, out.len())?;
        for run in self.numbers(expert) {
            let (part, rest) = out.split_at_mut(run.len());
            part.copy_from_slice(run);
            out = rest;
        }
        Ok(())
    }

    /// Writes the scales of one expert as a stack of `layout` has them: of
    /// [`stack_layout`](Self::stack_layout), or of one whose scales cover less.
    ///
    /// # Errors
    /// [`MoeError`] for an expert that is not there, a layout that these matrices do not fit, or
    /// when `out` does not have [`StackLayout::scales_per_expert`] numbers.
    pub fn write_scales(
        &self,
        expert: usize,
        layout: &StackLayout,
        out: &mut [f32],
    ) -> Result<(), MoeError> {
        self.check_expert(expert)?;
        self.stack_layout().check_refined(layout)?;
        MoeError::check_shape("scales of an expert", layout.scales_per_expert(), out.len())?;
        let Some([scale_rows, scale_columns]) = layout.scale_block else {
            return Ok(());
        };
        let rows_of_scales = out.chunks_mut(layout.columns.div_ceil(scale_columns).max(1));
        for (index, out) in rows_of_scales.enumerate() {
            let (part, row) = self.matrix(expert).part_of_row(index * scale_rows);
            for (index, out) in out.iter_mut().enumerate() {
                let place = part.scale_grid().index(row, index * scale_columns, layout.columns);
                *out = part.scales().get(place);
            }
        }
        Ok(())
    }

    /// Largest rows and columns of which no two numbers have different scales.
    fn scale_block(&self) -> Option<[usize; 2]> {
        let (mut first_row, mut rows, mut columns) = (0, 0, self.columns().max(1));
        for part in self.matrix(0).parts() {
            // The stack's rows at which a part begins, and those at which its scales change.
            rows = greatest_common_divisor(rows, first_row);
            match part.scale_grid() {
                ScaleGrid::None => return None,
                ScaleGrid::Tensor => {}
                ScaleGrid::Channel => rows = 1,
                ScaleGrid::Groups { columns: group } => (rows, columns) = (1, group),
                ScaleGrid::Block { row_offset, column_offset } => {
                    rows = [BLOCK, row_offset].into_iter().fold(rows, greatest_common_divisor);
                    columns = greatest_common_divisor(BLOCK, column_offset);
                }
            }
            first_row += part.rows();
        }
        Some([if rows == 0 { first_row.max(1) } else { rows }, columns])
    }

    fn check_expert(&self, expert: usize) -> Result<(), MoeError> {
        let experts = self.experts();
        if expert < experts {
            return Ok(());
        }
        Err(MoeError::config("an expert of a stack", expert, format!("below {experts}")))
    }
}

/// Of `a` and 0 it is `a`.
fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
