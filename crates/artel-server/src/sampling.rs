//! What requests of all endpoints have in common: how tokens are chosen and when to stop.

use std::collections::BTreeMap;

use artel_engine::{LOGPROBS_MAX, Request, SamplingParams};
use artel_model::GenerationConfig;
use serde::Deserialize;

use crate::error::ApiError;
use crate::grammar::Grammar;

/// Most answers to one prompt.
const CHOICES_MAX: usize = 128;
/// Most texts that stop an answer.
const STOPS_MAX: usize = 64;

/// The fields that completions and chats share. What is absent or null is up to the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CommonFields {
    pub model: Option<String>,
    pub n: Option<usize>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<usize>,
    pub min_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub priority: Option<i32>,
}

/// What a stream tells beside the answer.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk counts the tokens.
    pub include_usage: Option<bool>,
}

/// A text or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl CommonFields {
    /// How many answers each prompt gets.
    pub(crate) fn choices(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n @ 1..=CHOICES_MAX => Ok(n),
            n => {
                let message = format!("n is {n}, but must be in 1..={CHOICES_MAX}");
                Err(ApiError::field("n", message))
            }
        }
    }

    pub(crate) fn includes_usage(&self) -> bool {
        self.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
    }

    /// What is asked of the engine for each prompt and choice.
    pub(crate) fn recipe(&mut self, advice: &GenerationConfig) -> Result<Recipe, ApiError> {
        let stop_strings = self.stop.take().map(OneOrMany::into_vec).unwrap_or_default();
        if stop_strings.len() > STOPS_MAX {
            let count = stop_strings.len();
            let message = format!("stop has {count} texts, but at most {STOPS_MAX} are allowed");
            return Err(ApiError::field("stop", message));
        }
        Ok(Recipe {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            sampling: self.sampling(advice)?,
            seed: self.seed.map(|seed| seed as u64),
            logit_bias: self.logit_bias.as_ref().map(biases).transpose()?.unwrap_or_default(),
            stop_strings,
            stop_tokens: self.stop_token_ids.take().unwrap_or_default(),
            end_tokens: advice.end_tokens.clone(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: self.priority.unwrap_or(0),
        })
    }

    /// The client's word first, then the authors' advice, then the usual of OpenAI's API. A model
    /// whose authors do not want it sampled is not, unless something is asked for that makes no
    /// sense without.
    fn sampling(&self, advice: &GenerationConfig) -> Result<SamplingParams, ApiError> {
        let off = SamplingParams::default();
        let greedy = advice.samples == Some(false);
        let asks_for_choice = self.top_p.is_some() || self.top_k.is_some() || self.min_p.is_some();
        let advised = if greedy { GenerationConfig::default() } else { advice.clone() };
        let usual_temperature = if greedy && !asks_for_choice { 0.0 } else { 1.0 };
        let or_advised = |given: Option<f32>, advised: Option<f64>, otherwise: f32| {
            given.or(advised.map(|value| value as f32)).unwrap_or(otherwise)
        };
        let top_k = match self.top_k {
            None => advised.top_k.unwrap_or(off.top_k),
            Some(-1) => 0,
            Some(count) => usize::try_from(count).map_err(|_| {
                let message = format!("top_k is {count}, but must be -1 or 0 (all) or above");
                ApiError::field("top_k", message)
            })?,
        };
        Ok(SamplingParams {
            temperature: or_advised(self.temperature, advised.temperature, usual_temperature),
            top_k,
            top_p: or_advised(self.top_p, advised.top_p, off.top_p),
            min_p: or_advised(self.min_p, advised.min_p, off.min_p),
            repetition_penalty: or_advised(
                self.repetition_penalty,
                advised.repetition_penalty,
                off.repetition_penalty,
            ),
            presence_penalty: self.presence_penalty.unwrap_or(off.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(off.frequency_penalty),
            seed: 0,
        })
    }
}

/// `{"token id": bias}`, each token once however its number is written.
fn biases(given: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias = |(id, bias): (&String, &f32)| match id.parse() {
        Ok(id) => Ok((id, *bias)),
        Err(_) => {
            let message = format!("logit_bias has the key {id:?}, but keys must be token ids");
            Err(ApiError::field("logit_bias", message))
        }
    };
    let biases: BTreeMap<u32, f32> = given.iter().map(bias).collect::<Result<_, ApiError>>()?;
    Ok(biases.into_iter().collect())
}

/// How many alternatives are told beside each token, if any.
pub(crate) fn logprobs(field: &'static str, count: usize) -> Result<usize, ApiError> {
    match count {
        0..=LOGPROBS_MAX => Ok(count),
        _ => {
            let message = format!("{field} is {count}, but must be in 0..={LOGPROBS_MAX}");
            Err(ApiError::field(field, message))
        }
    }
}

/// What is asked of the engine, but for the prompt.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub sampling: SamplingParams,
    pub seed: Option<u64>,
    pub logit_bias: Vec<(u32, f32)>,
    pub stop_strings: Vec<String>,
    pub stop_tokens: Vec<u32>,
    pub end_tokens: Vec<u32>,
    pub ignore_eos: bool,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub grammar: Option<Grammar>,
    pub priority: i32,
}

impl Recipe {
    /// The request for one choice. Choices differ in their seeds; without a seed nobody knows them.
    pub(crate) fn request(&self, prompt_ids: Vec<u32>, choice: usize) -> Request {
        let seed = self.seed.map_or_else(rand::random, |seed| seed.wrapping_add(choice as u64));
        Request {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            sampling: SamplingParams { seed, ..self.sampling },
            logit_bias: self.logit_bias.clone(),
            stop_strings: self.stop_strings.clone(),
            stop_tokens: self.stop_tokens.clone(),
            end_tokens: self.end_tokens.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            mask: self.grammar.as_ref().map(Grammar::mask),
            priority: self.priority,
            ..Request::new(prompt_ids)
        }
    }
}
