//! The inputs of a step as launches read them.

use artel_device::cuda::DeviceSlice;
use artel_layers::attention::cuda::SequenceSlices;
use artel_layers::attention::prefill::cuda::TileSlices;

use super::step::{CudaStep, StepLayout, StepSection};
use crate::Result;

/// Where a step finds its inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) step: CudaStep,
    pub(super) token_ids: DeviceSlice<'a, i32>,
    pub(super) unpadded_tokens: DeviceSlice<'a, i32>,
    pub(super) positions: DeviceSlice<'a, i32>,
    pub(super) slots: DeviceSlice<'a, i32>,
    pub(super) logits_rows: DeviceSlice<'a, i32>,
    pub(super) tiles: TileSlices<'a>,
    sequences: SequenceSlices<'a>,
}

impl<'a> Inputs<'a> {
    /// The inputs of `step` in `words`.
    pub(super) fn new(
        words: DeviceSlice<'a, i32>,
        layout: &StepLayout,
        step: CudaStep,
    ) -> Result<Self> {
        let part = |section, count| words.range(layout.section(section).start, count);
        let (stride, sequences) = (layout.table_stride(), step.sequences);
        Ok(Self {
            step,
            token_ids: part(StepSection::TokenIds, step.tokens)?,
            unpadded_tokens: part(StepSection::UnpaddedTokens, 1)?,
            positions: part(StepSection::Positions, step.tokens)?,
            slots: part(StepSection::Slots, step.tokens)?,
            logits_rows: part(StepSection::LogitsRows, step.logits_rows())?,
            tiles: TileSlices {
                first_rows: part(StepSection::FirstRows, sequences + 1)?,
                sequences: part(StepSection::TileSequences, step.tiles)?,
                rows: part(StepSection::TileRows, step.tiles)?,
            },
            sequences: SequenceSlices {
                tables: part(StepSection::BlockTables, sequences * stride)?,
                table_stride: stride,
                lengths: part(StepSection::Lengths, sequences)?,
                sequences,
            },
        })
    }

    /// All sequences: tiles know their numbers.
    pub(super) fn all(&self) -> SequenceSlices<'a> {
        self.sequences
    }

    /// The sequences that are decoded.
    pub(super) fn decoded(&self) -> SequenceSlices<'a> {
        SequenceSlices { sequences: self.step.decode, ..self.sequences }
    }
}
