//! One running request.

use std::time::Instant;

use artel_layers::sample::{Sampled, Sampler, TokenHistory};
use artel_model::{KvCache, TextStream, Tokenizer};

use crate::event::{Event, EventKind, FinishReason, Finished, Timings, Token, Usage};
use crate::stop::StopMatcher;
use crate::{GenerationRequest, RequestId, Result};

/// A request that waits for its turn.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: RequestId,
    pub(crate) request: GenerationRequest,
    pub(crate) sampler: Sampler,
    pub(crate) submitted: Instant,
}

/// A request that has a place in the batch.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) request: GenerationRequest,
    /// The prompt and what was produced.
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: KvCache,
    sampler: Sampler,
    history: TokenHistory,
    text: TextStream,
    stop: StopMatcher,
    submitted: Instant,
    admitted: Instant,
    /// When the first and the latest token came out.
    produced_at: Option<(Instant, Instant)>,
}

impl Waiting {
    /// The end of a request that never ran.
    pub(crate) fn cancelled(&self) -> Event {
        let usage = Usage { prompt_tokens: self.request.prompt_ids.len(), completion_tokens: 0 };
        let timings = Timings { queued: self.submitted.elapsed(), ..Timings::default() };
        let reason = FinishReason::Cancelled;
        let finished = Finished { reason, text: String::new(), usage, timings };
        Event { request: self.id, kind: EventKind::Finished(finished) }
    }

    pub(crate) fn admit(self, cache: KvCache, tokenizer: &Tokenizer) -> Sequence {
        let Self { id, request, sampler, submitted } = self;
        Sequence {
            id,
            tokens: request.prompt_ids.clone(),
            cache,
            sampler,
            history: TokenHistory::of_prompt(&request.prompt_ids),
            text: tokenizer.stream(),
            stop: StopMatcher::new(request.stop_strings.clone()),
            submitted,
            admitted: Instant::now(),
            produced_at: None,
            request,
        }
    }
}

impl Sequence {
    /// Tokens that are known but not computed.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Tokens produced.
    fn produced(&self) -> usize {
        self.tokens.len() - self.request.prompt_ids.len()
    }

    /// Chooses the next token from `logits` `[V]` and adds it to `events`; returns why the request
    /// ends when it does.
    pub(crate) fn advance(
        &mut self,
        logits: &mut [f32],
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        let position = self.produced() as u64;
        let sampled = match self.sampler.sample(&self.history, position, logits) {
            Ok(sampled) => sampled,
            Err(why) => return Some(FinishReason::Failed(why.to_string())),
        };
        self.record(sampled.id);
        if self.request.ends_with(sampled.id) {
            return Some(FinishReason::Stop);
        }
        let stopped = match self.emit(sampled, events) {
            Ok(stopped) => stopped,
            Err(why) => return Some(FinishReason::Failed(why.to_string())),
        };
        let at_length = self.produced() == self.request.max_tokens;
        match (stopped, at_length) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => None,
        }
    }

    fn record(&mut self, id: u32) {
        self.tokens.push(id);
        self.history.push(id);
        let now = Instant::now();
        self.produced_at = Some((self.produced_at.map_or(now, |(first, _)| first), now));
    }

    /// Reports the token; `true` when its text completed a stop string.
    fn emit(&mut self, Sampled { id, logprob }: Sampled, events: &mut Vec<Event>) -> Result<bool> {
        let matched = self.stop.push(&self.text.push(id)?);
        let token = Token { id, logprob, text: matched.text };
        events.push(Event { request: self.id, kind: EventKind::Token(token) });
        Ok(matched.stopped)
    }

    /// The last event of the request, with the text that tokenizer and stop strings held back.
    pub(crate) fn finish(mut self, mut reason: FinishReason) -> Event {
        let usage = Usage {
            prompt_tokens: self.request.prompt_ids.len(),
            completion_tokens: self.produced(),
        };
        let (first, last) = self.produced_at.unwrap_or((self.admitted, self.admitted));
        let timings = Timings {
            queued: self.admitted - self.submitted,
            prefill: first - self.admitted,
            decode: last - first,
        };
        let rest = self.text.finish().unwrap_or_else(|why| {
            reason = FinishReason::Failed(why.to_string());
            String::new()
        });
        let matched = self.stop.push(&rest);
        let text = matched.text + &self.stop.finish();
        let finished = Finished { reason, text, usage, timings };
        Event { request: self.id, kind: EventKind::Finished(finished) }
    }
}
