use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use artel_layers::sample::{SamplingParams, TokenMask};

use crate::SubmitError;

/// Most alternatives that are reported beside a token.
pub const LOGPROBS_MAX: usize = 20;

/// Names a request within its engine. Of two, the one submitted later is greater.
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

/// What the answer of one request may look like: the state of its grammar.
pub trait LogitsMask: Send {
    /// Marks in `allowed`, which comes empty, the tokens that may follow the answer so far. Called
    /// once before each token, with one token more each time. End tokens are masked like others:
    /// they are to be allowed where the answer may end.
    ///
    /// # Errors
    /// A sentence with which the request fails.
    fn allow(&mut self, generated: &[u32], allowed: &mut TokenMask) -> Result<(), String>;
}

/// A prompt and how it is to be continued.
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt_ids: Vec<u32>,
    /// Most tokens to produce, at least one; `None` goes on until the context is full.
    pub max_tokens: Option<usize>,
    /// Tokens to produce before anything but the context can end the answer.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What is added to the logits of tokens, in -100..=100.
    pub logit_bias: Vec<(u32, f32)>,
    /// The answer ends before any of these texts. None is empty.
    pub stop_strings: Vec<String>,
    /// Tokens with which the answer ends, whatever `ignore_eos` says.
    pub stop_tokens: Vec<u32>,
    /// Tokens with which the answer ends: the model's end tokens.
    pub end_tokens: Vec<u32>,
    /// Goes on after end tokens, as benchmarks want.
    pub ignore_eos: bool,
    /// How many of the most probable tokens are reported with each token, at most
    /// [`LOGPROBS_MAX`].
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt, which is then computed whole.
    pub prompt_logprobs: Option<usize>,
    /// What the answer may look like.
    pub mask: Option<Box<dyn LogitsMask>>,
    /// Requests with lower numbers go first; of equal ones the one that came first.
    pub priority: i32,
    /// Ends the request early.
    pub cancellation: Cancellation,
}

impl Request {
    /// A greedy request that nothing but the context ends.
    pub fn new(prompt_ids: Vec<u32>) -> Self {
        Self {
            prompt_ids,
            max_tokens: None,
            min_tokens: 0,
            sampling: SamplingParams::greedy(),
            logit_bias: Vec::new(),
            stop_strings: Vec::new(),
            stop_tokens: Vec::new(),
            end_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            mask: None,
            priority: 0,
            cancellation: Cancellation::default(),
        }
    }

    /// Refuses what cannot be served by a model of `vocabulary` tokens and a context of `context`;
    /// returns how many tokens may be produced.
    pub(crate) fn check(&self, vocabulary: usize, context: usize) -> Result<usize, SubmitError> {
        let prompt = self.prompt_ids.len();
        let max_tokens = self.max_tokens.unwrap_or(context.saturating_sub(prompt).max(1));
        if prompt == 0 {
            return Err(SubmitError::invalid("prompt", "empty", "at least one token"));
        }
        if max_tokens == 0 {
            return Err(SubmitError::invalid("max_tokens", 0, "at least 1"));
        }
        if prompt.saturating_add(max_tokens) > context {
            return Err(SubmitError::PromptTooLong { prompt, max_tokens, context });
        }
        if self.min_tokens > max_tokens {
            let allowed = format!("at most max_tokens, {max_tokens}");
            return Err(SubmitError::invalid("min_tokens", self.min_tokens, allowed));
        }
        let biased = self.logit_bias.iter().map(|&(id, _)| ("logit_bias", id));
        let ids = self.prompt_ids.iter().map(|&id| ("prompt", id)).chain(biased);
        if let Some((field, id)) = ids.into_iter().find(|&(_, id)| id as usize >= vocabulary) {
            let value = format!("token id {id}");
            let allowed = format!("below {vocabulary}, the size of the model's vocabulary");
            return Err(SubmitError::invalid(field, value, allowed));
        }
        if let Some((_, bias)) =
            self.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias))
        {
            return Err(SubmitError::invalid("logit_bias", bias, "in [-100, 100]"));
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return Err(SubmitError::invalid("stop", "an empty text", "some text"));
        }
        let counts = [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)];
        for (field, count) in counts {
            if let Some(count) = count.filter(|&count| count > LOGPROBS_MAX) {
                return Err(SubmitError::invalid(field, count, format!("in 0..={LOGPROBS_MAX}")));
            }
        }
        Ok(max_tokens)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("prompt_tokens", &self.prompt_ids.len())
            .field("max_tokens", &self.max_tokens)
            .field("sampling", &self.sampling)
            .field("priority", &self.priority)
            .field("masked", &self.mask.is_some())
            .finish_non_exhaustive()
    }
}
