//! What a step needs on the host from its launch until it is collected.

use artel_device::cuda::{Context, Event, PinnedBuffer};
use artel_layers::LayersError;
use artel_layers::exchange::cuda::Pieces;
use artel_layers::sample::TokenLogprobs;
use artel_model::cuda::StepLayout;
use half::bf16;
use rayon::prelude::*;

use super::sampling::SamplingLayout;
use crate::Result;
use crate::cpu::choose;
use crate::runner::{SequenceOutput, SequenceStep};

/// Pieces of a step that only decodes, beside its block tables.
const PIECES: usize = 8;

/// Page-locked memory of one step, and what is done with what comes back.
pub(super) struct Slot {
    /// [`StepLayout`].
    pub(super) inputs: PinnedBuffer<i32>,
    /// Which words of both a step that only decodes uses.
    pub(super) pieces: Pieces,
    /// [`SamplingLayout`].
    pub(super) sampling: PinnedBuffer<i32>,
    /// Masks of rows that have one.
    pub(super) masks: PinnedBuffer<i32>,
    /// Chosen tokens, one a row of logits; -1: none could be chosen.
    pub(super) chosen: PinnedBuffer<i32>,
    /// Natural logarithms of their probabilities.
    pub(super) logprobs: PinnedBuffer<f32>,
    /// `[logits_max, V]`, where somebody wants to see them.
    pub(super) logits: PinnedBuffer<bf16>,
    /// Happens when all of that is there.
    pub(super) done: Event,
    /// One entry a sequence; `None` where nothing was chosen.
    pub(super) readouts: Vec<Option<Readout>>,
    /// New tokens of the step.
    pub(super) tokens: usize,
    /// Steps that the counters of experts were read after, where they were.
    pub(super) counted: Option<u64>,
    vocabulary: usize,
}

/// What a sequence is told of its row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readout {
    pub(super) row: usize,
    /// How many of the most probable tokens.
    pub(super) top: usize,
}

impl Slot {
    pub(super) fn new(
        context: &Context,
        inputs: &StepLayout,
        sampling: &SamplingLayout,
        (logits_max, vocabulary): (usize, usize),
    ) -> Result<Self> {
        let rows = sampling.rows_max();
        Ok(Self {
            inputs: PinnedBuffer::zeroed(context, inputs.words())?,
            pieces: Pieces::new(context, PIECES + sampling.rows_max())?,
            sampling: PinnedBuffer::zeroed(context, sampling.words_max())?,
            masks: PinnedBuffer::zeroed(context, sampling.masks_max())?,
            chosen: PinnedBuffer::zeroed(context, rows)?,
            logprobs: PinnedBuffer::zeroed(context, rows)?,
            logits: PinnedBuffer::zeroed(context, logits_max * vocabulary)?,
            done: Event::new(context)?,
            readouts: Vec::with_capacity(rows),
            tokens: 0,
            counted: None,
            vocabulary,
        })
    }

    /// What the device chose.
    pub(super) fn outputs(&self) -> Vec<SequenceOutput> {
        let has_tops = self.readouts.iter().flatten().any(|readout| readout.top > 0);
        let output = |readout: &Option<Readout>| self.output(*readout);
        match has_tops {
            true => self.readouts.par_iter().map(output).collect(),
            false => self.readouts.iter().map(output).collect(),
        }
    }

    /// The same where `is_for_the_host` does not hold; for others the host chooses now.
    pub(super) fn outputs_chosen_here(
        &self,
        batch: &[SequenceStep<'_>],
        is_for_the_host: impl Fn(&SequenceStep<'_>) -> bool + Sync,
    ) -> Vec<SequenceOutput> {
        let parts = batch.par_iter().zip(&self.readouts);
        let output = |(step, readout): (&SequenceStep<'_>, &Option<Readout>)| {
            let (Some(choice), Some(own), true) = (step.choice, readout, is_for_the_host(step))
            else {
                return self.output(*readout);
            };
            let chosen = Some(choose(choice, &mut self.logits_of(own.row)));
            SequenceOutput { chosen, prompt: Vec::new() }
        };
        parts.map(output).collect()
    }

    fn output(&self, readout: Option<Readout>) -> SequenceOutput {
        let chosen = readout.map(|readout| self.chosen(readout));
        SequenceOutput { chosen, prompt: Vec::new() }
    }

    fn chosen(&self, Readout { row, top }: Readout) -> std::result::Result<TokenLogprobs, String> {
        let Ok(id) = u32::try_from(self.chosen.as_slice()[row]) else {
            return Err(LayersError::NoCandidate { vocabulary: self.vocabulary }.to_string());
        };
        let top = match top {
            0 => Vec::new(),
            count => TokenLogprobs::new(&self.logits_of(row), id, count).top,
        };
        Ok(TokenLogprobs { id, logprob: self.logprobs.as_slice()[row], top })
    }

    fn logits_of(&self, row: usize) -> Vec<f32> {
        let logits = &self.logits.as_slice()[row * self.vocabulary..][..self.vocabulary];
        logits.iter().copied().map(bf16::to_f32).collect()
    }
}
