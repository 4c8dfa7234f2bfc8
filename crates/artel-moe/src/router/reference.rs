//! The definition of routing. Scores and keys are float32 because they decide ids, so every
//! implementation must round them alike; the rest is float64 and naive.

use super::{
    Logits, Normalization, Router, Routing, Scoring, ScoringFunction, SelectedFunction, Selection,
    SelectionBias,
};
use crate::{MoeError, quant::Element};

/// Routes every token. Slow and plain.
///
/// # Errors
/// [`MoeError::Shape`] when the logits are not `[T, E]`, [`MoeError::Config`] when more tokens are
/// unpadded than there are.
pub fn route<T: Element>(
    router: &Router,
    logits: &Logits<'_, T>,
    out: &mut Routing,
) -> Result<(), MoeError> {
    router.check(logits)?;
    out.topk.top_k = router.config.slots();
    out.topk.ids.clear();
    out.topk.weights.clear();
    out.identity_weights.clear();
    for token in 0..logits.tokens {
        let row = logits.row(token, router.config.num_logits());
        let logits_row: Vec<f32> = row.iter().map(|logit| logit.to_f32()).collect();
        let padding = token >= logits.unpadded_tokens;
        let (slots, identity) = if padding {
            (vec![(-1, 0.0); router.config.slots()], 0.0)
        } else {
            route_token(router, &logits_row)
        };
        out.topk.ids.extend(slots.iter().map(|&(id, _)| id));
        out.topk.weights.extend(slots.iter().map(|&(_, weight)| weight as f32));
        if router.config.zero_experts() > 0 {
            out.identity_weights.push(identity as f32);
        }
    }
    Ok(())
}

/// (id, weight) of each slot and the identity weight.
fn route_token(router: &Router, logits: &[f32]) -> (Vec<(i32, f64)>, f64) {
    let config = &router.config;
    let scores = scores(config.method().scoring, logits);
    let keys = keys(router, &scores);
    let mut candidates = selectable(router, &keys);
    // Stable: of equal keys the lower id stays first.
    candidates.sort_by(|&a, &b| keys[b].partial_cmp(&keys[a]).expect("keys are never NaN"));
    candidates.truncate(config.top_k());

    let mut identity = 0.0;
    let mut slots = Vec::new();
    let weights = weights(router, &scores, &candidates);
    for (expert, weight) in candidates.into_iter().zip(weights) {
        let scaled = weight * f64::from(config.routed_scaling_factor());
        if expert < config.num_experts() {
            slots.push((expert as i32, scaled));
        } else {
            slots.push((0, 0.0));
            identity += scaled;
        }
    }
    let shared = config.fused_shared_experts();
    for index in 0..shared.count {
        slots.push(((config.num_experts() + index) as i32, f64::from(shared.weight)));
    }
    (slots, identity)
}

fn scores(scoring: Scoring, logits: &[f32]) -> Vec<f32> {
    let function = match scoring {
        Scoring::BeforeSelection(function, _) => function,
        Scoring::AfterSelection(_) => {
            let usable = |&x: &f32| if x.is_finite() { x } else { f32::MIN };
            return logits.iter().map(usable).collect();
        }
    };
    let raw: Vec<f32> = match function {
        ScoringFunction::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        ScoringFunction::SqrtSoftplus => {
            logits.iter().map(|x| (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()).collect()
        }
        ScoringFunction::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exponentials: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
            // In float64, so that the order of the terms does not show in the rounded sum.
            let sum: f64 = exponentials.iter().copied().map(f64::from).sum();
            exponentials.iter().map(|exponential| exponential / sum as f32).collect()
        }
    };
    raw.iter().map(|&score| if score.is_finite() { score } else { 0.0 }).collect()
}

fn keys(router: &Router, scores: &[f32]) -> Vec<f32> {
    match router.config.method().bias {
        SelectionBias::None => scores.to_vec(),
        SelectionBias::PerExpert => {
            scores.iter().zip(&router.bias).map(|(score, bias)| score + bias).collect()
        }
    }
}

/// Ids of the experts that may be selected, ascending.
fn selectable(router: &Router, keys: &[f32]) -> Vec<usize> {
    let Selection::Grouped { groups, groups_kept } = router.config.method().selection else {
        return (0..keys.len()).collect();
    };
    let group_size = keys.len() / groups;
    let group_key = |group: usize| {
        let mut members = keys[group * group_size..][..group_size].to_vec();
        members.sort_by(|a, b| b.partial_cmp(a).expect("keys are never NaN"));
        match router.config.method().bias {
            SelectionBias::None => members[0],
            SelectionBias::PerExpert => members.iter().take(2).sum(),
        }
    };
    let mut best: Vec<(usize, f32)> = (0..groups).map(|group| (group, group_key(group))).collect();
    best.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("keys are never NaN"));
    let kept: Vec<usize> = best[..groups_kept].iter().map(|&(group, _)| group).collect();
    (0..keys.len()).filter(|expert| kept.contains(&(expert / group_size))).collect()
}

fn weights(router: &Router, scores: &[f32], selected: &[usize]) -> Vec<f64> {
    let picked: Vec<f64> = selected.iter().map(|&expert| f64::from(scores[expert])).collect();
    let unusable = f64::from(f32::MIN);
    match router.config.method().scoring {
        Scoring::BeforeSelection(_, Normalization::AsIs) => picked,
        Scoring::BeforeSelection(_, Normalization::Renormalize) => {
            let sum: f64 = picked.iter().sum();
            let divisor = match router.config.method().selection {
                Selection::Grouped { .. } => sum + 1e-20,
                Selection::TopK if sum > 0.0 => sum,
                Selection::TopK => 1.0,
            };
            picked.iter().map(|score| score / divisor).collect()
        }
        Scoring::AfterSelection(function) => {
            let max = picked.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 =
                picked.iter().filter(|&&x| x > unusable).map(|x| (x - max).exp()).sum();
            let weight = |x: f64| match function {
                _ if x <= unusable => 0.0,
                SelectedFunction::Logit => x,
                SelectedFunction::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                SelectedFunction::Softmax => (x - max).exp() / total,
            };
            picked.iter().map(|&x| weight(x)).collect()
        }
    }
}
