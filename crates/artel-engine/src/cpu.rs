//! The runner of the host's processor.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use artel_layers::sample::TokenLogprobs;
use artel_model::{KvCache, LogitsOf, Model, ModelError, SequenceInput, Workspace};
use artel_moe::MoeError;
use artel_moe::eplb::trace::TraceWriter;
use rayon::prelude::*;

use crate::runner::{
    Choice, Launched, RunReport, Runner, RunnerInfo, SequenceOutput, SequenceStep,
};
use crate::{EngineError, ExpertRanks, Result};

/// Logits from which on tokens are chosen on all cores. Below, waking them up takes longer.
const LOGITS_FOR_ALL_CORES: usize = 1 << 17;

/// Runs a model on the host.
pub struct CpuRunner {
    model: Arc<Model>,
    workspace: Workspace,
    cache: KvCache,
    /// How batches of up to so many tokens are served, in the order of the plan.
    paths: Vec<(usize, String)>,
    /// Tokens of the latest step.
    tokens: usize,
    /// Steps that were computed.
    steps: u64,
    ranks: Option<ExpertRanks>,
    trace: Option<TraceWriter<File>>,
}

impl CpuRunner {
    /// A runner of `model`.
    pub fn new(model: Arc<Model>) -> Self {
        let entries = model.moe_plan().map(|plan| plan.entries()).unwrap_or_default();
        let paths = entries.iter().map(|entry| (entry.tokens_max, entry.path())).collect();
        let (workspace, cache) = (model.new_workspace(), model.new_cache(0));
        Self { model, workspace, cache, paths, tokens: 0, steps: 0, ranks: None, trace: None }
    }

    /// The same with the model's experts on `ranks`.
    pub fn with_ranks(self, ranks: ExpertRanks) -> Self {
        Self { ranks: Some(ranks), ..self }
    }

    /// The same, writing down how many tokens each expert has in each step.
    pub fn with_trace(self, trace: TraceWriter<File>) -> Self {
        Self { trace: Some(trace), ..self }
    }

    fn compute(&mut self, batch: &[SequenceStep<'_>]) -> Result<Vec<SequenceOutput>> {
        self.tokens = batch.iter().map(|step| step.tokens.len()).sum();
        let inputs: Vec<SequenceInput<'_>> = batch.iter().map(input).collect();
        let mut logits = self.model.forward(&mut self.workspace, &mut self.cache, &inputs)?;
        let vocabulary = self.model.config().vocabulary;
        let many = logits.len() >= LOGITS_FOR_ALL_CORES;
        let mut parts = Vec::with_capacity(batch.len());
        for (step, input) in batch.iter().zip(&inputs) {
            let (own, later) = logits.split_at_mut(rows(input) * vocabulary);
            parts.push((step, own));
            logits = later;
        }
        let output =
            |(step, logits): (&SequenceStep<'_>, &mut [f32])| read(step, logits, vocabulary);
        Ok(match many {
            true => parts.into_par_iter().map(output).collect(),
            false => parts.into_iter().map(output).collect(),
        })
    }

    /// Goes on without the rank that failed, if that is possible; else fails as it did.
    fn recover(&mut self, why: MoeError) -> Result<()> {
        let (Some(ranks), &MoeError::Rank { rank, .. }) = (&mut self.ranks, &why) else {
            return Err(why.into());
        };
        tracing::error!("{why}; the other ranks take over its experts");
        ranks.recover(rank).inspect_err(|why| tracing::error!("they cannot: {why}"))
    }

    /// Balances and records what a step did to the experts.
    fn after_step(&mut self) -> Result<()> {
        let step = self.steps;
        self.steps += 1;
        let written =
            self.trace.as_mut().map(|trace| trace.write(step, 0, self.workspace.expert_pairs()));
        if let Some(Err(why)) = written {
            tracing::error!("experts are not recorded any more: {why}");
            self.trace = None;
        }
        self.ranks.as_mut().map_or(Ok(()), ExpertRanks::after_step)
    }
}

impl Runner for CpuRunner {
    fn info(&self) -> RunnerInfo {
        let config = self.model.config();
        RunnerInfo {
            vocabulary: config.vocabulary,
            max_positions: config.max_positions,
            kv_bytes_per_token: config.cache_bytes_per_token,
            kv_cache_memory: None,
        }
    }

    fn allocate(&mut self, blocks: usize) -> Result<()> {
        self.cache = self.model.new_cache(blocks);
        Ok(())
    }

    fn launch(&mut self, batch: &[SequenceStep<'_>]) -> Result<Launched> {
        let outputs = match self.compute(batch) {
            Err(EngineError::Model(ModelError::Moe(why @ MoeError::Rank { .. }))) => {
                self.recover(why)?;
                self.compute(batch)?
            }
            outputs => outputs?,
        };
        self.after_step()?;
        Ok(Launched::Done(outputs))
    }

    fn collect(&mut self) -> Result<Vec<SequenceOutput>> {
        panic!("this is a bug: a step on the host is done when it is launched")
    }

    fn report(&mut self) -> RunReport<'_> {
        let path = self.paths.iter().find(|(tokens_max, _)| self.tokens <= *tokens_max);
        let path = path.or(self.paths.last()).map_or("", |(_, path)| path);
        let ranks = self.ranks.as_ref().map(ExpertRanks::metrics);
        RunReport { expert_pairs: self.workspace.expert_pairs(), expert_steps: 1, path, ranks }
    }
}

fn input<'a>(step: &SequenceStep<'a>) -> SequenceInput<'a> {
    let SequenceStep { blocks, cached, tokens, .. } = *step;
    let logits_of = match (step.prompt, step.choice) {
        (Some(_), _) => LogitsOf::AllTokens,
        (None, Some(_)) => LogitsOf::LastToken,
        (None, None) => LogitsOf::Nothing,
    };
    SequenceInput { blocks, cached, tokens, logits_of }
}

fn rows(input: &SequenceInput<'_>) -> usize {
    match input.logits_of {
        LogitsOf::Nothing => 0,
        LogitsOf::LastToken => 1,
        LogitsOf::AllTokens => input.tokens.len(),
    }
}

/// What the logits `[rows, V]` of a sequence say.
fn read(step: &SequenceStep<'_>, logits: &mut [f32], vocabulary: usize) -> SequenceOutput {
    let mut prompt = Vec::new();
    if let Some(wanted) = step.prompt {
        let rows = logits.chunks_exact(vocabulary).zip(wanted.targets);
        prompt.extend(rows.map(|(row, &id)| TokenLogprobs::new(row, id, wanted.logprobs)));
    }
    let last = logits.len() - vocabulary.min(logits.len());
    let chosen = step.choice.map(|choice| choose(choice, &mut logits[last..]));
    SequenceOutput { chosen, prompt }
}

/// The next token, from the logits `[V]` of the last one.
pub(crate) fn choose(
    choice: Choice<'_>,
    logits: &mut [f32],
) -> std::result::Result<TokenLogprobs, String> {
    let Choice { sampler, history, position, adjustments, logprobs } = choice;
    if adjustments.allowed.is_some_and(|allowed| allowed.is_empty()) {
        return Err("the required form of the answer allows no token here".to_owned());
    }
    let top = match logprobs {
        Some(count) if count > 0 => TokenLogprobs::new(logits, 0, count).top,
        _ => Vec::new(),
    };
    let sampled = sampler.sample(history, position, adjustments, logits);
    let sampled = sampled.map_err(|why| why.to_string())?;
    Ok(TokenLogprobs { id: sampled.id, logprob: sampled.logprob, top })
}

impl fmt::Debug for CpuRunner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CpuRunner")
            .field("model", self.model.config())
            .finish_non_exhaustive()
    }
}
