use std::time::Duration;

use artel_layers::sample::TokenLogprobs;

/// Something that happened to a request. A request has any number of tokens and then one end.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// What the model thinks of the prompt, before the first token, if that was asked for: one
    /// entry a token, of which the first is `None`, as nothing predicts it.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// A token of the answer.
    Token(Token),
    /// Nothing more will come.
    Finished(Finished),
}

/// A token of an answer. A token that ends the answer is not reported as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability under the model's own distribution.
    pub logprob: f32,
    /// The most probable tokens at its place and theirs, as many as were asked for.
    pub top: Vec<(u32, f32)>,
    /// The text that became certain with it. Empty while a character is incomplete or the text
    /// could be the beginning of a stop string.
    pub text: String,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Text that had been held back and turned out to belong to the answer.
    pub text: String,
    /// Tokens in and out.
    pub usage: Usage,
    /// Time taken.
    pub timings: Timings,
}

/// Why a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop string appeared or an end token came.
    Stop(StoppedBy),
    /// `max_tokens` were produced or the context is full.
    Length,
    /// The request was cancelled.
    Cancelled,
    /// The engine was shut down.
    ShutDown,
    /// Something went wrong, told in a sentence.
    Failed(String),
}

/// What an answer was stopped by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoppedBy {
    /// One of the model's end tokens.
    EndToken(u32),
    /// One of the request's stop tokens.
    StopToken(u32),
    /// One of the request's stop strings.
    StopString(String),
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that did not have to be computed, because another request had begun alike.
    pub cached_tokens: usize,
    /// Tokens produced, one that ended the answer included.
    pub completion_tokens: usize,
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From the submission until the request got its place.
    pub queued: Duration,
    /// From then until the first token came out.
    pub prefill: Duration,
    /// From then until the last token came out.
    pub decode: Duration,
}

impl Timings {
    /// Computed tokens of the prompt per second; 0 when no token came out.
    pub fn prefill_tokens_per_second(&self, usage: &Usage) -> f64 {
        per_second(usage.prompt_tokens - usage.cached_tokens, self.prefill)
    }

    /// Tokens per second after the first; 0 when there is at most one.
    pub fn decode_tokens_per_second(&self, usage: &Usage) -> f64 {
        per_second(usage.completion_tokens.saturating_sub(1), self.decode)
    }
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}
