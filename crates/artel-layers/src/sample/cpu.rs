//! The same choice without sorting the vocabulary: greedy is one pass, and top-p sorts the most
//! probable few, and more only when these do not reach it.

use std::cmp::Ordering;

use super::{Adjustments, Sampled, Sampler, SamplingParams, TokenHistory, TokenLogprobs};
use crate::{LayersError, vector};

/// Tokens that top-p sorts first; an eight times larger set follows when they do not suffice.
const SORTED_FIRST: usize = 256;

/// A token and its logit relative to the largest, divided by the temperature: at most 0.
type Candidate = (u32, f32);

pub(super) fn sample(
    sampler: &Sampler,
    (history, position): (&TokenHistory, u64),
    adjustments: Adjustments<'_>,
    logits: &mut [f32],
) -> Result<Sampled, LayersError> {
    let params = &sampler.params;
    let normalizer = log_sum_exp(logits);
    let mut own_logits = adjust(adjustments, logits);
    own_logits.extend(penalise(params, history, logits));
    let largest = vector::max(logits);
    if largest == f32::NEG_INFINITY {
        return Err(LayersError::NoCandidate { vocabulary: logits.len() });
    }
    let id = if params.temperature == 0.0 {
        first_of(logits, largest)
    } else {
        let mut candidates = candidates(params, logits, largest);
        keep_top_k(params.top_k, &mut candidates);
        keep_top_p(params.top_p, &mut candidates);
        draw(&candidates, sampler.uniform(position))
    };
    let seen = own_logits.iter().find(|(seen, _)| *seen == id);
    let own_logit = seen.map_or(logits[id as usize], |&(_, logit)| logit);
    Ok(Sampled { id, logprob: (f64::from(own_logit) - normalizer) as f32 })
}

pub(super) fn logprobs(logits: &[f32], id: u32, count: usize) -> TokenLogprobs {
    let normalizer = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let numbered = (0..).zip(logits.iter().copied());
    let mut top: Vec<Candidate> = numbered.filter(|(_, logit)| !logit.is_nan()).collect();
    sort_first(count, &mut top);
    top.truncate(count);
    top.iter_mut().for_each(|(_, logit)| *logit = logprob(*logit));
    let own = logits.get(id as usize).copied().unwrap_or(f32::NAN);
    TokenLogprobs { id, logprob: logprob(own), top }
}

/// Applies mask, bans and biases; returns the tokens that can still come and have changed with the
/// logits they had.
fn adjust(adjustments: Adjustments<'_>, logits: &mut [f32]) -> Vec<(u32, f32)> {
    let Adjustments { allowed, banned, bias } = adjustments;
    if let Some(allowed) = allowed {
        allowed.apply(logits);
    }
    for &id in banned {
        logits.get_mut(id as usize).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
    }
    let mut changed = Vec::new();
    for &(id, bias) in bias {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        changed.push((id, *logit));
        *logit += bias;
    }
    changed
}

/// `ln Σ e^logit`; NaN is passed over.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = vector::max(logits);
    let mut sum = 0f64;
    // A block of exponentials is summed in float32, the blocks in float64.
    let mut block = [0f32; 256];
    for logits in logits.chunks(block.len()) {
        for (out, &logit) in block.iter_mut().zip(logits) {
            let relative = if logit == largest { 0.0 } else { logit - largest };
            *out = if relative.is_nan() { 0.0 } else { vector::exp(relative) };
        }
        sum += f64::from(vector::sum(&block[..logits.len()]));
    }
    f64::from(largest) + sum.ln()
}

/// Applies the penalties; returns the changed tokens with the logits they had.
fn penalise(
    params: &SamplingParams,
    history: &TokenHistory,
    logits: &mut [f32],
) -> Vec<(u32, f32)> {
    let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = *params;
    if repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return Vec::new();
    }
    let mut changed = Vec::new();
    for (id, count) in history.seen() {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        changed.push((id, *logit));
        *logit =
            if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        if count > 0 {
            *logit -= presence_penalty + frequency_penalty * count as f32;
        }
    }
    changed
}

fn first_of(logits: &[f32], value: f32) -> u32 {
    let index = logits.iter().position(|&logit| logit == value);
    index.unwrap_or_else(|| panic!("this is a bug: the largest logit {value} is not there")) as u32
}

/// Every token that min-p leaves, by id.
fn candidates(params: &SamplingParams, logits: &[f32], largest: f32) -> Vec<Candidate> {
    let lowest = params.min_p.ln();
    let relative = |logit: f32| {
        if logit == largest { 0.0 } else { (logit - largest) / params.temperature }
    };
    let all = logits.iter().enumerate().map(|(id, &logit)| (id as u32, relative(logit)));
    // NaN compares as false, so it is dropped with the improbable.
    all.filter(|&(_, relative)| relative > f32::NEG_INFINITY && relative >= lowest).collect()
}

/// The more probable first, of equal ones the lower id.
fn by_probability(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Moves the `count` most probable to the front, sorted.
fn sort_first(count: usize, candidates: &mut [Candidate]) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, by_probability);
    }
    let count = count.min(candidates.len());
    candidates[..count].sort_unstable_by(by_probability);
}

fn keep_top_k(top_k: usize, candidates: &mut Vec<Candidate>) {
    if top_k > 0 && top_k < candidates.len() {
        sort_first(top_k, candidates);
        candidates.truncate(top_k);
    }
}

fn keep_top_p(top_p: f32, candidates: &mut Vec<Candidate>) {
    if top_p >= 1.0 {
        return;
    }
    let limit = f64::from(top_p) * candidates.iter().map(weight).sum::<f64>();
    let mut sorted = SORTED_FIRST;
    loop {
        sort_first(sorted, candidates);
        let mut reached = 0.0;
        let crossing = candidates.iter().take(sorted).position(|candidate| {
            reached += weight(candidate);
            reached >= limit
        });
        match crossing {
            Some(index) => return candidates.truncate(index + 1),
            None if sorted >= candidates.len() => return,
            None => sorted *= 8,
        }
    }
}

fn weight(candidate: &Candidate) -> f64 {
    f64::from(vector::exp(candidate.1))
}

/// The candidate at the share `uniform` of the total weight.
fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(weight).sum();
    let mut left = uniform * total;
    for candidate in candidates {
        left -= weight(candidate);
        if left < 0.0 {
            return candidate.0;
        }
    }
    // Rounding can leave nothing at the very end; the last with any weight is meant.
    let last = candidates.iter().rev().find(|candidate| weight(candidate) > 0.0);
    last.unwrap_or_else(|| panic!("this is a bug: no token was left to draw from")).0
}
