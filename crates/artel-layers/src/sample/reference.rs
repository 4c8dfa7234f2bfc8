//! The definition, in float64: the probability of every token, by sorting the whole vocabulary.

use std::cmp::Ordering;

use super::{Adjustments, SamplingParams, TokenHistory};

/// The logits after a request's own changes.
pub fn adjusted(adjustments: &Adjustments<'_>, logits: &[f32]) -> Vec<f32> {
    let Adjustments { allowed, banned, bias } = adjustments;
    let adjust = |(id, &logit): (u32, &f32)| {
        let forbidden = banned.contains(&id) || allowed.is_some_and(|mask| !mask.is_allowed(id));
        let bias = bias.iter().find(|(biased, _)| *biased == id).map_or(0.0, |(_, bias)| *bias);
        if forbidden { f32::NEG_INFINITY } else { logit + bias }
    };
    (0..).zip(logits).map(adjust).collect()
}

/// Probability of each token of the vocabulary; greedy is certain of one. Empty when no token can
/// be chosen.
pub fn probabilities(params: &SamplingParams, history: &TokenHistory, logits: &[f32]) -> Vec<f64> {
    let logits = penalised(params, history, logits);
    let mut order: Vec<usize> =
        (0..logits.len()).filter(|&id| logits[id] > f64::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal));
    let Some(&best) = order.first() else { return Vec::new() };
    let weight = |id: usize| {
        let relative = logits[id] - logits[best];
        // Infinity minus itself is NaN, and so is zero by zero.
        if logits[id] == logits[best] {
            1.0
        } else {
            (relative / f64::from(params.temperature)).exp()
        }
    };
    if params.temperature == 0.0 {
        order.truncate(1);
    }
    order.retain(|&id| weight(id) >= f64::from(params.min_p));
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut before = 0.0;
    order.retain(|&id| {
        let keep = before < f64::from(params.top_p) * total;
        before += weight(id);
        keep
    });
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for &id in &order {
        probabilities[id] = weight(id) / total;
    }
    probabilities
}

fn penalised(params: &SamplingParams, history: &TokenHistory, logits: &[f32]) -> Vec<f64> {
    let clean = |logit: f32| if logit.is_nan() { f64::NEG_INFINITY } else { f64::from(logit) };
    let mut logits: Vec<f64> = logits.iter().map(|&logit| clean(logit)).collect();
    for (id, logit) in logits.iter_mut().enumerate() {
        let count = history.output.get(&(id as u32)).copied().unwrap_or(0);
        if count > 0 || history.prompt.contains(&(id as u32)) {
            let penalty = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        *logit -= f64::from(params.frequency_penalty) * f64::from(count);
        *logit -= if count > 0 { f64::from(params.presence_penalty) } else { 0.0 };
    }
    logits
}
