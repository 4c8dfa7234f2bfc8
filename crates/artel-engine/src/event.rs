use std::time::Duration;

use crate::RequestId;

/// Something that happened to a request during a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// What happened.
    pub kind: EventKind,
}

/// The kinds of events. A request has any number of tokens and then one end.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
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
    Stop,
    /// `max_tokens` were produced.
    Length,
    /// The request was cancelled.
    Cancelled,
    /// Something went wrong with this request alone, told in a sentence.
    Failed(String),
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens produced, one that ended the answer included.
    pub completion_tokens: usize,
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From the submission until the first token of the prompt was computed.
    pub queued: Duration,
    /// From then until the first token came out.
    pub prefill: Duration,
    /// From then until the last token came out.
    pub decode: Duration,
}

impl Timings {
    /// Tokens of the prompt per second; 0 when no token came out.
    pub fn prefill_tokens_per_second(&self, usage: &Usage) -> f64 {
        per_second(usage.prompt_tokens, self.prefill)
    }

    /// Tokens per second after the first; 0 when there is at most one.
    pub fn decode_tokens_per_second(&self, usage: &Usage) -> f64 {
        per_second(usage.completion_tokens.saturating_sub(1), self.decode)
    }
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}
