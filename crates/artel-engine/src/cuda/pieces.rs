//! Steps in which the probabilities of a prompt are wanted: its tokens go through the model in
//! pieces with as many rows of logits as there is room for, and the host reads them.

use artel_layers::sample::TokenLogprobs;
use artel_model::{LogitsOf, SequenceInput};

use super::CudaRunner;
use crate::Result;
use crate::cpu::choose;
use crate::runner::{PromptTargets, SequenceOutput, SequenceStep};

impl CudaRunner {
    /// Computes a step and waits for it.
    pub(super) fn run_in_pieces(
        &mut self,
        batch: &[SequenceStep<'_>],
    ) -> Result<Vec<SequenceOutput>> {
        // The others come first: what they go on with was chosen by the step before.
        let others: Vec<SequenceStep<'_>> =
            batch.iter().filter(|step| step.prompt.is_none()).copied().collect();
        let mut others = match others.is_empty() {
            true => Vec::new(),
            false => self.run_and_wait(&others)?,
        }
        .into_iter();
        let mut outputs = Vec::with_capacity(batch.len());
        for step in batch {
            outputs.push(match step.prompt {
                Some(wanted) => self.judge(step, wanted)?,
                None => others.next().expect("this is a bug: outputs of a part of a step"),
            });
        }
        Ok(outputs)
    }

    /// One sequence whose prompt is looked at.
    fn judge(
        &mut self,
        step: &SequenceStep<'_>,
        wanted: PromptTargets<'_>,
    ) -> Result<SequenceOutput> {
        let vocabulary = self.info.vocabulary;
        let mut output = SequenceOutput::default();
        let mut targets = wanted.targets.iter();
        let rows = self.model.limits().logits_max;
        let (mut cached, mut last) = (step.cached, Vec::new());
        for tokens in step.tokens.chunks(rows) {
            let logits_of = LogitsOf::AllTokens;
            let input = SequenceInput { blocks: step.blocks, cached, tokens, logits_of };
            let logits = self.logits_of(input)?;
            let rows = logits.chunks_exact(vocabulary).zip(targets.by_ref());
            output
                .prompt
                .extend(rows.map(|(row, &id)| TokenLogprobs::new(row, id, wanted.logprobs)));
            cached += tokens.len();
            last = logits;
        }
        let start = last.len() - vocabulary.min(last.len());
        output.chosen = step.choice.map(|choice| choose(choice, &mut last[start..]));
        Ok(output)
    }
}
