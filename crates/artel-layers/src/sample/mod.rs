//! Sampling: the next token from the logits of one position.
//!
//! In this order, which is vLLM's:
//! 0. what the request adds to logits or forbids ([`Adjustments`]);
//! 1. penalties on what was seen: repetition divides positive and multiplies negative logits of
//!    every token of prompt and output; presence and frequency take their amount, once or for each
//!    occurrence, from the logits of output tokens;
//! 2. temperature divides; 0 is greedy: the largest logit, of equal ones the lowest id, and done;
//! 3. min-p drops what is less probable than its share of the most probable token;
//! 4. top-k keeps the k most probable;
//! 5. top-p keeps the most probable that together reach p, the one that crosses it included;
//! 6. one draw from what is left. The stream is ChaCha8 under (seed, position), so a request gives
//!    the same tokens alone and in any batch.
//!
//! Of equally probable tokens the lower id comes first in every step. A logit that is NaN counts as
//! negative infinity: never chosen.
//!
//! Example: logits [1, 3, 2], temperature 1, top_k 2: token 1 with e/(e + 1) = 0.73, else token 2.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod mask;
pub mod reference;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use mask::TokenMask;

use crate::LayersError;

/// What a request says about how its tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; 1 is the model's own distribution.
    pub temperature: f32,
    /// Most probable tokens to keep; 0 keeps all.
    pub top_k: usize,
    /// Probability that the kept tokens reach together, in (0, 1].
    pub top_p: f32,
    /// Share of the largest probability that a kept token has at least, in [0, 1].
    pub min_p: f32,
    /// Above 1 discourages tokens of prompt and output; above 0.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token of the output, in [-2, 2].
    pub presence_penalty: f32,
    /// The same for each occurrence, in [-2, 2].
    pub frequency_penalty: f32,
    /// Names the random stream of the request.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// The model's own distribution, with seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether what was generated changes the logits of what follows.
    pub fn depends_on_history(&self) -> bool {
        let taken = self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        taken || self.repetition_penalty != 1.0
    }

    fn check(&self) -> Result<(), LayersError> {
        let checks = [
            ("temperature", self.temperature, self.temperature >= 0.0, "finite and at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "finite and above 0",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                self.presence_penalty.abs() <= 2.0,
                "in [-2, 2]",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                self.frequency_penalty.abs() <= 2.0,
                "in [-2, 2]",
            ),
        ];
        for (field, value, holds, allowed) in checks {
            if !(value.is_finite() && holds) {
                return Err(LayersError::config(field, value, allowed));
            }
        }
        Ok(())
    }
}

/// The tokens a request has seen, as far as penalties care.
#[derive(Debug, Clone, Default)]
pub struct TokenHistory {
    prompt: BTreeSet<u32>,
    /// Occurrences in the output.
    output: BTreeMap<u32, u32>,
}

impl TokenHistory {
    /// The history of a request that has not produced anything.
    pub fn of_prompt(ids: &[u32]) -> Self {
        Self { prompt: ids.iter().copied().collect(), output: BTreeMap::new() }
    }

    /// Tokens that [`seen`](Self::seen) may have, at most.
    pub fn seen_max(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    /// Records a token of the output.
    pub fn push(&mut self, id: u32) {
        *self.output.entry(id).or_default() += 1;
    }

    /// Every token of prompt and output once, with its occurrences in the output.
    pub fn seen(&self) -> impl Iterator<Item = (u32, u32)> {
        let prompt = self.prompt.iter().filter(|id| !self.output.contains_key(id));
        prompt.map(|&id| (id, 0)).chain(self.output.iter().map(|(&id, &count)| (id, count)))
    }
}

/// What is done to the logits of one position before anything else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adjustments<'a> {
    /// The only tokens that may come; all when there is no mask.
    pub allowed: Option<&'a TokenMask>,
    /// Tokens that must not come.
    pub banned: &'a [u32],
    /// What is added to the logit of a token, each token at most once.
    pub bias: &'a [(u32, f32)],
}

/// A token of a text and the most probable tokens at its place, by the logits as the model gave
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens and theirs, the most probable first, of equal ones the lower id.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of token `id` and the `count` most probable ones under `logits` `[V]`. Logits that are NaN
    /// are passed over.
    pub fn new(logits: &[f32], id: u32, count: usize) -> Self {
        cpu::logprobs(logits, id, count)
    }
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability under the logits as the model gave them.
    pub logprob: f32,
}

/// Chooses the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
}

impl Sampler {
    /// A sampler for parameters that make sense.
    ///
    /// # Errors
    /// [`LayersError::Config`] names the first parameter outside its range.
    pub fn new(params: SamplingParams) -> Result<Self, LayersError> {
        params.check()?;
        Ok(Self { params })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses the output token number `position` (the first is 0) from adjusted `logits` `[V]`,
    /// which are changed on the way.
    ///
    /// # Errors
    /// [`LayersError::NoCandidate`] when every logit is NaN or negative infinity.
    pub fn sample(
        &self,
        history: &TokenHistory,
        position: u64,
        adjustments: Adjustments<'_>,
        logits: &mut [f32],
    ) -> Result<Sampled, LayersError> {
        cpu::sample(self, (history, position), adjustments, logits)
    }

    /// The random number of a position: in [0, 1), of seed and position only. A GPU is given it.
    pub fn uniform(&self, position: u64) -> f64 {
        let mut stream = ChaCha8Rng::seed_from_u64(self.params.seed);
        stream.set_stream(position);
        (stream.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
