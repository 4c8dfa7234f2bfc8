//! The copies and the launch.

use artel_device::cuda::{PinnedBuffer, Stream, TableColumns};
use artel_layers::exchange::Piece;
use artel_layers::exchange::cuda::Exchange;
use artel_model::cuda::{CudaModel, CudaStep, StepSection};
use artel_model::{BLOCK_TOKENS, SequenceInput};

use super::super::sampling::{DeviceSampling, Rows};
use super::super::slot::Slot;
use crate::Result;

/// What a step uses of its slot.
pub(in crate::cuda) struct Words<'a> {
    pub(in crate::cuda) step: &'a CudaStep,
    /// Most blocks of a sequence.
    pub(in crate::cuda) blocks: usize,
    pub(in crate::cuda) rows: &'a Rows,
}

/// Most blocks that one of the sequences of a step has in use.
pub(in crate::cuda) fn blocks(batch: &[SequenceInput<'_>]) -> usize {
    let length = |input: &SequenceInput<'_>| input.cached + input.tokens.len();
    batch.iter().map(|input| length(input).div_ceil(BLOCK_TOKENS)).max().unwrap_or(0)
}

impl Words<'_> {
    /// Begins to copy them. They stay as they are until the step is collected.
    pub(in crate::cuda) fn copy(
        &self,
        stream: &Stream,
        slot: &Slot,
        (model, sampling): (&mut CudaModel, &mut DeviceSampling),
    ) -> Result<()> {
        copy_inputs(stream, model, &slot.inputs, (self.step, self.blocks))?;
        let used = sampling.words_used(self.rows);
        let (mut words, _) = sampling.words_mut();
        // SAFETY: the slot's words stay as they are until the step is collected.
        unsafe { slot.sampling.write_to(stream, used, &mut words) }?;
        self.copy_masks(stream, slot, sampling)
    }

    /// The same for a step that only decodes, by a kernel that reads only what such a step uses.
    pub(in crate::cuda) fn bring(
        &self,
        stream: &Stream,
        exchange: &Exchange,
        slot: &mut Slot,
        (model, sampling): (&mut CudaModel, &mut DeviceSampling),
    ) -> Result<()> {
        let used = sampling.words_used(self.rows);
        let inputs = model.layout().decode_words(self.step, self.blocks);
        let of_inputs =
            inputs.map(|words| Piece { buffer: 0, start: words.start, len: words.len() });
        slot.pieces.set(of_inputs.chain([Piece { buffer: 1, start: 0, len: used }]))?;
        let mut inputs = model.buffers()?.inputs;
        let (mut words, _) = sampling.words_mut();
        let (from, to) = ([&slot.inputs, &slot.sampling], [&mut inputs, &mut words]);
        // SAFETY: the slot's words stay as they are until the step is collected.
        unsafe { exchange.bring(stream, &slot.pieces, from, to) }?;
        self.copy_masks(stream, slot, sampling)
    }

    fn copy_masks(
        &self,
        stream: &Stream,
        slot: &Slot,
        sampling: &mut DeviceSampling,
    ) -> Result<()> {
        let used = sampling.masks_used(self.rows);
        if used == 0 {
            return Ok(());
        }
        let (_, mut masks) = sampling.words_mut();
        // SAFETY: as above.
        Ok(unsafe { slot.masks.write_to(stream, used, &mut masks) }?)
    }
}

/// Begins to copy the inputs of a step: of the block tables only the columns in use, as tables have room for
/// the longest sequences. The words stay as they are until that has happened.
pub(in crate::cuda) fn copy_inputs(
    stream: &Stream,
    model: &mut CudaModel,
    words: &PinnedBuffer<i32>,
    (step, blocks): (&CudaStep, usize),
) -> Result<()> {
    let layout = model.layout();
    let table = TableColumns {
        start: layout.section(StepSection::BlockTables).start,
        rows: step.sequences,
        stride: layout.table_stride(),
        columns: blocks,
    };
    let mut target = model.buffers()?.inputs;
    // SAFETY: the caller waits for the step before it changes the words.
    unsafe { words.write_to(stream, table.start, &mut target) }?;
    // SAFETY: as above.
    Ok(unsafe { words.write_columns_to(stream, table, &mut target) }?)
}
