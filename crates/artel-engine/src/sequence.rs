//! One request: what it waits for, what it has produced, what it owns.

use std::time::Instant;

use artel_layers::sample::{Adjustments, Sampler, TokenHistory, TokenLogprobs, TokenMask};
use artel_model::{BLOCK_TOKENS, BlockId, TextStream, Tokenizer};
use tokio::sync::mpsc::UnboundedSender;

use crate::blocks::{BlockHash, BlockHasher};
use crate::event::{Event, FinishReason, Finished, StoppedBy, Timings, Token, Usage};
use crate::handle::QueuePlace;
use crate::runner::{Choice, PromptTargets, SequenceOutput, SequenceStep};
use crate::stop::StopMatcher;
use crate::{Request, RequestId, SubmitError};

/// The order in which requests are served: lower priority numbers first, then the older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    priority: i32,
    pub(crate) id: RequestId,
}

/// A request from its submission to its end.
pub(crate) struct Sequence {
    pub(crate) key: Key,
    request: Request,
    /// Tokens of the prompt.
    prompt: usize,
    /// Most tokens to produce.
    tokens_max: usize,
    /// The prompt and what was produced.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the blocks, or will be after the steps that run.
    pub(crate) computed: usize,
    /// Tokens of the answer that steps which run are choosing.
    awaited: usize,
    /// Its place in the latest step that it took part in.
    place_in_step: usize,
    pub(crate) blocks: Vec<BlockId>,
    /// Of the full blocks of `tokens`, as far as they were needed.
    pub(crate) hashes: Vec<BlockHash>,
    /// Full blocks that are known to others, or whose text others have made known.
    pub(crate) registered: usize,
    /// Tokens of the prompt that were found in the cache when the request first got its place.
    pub(crate) cached_tokens: usize,
    sampler: Sampler,
    history: TokenHistory,
    /// What may come next, for requests with a mask.
    allowed: Option<TokenMask>,
    /// Tokens that may end the answer.
    ends: Vec<u32>,
    text: TextStream,
    stop: StopMatcher,
    /// What is known about the tokens of the prompt, until it is sent.
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    events: UnboundedSender<Event>,
    /// Its place in the queue, until it first runs.
    place: Option<QueuePlace>,
    submitted: Instant,
    admitted: Option<Instant>,
    /// When the first and the latest token came out.
    produced_at: Option<(Instant, Instant)>,
}

/// What a sequence is made of beside its request.
pub(crate) struct Admission<'a> {
    pub(crate) id: RequestId,
    pub(crate) tokens_max: usize,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) vocabulary: usize,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) place: QueuePlace,
}

impl Sequence {
    pub(crate) fn new(mut request: Request, admission: Admission<'_>) -> Result<Self, SubmitError> {
        let Admission { id, tokens_max, tokenizer, vocabulary, events, place } = admission;
        let mut ends = std::mem::take(&mut request.end_tokens);
        if request.ignore_eos {
            ends.clear();
        }
        let end_tokens = ends.len();
        ends.extend(&request.stop_tokens);
        request.end_tokens = ends[..end_tokens].to_vec();
        Ok(Self {
            key: Key { priority: request.priority, id },
            prompt: request.prompt_ids.len(),
            tokens_max,
            computed: 0,
            awaited: 0,
            place_in_step: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            registered: 0,
            cached_tokens: 0,
            sampler: Sampler::new(request.sampling)?,
            history: TokenHistory::of_prompt(&request.prompt_ids),
            allowed: request.mask.is_some().then(|| TokenMask::none(vocabulary)),
            ends,
            text: tokenizer.stream(),
            stop: StopMatcher::new(request.stop_strings.clone()),
            prompt_logprobs: request.prompt_logprobs.map(|_| vec![None]),
            events,
            place: Some(place),
            submitted: Instant::now(),
            admitted: None,
            produced_at: None,
            tokens: std::mem::take(&mut request.prompt_ids),
            request,
        })
    }

    /// Tokens that are known, or awaited, but not computed; none behind the last of an answer.
    pub(crate) fn pending(&self) -> usize {
        match self.produced() + self.awaited == self.tokens_max {
            true => 0,
            false => self.tokens.len() + self.awaited - self.computed,
        }
    }

    /// Whether its next step cannot be told to a device before the latest token is known.
    pub(crate) fn waits_for_its_token(&self) -> bool {
        self.awaited > 0
            && (self.request.mask.is_some() || self.sampler.params().depends_on_history())
    }

    /// Whether nobody wants the answer any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.request.cancellation.is_cancelled() || self.events.is_closed()
    }

    /// Hashes of the full blocks that another text may share with this one. One token at least is
    /// left to compute, and all when the probabilities of the prompt are wanted.
    pub(crate) fn shareable(&mut self, hasher: &BlockHasher) -> &[BlockHash] {
        if self.prompt_logprobs.is_some() {
            return &[];
        }
        hasher.extend(&mut self.hashes, &self.tokens);
        let blocks = (self.tokens.len() - 1) / BLOCK_TOKENS;
        &self.hashes[..blocks.min(self.hashes.len())]
    }

    /// Notes that the request has a place in the batch, with so many tokens from the cache. Returns
    /// the tokens of its prompt when it is the first time.
    pub(crate) fn admit(&mut self, cached: usize) -> usize {
        self.computed = cached;
        self.registered = cached / BLOCK_TOKENS;
        if self.admitted.is_some() {
            return 0;
        }
        self.admitted = Some(Instant::now());
        self.cached_tokens = cached;
        self.place = None;
        self.prompt
    }

    /// Forgets everything computed, to begin anew later.
    pub(crate) fn preempt(&mut self) {
        self.computed = 0;
        self.awaited = 0;
        self.registered = 0;
        self.prompt_logprobs.iter_mut().for_each(|known| known.truncate(1));
    }

    /// Asks the mask of the request what may come after the next `tokens` new tokens.
    pub(crate) fn update_mask(&mut self, tokens: usize) -> Result<(), String> {
        if tokens < self.pending() {
            return Ok(());
        }
        match (&mut self.request.mask, &mut self.allowed) {
            (Some(mask), Some(allowed)) => {
                allowed.clear();
                mask.allow(&self.tokens[self.prompt..], allowed)
            }
            _ => Ok(()),
        }
    }

    /// The next `tokens` tokens as the runner sees them.
    pub(crate) fn step(&self, tokens: usize) -> SequenceStep<'_> {
        let range = self.computed..self.computed + tokens;
        let choice = (tokens == self.pending()).then(|| self.choice());
        let prompt = self.prompt_logprobs.as_ref().and_then(|_| {
            let prompt = &self.tokens[..self.prompt];
            let (first, end) = (range.start + 1, (range.end + 1).min(prompt.len()));
            let logprobs = self.request.prompt_logprobs.unwrap_or(0);
            (first < end).then(|| PromptTargets { targets: &prompt[first..end], logprobs })
        });
        let known = range.end.min(self.tokens.len());
        SequenceStep {
            blocks: &self.blocks,
            cached: self.computed,
            tokens: &self.tokens[range.start.min(known)..known],
            awaited: (known < range.end).then_some(self.place_in_step),
            choice,
            prompt,
        }
    }

    /// Notes that a step computes its next `tokens` tokens, at this place of the batch.
    pub(crate) fn launched(&mut self, tokens: usize, place: usize) {
        let chooses = tokens == self.pending();
        self.computed += tokens;
        self.awaited += usize::from(chooses);
        self.place_in_step = place;
    }

    fn choice(&self) -> Choice<'_> {
        let position = self.produced() + self.awaited;
        let must_go_on = position < self.request.min_tokens;
        Choice {
            sampler: &self.sampler,
            history: &self.history,
            position: position as u64,
            adjustments: Adjustments {
                allowed: self.allowed.as_ref(),
                banned: if must_go_on { &self.ends } else { &[] },
                bias: &self.request.logit_bias,
            },
            logprobs: self.request.logprobs,
        }
    }

    /// Takes in what came of a step; returns why the request ends when it does.
    pub(crate) fn advance(&mut self, output: SequenceOutput) -> Option<FinishReason> {
        if let Some(known) = &mut self.prompt_logprobs {
            known.extend(output.prompt.into_iter().map(Some));
            if known.len() == self.prompt {
                let known = self.prompt_logprobs.take().unwrap_or_default();
                self.send(Event::PromptLogprobs(known));
            }
        }
        let chosen = output.chosen?;
        self.awaited -= 1;
        match chosen {
            Ok(chosen) => self.push(chosen),
            Err(why) => Some(FinishReason::Failed(why)),
        }
    }

    /// Adds a token to the answer.
    fn push(&mut self, chosen: TokenLogprobs) -> Option<FinishReason> {
        let TokenLogprobs { id, logprob, top } = chosen;
        self.tokens.push(id);
        self.history.push(id);
        let now = Instant::now();
        self.produced_at = Some((self.produced_at.map_or(now, |(first, _)| first), now));
        if self.ends.contains(&id) {
            return Some(FinishReason::Stop(match self.request.end_tokens.contains(&id) {
                true => StoppedBy::EndToken(id),
                false => StoppedBy::StopToken(id),
            }));
        }
        let piece = match self.text.push(id) {
            Ok(piece) => piece,
            Err(why) => return Some(FinishReason::Failed(why.to_string())),
        };
        let (text, stopped) = if self.produced() < self.request.min_tokens {
            (piece, None)
        } else {
            let matched = self.stop.push(&piece);
            (matched.text, matched.stopped)
        };
        self.send(Event::Token(Token { id, logprob, top, text }));
        match stopped {
            Some(string) => Some(FinishReason::Stop(StoppedBy::StopString(string))),
            None => (self.produced() == self.tokens_max).then_some(FinishReason::Length),
        }
    }

    /// Tokens produced.
    pub(crate) fn produced(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Sends the last event of the request, with the text that tokenizer and stop strings held
    /// back.
    pub(crate) fn finish(mut self, mut reason: FinishReason) {
        let usage = Usage {
            prompt_tokens: self.prompt,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.produced(),
        };
        let admitted = self.admitted.unwrap_or_else(Instant::now);
        let (first, last) = self.produced_at.unwrap_or((admitted, admitted));
        let timings = Timings {
            queued: admitted - self.submitted,
            prefill: first - admitted,
            decode: last - first,
        };
        let rest = self.text.finish().unwrap_or_else(|why| {
            reason = FinishReason::Failed(why.to_string());
            String::new()
        });
        let matched = self.stop.push(&rest);
        let text = matched.text + &self.stop.finish();
        // Nobody may listen any more, which is as well.
        let _ = self.events.send(Event::Finished(Finished { reason, text, usage, timings }));
    }

    fn send(&self, event: Event) {
        // Who has hung up is found before the next step.
        let _ = self.events.send(event);
    }
}
