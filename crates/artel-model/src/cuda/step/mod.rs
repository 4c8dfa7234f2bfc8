//! What a step reads, as 32-bit words in one buffer on the device.
//!
//! Launches that are recorded in a graph read their inputs where they lay when it was recorded, so
//! every input has its place for good: [`StepLayout`] says where. The host fills a copy of the words
//! and uploads as much of it as a step uses.
//!
//! Rows of a step are its new tokens: first those of sequences that bring one token, which are
//! *decoded*, one row each; then those of sequences that bring several. Decoded rows may be followed
//! by padding where there is nothing else.
//!
//! Example: sequences with 3, 1 and 1 new tokens are rows 2-4, 0 and 1: `decode` is 2, `tokens` 5.

#[cfg(test)]
mod tests;

use std::ops::Range;

use artel_layers::attention::BLOCK_TOKENS;
use artel_layers::attention::prefill::{TILE_ROWS, tiles};

use super::CudaLimits;
use crate::decoder::{LogitsOf, SequenceInput};
use crate::{ModelError, Result};

/// Words that sections begin at multiples of: pointers of kernels are 16-byte aligned.
const ALIGNMENT: usize = 4;

/// A part of the input of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepSection {
    /// Token of each row, `[tokens_max]`. First, so that the device may write them and the host the rest.
    TokenIds,
    /// One number: rows from this one on are padding.
    UnpaddedTokens,
    /// Position of each row, `[tokens_max]`.
    Positions,
    /// Where keys and values of each row go: `block * 16 + row of it`, -1 for padding, `[tokens_max]`.
    Slots,
    /// Keys of each sequence, new ones included, `[sequences_max]`.
    Lengths,
    /// First row of each sequence, and the end of the last, `[sequences_max + 1]`.
    FirstRows,
    /// Sequence of each tile of prefill attention.
    TileSequences,
    /// First row of each of these tiles.
    TileRows,
    /// Row of the step of each row of logits, `[logits_max]`.
    LogitsRows,
    /// Blocks of each sequence, `[sequences_max, table_stride]`. Last, as few words of it are used.
    BlockTables,
}

/// Sections, with the last.
const SECTIONS: usize = 10;

/// The rows whose logits a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogitsRows {
    /// All rows of the step, in order.
    Every,
    /// So many rows, listed in [`StepSection::LogitsRows`].
    Listed(usize),
}

/// The numbers of a step that its launches depend on. Equal steps are equal launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CudaStep {
    /// Rows, padding included.
    pub tokens: usize,
    /// Of these, the rows at the beginning that are decoded, padding included.
    pub decode: usize,
    /// Sequences, padding included; the first `decode` of them are decoded.
    pub sequences: usize,
    /// Tiles of prefill attention.
    pub tiles: usize,
    /// Rows of logits.
    pub logits: LogitsRows,
}

impl CudaStep {
    /// Rows of logits.
    pub fn logits_rows(&self) -> usize {
        match self.logits {
            LogitsRows::Every => self.tokens,
            LogitsRows::Listed(rows) => rows,
        }
    }

    /// A step that decodes one token of each of `rows` sequences: what graphs are recorded of.
    pub fn decode(rows: usize) -> Self {
        let logits = LogitsRows::Every;
        Self { tokens: rows, decode: rows, sequences: rows, tiles: 0, logits }
    }
}

/// Where the inputs of a step lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLayout {
    limits: CudaLimits,
    /// Beginning of each section, and the end of the last.
    starts: [usize; SECTIONS + 1],
}

impl StepLayout {
    /// The places for steps within `limits`.
    pub fn new(limits: &CudaLimits) -> Self {
        let CudaLimits { tokens_max, sequences_max, logits_max, .. } = *limits;
        let tiles_max = tokens_max.div_ceil(TILE_ROWS) + sequences_max;
        let tables = sequences_max * Self::stride_of(limits);
        let rows = [tokens_max, 1, tokens_max, tokens_max];
        let sequences = [sequences_max, sequences_max + 1, tiles_max, tiles_max];
        let lengths = rows.into_iter().chain(sequences).chain([logits_max, tables]);
        let mut starts = [0; SECTIONS + 1];
        for (section, length) in lengths.enumerate() {
            starts[section + 1] = starts[section] + length.next_multiple_of(ALIGNMENT);
        }
        Self { limits: *limits, starts }
    }

    fn stride_of(limits: &CudaLimits) -> usize {
        limits.context_max.div_ceil(BLOCK_TOKENS)
    }

    /// Blocks that a sequence has room for.
    pub fn table_stride(&self) -> usize {
        Self::stride_of(&self.limits)
    }

    /// All words.
    pub fn words(&self) -> usize {
        self.starts[SECTIONS]
    }

    /// The words of a section.
    pub fn section(&self, section: StepSection) -> Range<usize> {
        self.starts[section as usize]..self.starts[section as usize + 1]
    }

    /// The words that a step uses: all up to its last block table.
    pub fn used(&self, step: &CudaStep) -> Range<usize> {
        let tables = self.section(StepSection::BlockTables).start;
        0..tables + step.sequences * self.table_stride()
    }

    /// The words that a step uses which only decodes and lists no rows of logits; of each block table the
    /// first `columns`.
    pub fn decode_words(
        &self,
        step: &CudaStep,
        columns: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, stride) = (step.sequences, self.table_stride());
        let sections = [
            (StepSection::TokenIds, rows),
            (StepSection::UnpaddedTokens, 1),
            (StepSection::Positions, rows),
            (StepSection::Slots, rows),
            (StepSection::Lengths, rows),
            (StepSection::FirstRows, rows + 1),
        ];
        let tables = self.section(StepSection::BlockTables).start;
        let words = |(start, len): (usize, usize)| start..start + len;
        let sections = sections.map(|(section, len)| words((self.section(section).start, len)));
        sections
            .into_iter()
            .chain((0..rows).map(move |row| words((tables + row * stride, columns))))
    }

    /// Writes the new tokens of all sequences into `words`, and says which launches they need. A step
    /// that only decodes is padded to `decode_rows` rows, where that is more.
    ///
    /// Logits come in the order of the batch. Where every sequence is decoded and its logits wanted,
    /// row `i` of everything is sequence `i`.
    ///
    /// # Errors
    /// [`ModelError::ContextTooLong`] for a sequence beyond the limits, [`ModelError::ContextOverflow`]
    /// for one with too few blocks, [`ModelError::StepTooLarge`] for more tokens, sequences or logits.
    ///
    /// # Panics
    /// When `words` are fewer than [`words`](Self::words).
    pub fn write(
        &self,
        batch: &[SequenceInput<'_>],
        decode_rows: usize,
        words: &mut [i32],
    ) -> Result<CudaStep> {
        assert!(words.len() >= self.words(), "this is a bug: {} words for a step", words.len());
        for input in batch {
            self.check_sequence(input)?;
        }
        let (decoded, others): (Vec<usize>, Vec<usize>) =
            (0..batch.len()).partition(|&index| batch[index].tokens.len() == 1);
        let real = batch.iter().map(|input| input.tokens.len()).sum::<usize>();
        let padding = if others.is_empty() { decode_rows.saturating_sub(decoded.len()) } else { 0 };
        check("tokens", real + padding, self.limits.tokens_max)?;
        check("sequences", batch.len() + padding, self.limits.sequences_max)?;

        let mut first_rows = vec![0; batch.len()];
        let mut row = 0;
        for (sequence, &index) in decoded.iter().chain(&others).enumerate() {
            first_rows[index] = row;
            self.write_sequence(&batch[index], sequence, row, words);
            row += batch[index].tokens.len();
        }
        (0..padding).for_each(|rows| self.write_padding(row + rows, batch.len() + rows, words));
        let sequences = batch.len() + padding;
        words[self.section(StepSection::FirstRows).start + sequences] = (real + padding) as i32;
        words[self.section(StepSection::UnpaddedTokens).start] = real as i32;

        let decode = decoded.len() + padding;
        let lengths: Vec<usize> = others.iter().map(|&index| batch[index].tokens.len()).collect();
        let tiles = self.write_tiles(&lengths, decode, words);
        let logits = self.write_logits_rows(batch, &first_rows, [real, real + padding], words)?;
        Ok(CudaStep { tokens: real + padding, decode, sequences, tiles, logits })
    }

    /// Checks that there is room for a step.
    ///
    /// # Errors
    /// [`ModelError::StepTooLarge`].
    pub(super) fn check(&self, step: &CudaStep) -> Result<()> {
        let CudaLimits { tokens_max, sequences_max, logits_max, .. } = self.limits;
        check("tokens", step.tokens, tokens_max)?;
        check("sequences", step.sequences, sequences_max)?;
        check("decoded sequences", step.decode, step.sequences.min(step.tokens))?;
        check("tiles of attention", step.tiles, self.section(StepSection::TileRows).len())?;
        check("rows of logits", step.logits_rows(), logits_max)
    }

    fn check_sequence(&self, input: &SequenceInput<'_>) -> Result<()> {
        let needed = input.cached.saturating_add(input.tokens.len());
        if needed > self.limits.context_max {
            let available = self.limits.context_max;
            return Err(ModelError::ContextTooLong { asked: needed, available });
        }
        let held = input.blocks.len().saturating_mul(BLOCK_TOKENS);
        if needed > held {
            return Err(ModelError::ContextOverflow { needed, available: held });
        }
        Ok(())
    }

    fn write_sequence(
        &self,
        input: &SequenceInput<'_>,
        sequence: usize,
        first_row: usize,
        words: &mut [i32],
    ) {
        let start = |section| self.section(section).start;
        let length = input.cached + input.tokens.len();
        words[start(StepSection::FirstRows) + sequence] = first_row as i32;
        words[start(StepSection::Lengths) + sequence] = length as i32;
        let blocks = &input.blocks[..length.div_ceil(BLOCK_TOKENS)];
        let table = start(StepSection::BlockTables) + sequence * self.table_stride();
        for (place, &block) in words[table..].iter_mut().zip(blocks) {
            *place = block as i32;
        }
        for (index, &token) in input.tokens.iter().enumerate() {
            let (row, position) = (first_row + index, input.cached + index);
            let block = input.blocks[position / BLOCK_TOKENS] as usize;
            let slot = block * BLOCK_TOKENS + position % BLOCK_TOKENS;
            words[start(StepSection::TokenIds) + row] = i32::try_from(token).unwrap_or(-1);
            words[start(StepSection::Positions) + row] = position as i32;
            words[start(StepSection::Slots) + row] = slot as i32;
        }
    }

    /// A decoded row that reads nothing and is kept nowhere.
    fn write_padding(&self, row: usize, sequence: usize, words: &mut [i32]) {
        let padding = [
            (StepSection::TokenIds, row, 0),
            (StepSection::Positions, row, 0),
            (StepSection::Slots, row, -1),
            (StepSection::Lengths, sequence, 0),
            (StepSection::FirstRows, sequence, row as i32),
        ];
        for (section, index, word) in padding {
            words[self.section(section).start + index] = word;
        }
    }

    /// The tiles of sequences with so many new tokens each, which follow `decode` decoded ones.
    fn write_tiles(&self, lengths: &[usize], decode: usize, words: &mut [i32]) -> usize {
        let tiles = tiles(lengths);
        let sequences = self.section(StepSection::TileSequences).start;
        let rows = self.section(StepSection::TileRows).start;
        for (index, tile) in tiles.iter().enumerate() {
            words[sequences + index] = (decode + tile.sequence) as i32;
            words[rows + index] = (decode + tile.first_row) as i32;
        }
        tiles.len()
    }

    fn write_logits_rows(
        &self,
        batch: &[SequenceInput<'_>],
        first_rows: &[usize],
        [real, tokens]: [usize; 2],
        words: &mut [i32],
    ) -> Result<LogitsRows> {
        let rows_of = |(input, first): (&SequenceInput<'_>, &usize)| {
            let end = first + input.tokens.len();
            match input.logits_of {
                LogitsOf::Nothing => end..end,
                LogitsOf::LastToken => end.saturating_sub(1).max(*first)..end,
                LogitsOf::AllTokens => *first..end,
            }
        };
        let rows: Vec<usize> = batch.iter().zip(first_rows).flat_map(rows_of).collect();
        if rows.iter().copied().eq(0..real) {
            check("rows of logits", tokens, self.limits.logits_max)?;
            return Ok(LogitsRows::Every);
        }
        check("rows of logits", rows.len(), self.limits.logits_max)?;
        let start = self.section(StepSection::LogitsRows).start;
        for (place, &row) in words[start..].iter_mut().zip(&rows) {
            *place = row as i32;
        }
        Ok(LogitsRows::Listed(rows.len()))
    }
}

fn check(what: &'static str, found: usize, limit: usize) -> Result<()> {
    if found <= limit { Ok(()) } else { Err(ModelError::StepTooLarge { what, found, limit }) }
}
