//! The engine: `step` = schedule, run, postprocess.

use std::collections::VecDeque;
use std::time::Instant;

use artel_layers::sample::Sampler;
use artel_model::{LogitsOf, Model, SequenceInput, Tokenizer, Workspace};

use crate::event::{Event, FinishReason};
use crate::request::{GenerationRequest, RequestId};
use crate::schedule::tokens_of_step;
use crate::sequence::{Sequence, Waiting};
use crate::{EngineError, Result};

/// Sizes of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests that run at the same time; others wait.
    pub sequences_max: usize,
    /// Tokens of one step, prompts and answers together. A longer prompt is computed in chunks.
    pub step_tokens_max: usize,
    /// Tokens of a request, prompt and answer together; the model's own limit when that is less.
    pub context: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { sequences_max: 16, step_tokens_max: 512, context: usize::MAX }
    }
}

/// Runs requests on a model: new ones join the batch as others leave it.
#[derive(Debug)]
pub struct Engine<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    config: EngineConfig,
    workspace: Workspace,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    /// Logits of a step, `[rows, V]`.
    logits: Vec<f32>,
    submitted: u64,
}

impl<'m> Engine<'m> {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a size of 0.
    pub fn new(model: &'m Model, tokenizer: &'m Tokenizer, config: EngineConfig) -> Result<Self> {
        let EngineConfig { sequences_max, step_tokens_max, context } = config;
        let sizes = [
            ("sequences_max", sequences_max),
            ("step_tokens_max", step_tokens_max),
            ("the context length", context),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(EngineError::invalid(field, size, "at least 1"));
        }
        let context = context.min(model.config().max_positions);
        Ok(Self {
            model,
            tokenizer,
            config: EngineConfig { context, ..config },
            workspace: model.new_workspace(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            logits: Vec::new(),
            submitted: 0,
        })
    }

    /// The sizes in use; the context is at most the model's.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`EngineError::ContextOverflow`] when prompt and answer cannot fit the context,
    /// [`EngineError::Invalid`] and [`EngineError::Sampling`] for values that make no sense.
    /// Nothing has run then.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<RequestId> {
        request.check(self.model.config().vocabulary, self.config.context)?;
        let sampler = Sampler::new(request.sampling)?;
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back(Waiting { id, request, sampler, submitted: Instant::now() });
        Ok(id)
    }

    /// Whether any request waits or runs.
    pub fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// Requests that run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Computes one step and returns what happened, in the order of the requests in the batch.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the model fails; no request has advanced then.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.drop_cancelled(&mut events);
        let schedule = self.schedule()?;
        self.run(&schedule)?;
        self.postprocess(&schedule, &mut events);
        Ok(events)
    }

    fn drop_cancelled(&mut self, events: &mut Vec<Event>) {
        self.waiting.retain(|waiting| {
            let cancelled = waiting.request.cancellation.is_cancelled();
            events.extend(cancelled.then(|| waiting.cancelled()));
            !cancelled
        });
        let cancelled = |sequence: &mut Sequence| sequence.request.cancellation.is_cancelled();
        for sequence in self.running.extract_if(.., cancelled) {
            events.push(sequence.finish(FinishReason::Cancelled));
        }
    }

    /// Fills free places from the queue; returns how many tokens of each running sequence the step
    /// computes.
    fn schedule(&mut self) -> Result<Vec<usize>> {
        while self.running.len() < self.config.sequences_max
            && let Some(waiting) = self.waiting.pop_front()
        {
            let request = &waiting.request;
            let cache = self.model.new_cache(request.prompt_ids.len() + request.max_tokens)?;
            self.running.push(waiting.admit(cache, self.tokenizer));
        }
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        Ok(tokens_of_step(&pending, self.config.step_tokens_max))
    }

    /// Runs the model; leaves the logits of the last token of each sequence that takes part.
    fn run(&mut self, schedule: &[usize]) -> Result<()> {
        let parts = self.running.iter_mut().zip(schedule).filter(|(_, tokens)| **tokens > 0);
        let mut batch: Vec<SequenceInput<'_>> = parts
            .map(|(sequence, tokens)| {
                let start = sequence.cache.len();
                let tokens = &sequence.tokens[start..start + tokens];
                SequenceInput { cache: &mut sequence.cache, tokens }
            })
            .collect();
        self.logits.clear();
        if !batch.is_empty() {
            let logits =
                self.model.forward(&mut self.workspace, &mut batch, LogitsOf::LastTokens)?;
            self.logits.extend_from_slice(logits);
        }
        Ok(())
    }

    /// Chooses a token for each sequence whose tokens are all computed; lets go of those that end.
    fn postprocess(&mut self, schedule: &[usize], events: &mut Vec<Event>) {
        let vocabulary = self.model.config().vocabulary;
        let mut rows = self.logits.chunks_exact_mut(vocabulary);
        let running = std::mem::take(&mut self.running);
        for (mut sequence, &tokens) in running.into_iter().zip(schedule) {
            let row = if tokens > 0 { rows.next() } else { None };
            let ended = match row {
                Some(logits) if sequence.pending() == 0 => sequence.advance(logits, events),
                _ => None,
            };
            match ended {
                Some(reason) => events.push(sequence.finish(reason)),
                None => self.running.push(sequence),
            }
        }
    }
}
