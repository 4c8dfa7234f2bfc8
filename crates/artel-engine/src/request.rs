use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use artel_layers::sample::SamplingParams;

use crate::{EngineError, Result};

/// Names a request within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "request {}", self.0)
    }
}

/// A switch that ends a request from any thread or signal handler. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// A switch over a flag that something else sets, such as a signal handler.
    pub fn over(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Ends the request before its next step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was ended.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A prompt and how it is to be continued.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// Token ids of the prompt, at least one.
    pub prompt_ids: Vec<u32>,
    /// Most tokens to produce, at least one.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The answer ends before any of these texts. None is empty.
    pub stop_strings: Vec<String>,
    /// Tokens with which the answer ends: the model's end tokens.
    pub end_tokens: Vec<u32>,
    /// Goes on after end tokens, as benchmarks want.
    pub ignore_end_tokens: bool,
    /// Ends the request early.
    pub cancellation: Cancellation,
}

impl GenerationRequest {
    /// A greedy request that nothing but its length ends.
    pub fn new(prompt_ids: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt_ids,
            max_tokens,
            sampling: SamplingParams::greedy(),
            stop_strings: Vec::new(),
            end_tokens: Vec::new(),
            ignore_end_tokens: false,
            cancellation: Cancellation::default(),
        }
    }

    /// Whether the token ends the answer.
    pub(crate) fn ends_with(&self, id: u32) -> bool {
        !self.ignore_end_tokens && self.end_tokens.contains(&id)
    }

    /// Refuses what cannot be served by a model of `vocabulary` tokens and a context of `context`.
    pub(crate) fn check(&self, vocabulary: usize, context: usize) -> Result<()> {
        let prompt = self.prompt_ids.len();
        if prompt == 0 {
            return Err(EngineError::invalid("the prompt", "empty", "at least one token"));
        }
        if self.max_tokens == 0 {
            return Err(EngineError::invalid("max_tokens", 0, "at least 1"));
        }
        if prompt.saturating_add(self.max_tokens) > context {
            let max_tokens = self.max_tokens;
            return Err(EngineError::ContextOverflow { prompt, max_tokens, context });
        }
        if let Some(&id) = self.prompt_ids.iter().find(|&&id| id as usize >= vocabulary) {
            let allowed = format!("below {vocabulary}, the size of the model's vocabulary");
            return Err(EngineError::invalid("a token id of the prompt", id, allowed));
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return Err(EngineError::invalid("a stop string", "empty", "some text"));
        }
        Ok(())
    }
}
