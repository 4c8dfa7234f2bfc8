//! Routing on the CPU: one pass for the scores, one for a partial selection that keeps the best
//! `K` in order, tokens spread over the cores when there are enough of them.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Logits, Normalization, Router, RouterConfig, Routing, Scoring, ScoringFunction,
    SelectedFunction, Selection, SelectionBias,
};
use crate::{MoeError, quant::Element};

/// Logits below which one core is faster than waking the others: 0.05 to 0.2 ms of work.
const PARALLEL_LOGITS_MIN: usize = 1 << 15;

/// Keeps the sum of weights away from 0 in the grouped form.
const GROUPED_EPSILON: f32 = 1e-20;

/// Routes every token. Allocates nothing once `out` has seen a batch of this size.
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
    let (config, tokens) = (&router.config, logits.tokens);
    let slots = config.slots();
    let identities = if config.zero_experts() > 0 { tokens } else { 0 };
    out.topk.resize(tokens, slots);
    out.identity_weights.resize(identities, 0.0);

    let parallel = logits.values.len() >= PARALLEL_LOGITS_MIN;
    let workers = if parallel { rayon::current_num_threads().clamp(1, tokens) } else { 1 };
    let run = tokens.div_ceil(workers).max(1);
    let scratch_len = Scratch::len(config);
    out.scratch.resize(workers * scratch_len, 0.0);

    if workers == 1 {
        let (ids, weights) = (&mut out.topk.ids, &mut out.topk.weights);
        route_run(router, logits, 0, (ids, weights), &mut out.scratch);
    } else {
        let ids = out.topk.ids.par_chunks_mut(run * slots);
        let weights = out.topk.weights.par_chunks_mut(run * slots);
        let scratch = out.scratch.par_chunks_mut(scratch_len);
        let runs = ids.zip(weights).zip(scratch).enumerate();
        runs.for_each(|(index, (rows, scratch))| {
            route_run(router, logits, index * run, rows, scratch);
        });
    }
    if config.zero_experts() > 0 {
        divert_zero_experts(config, out);
    }
    Ok(())
}

/// Routes consecutive tokens from `first_token` on, as many as there are rows.
fn route_run<T: Element>(
    router: &Router,
    logits: &Logits<'_, T>,
    first_token: usize,
    (ids, weights): (&mut [i32], &mut [f32]),
    scratch: &mut [f32],
) {
    let config = &router.config;
    let mut scratch = Scratch::new(config, scratch);
    let ids = ids.chunks_exact_mut(config.slots());
    let weights = weights.chunks_exact_mut(config.slots());
    for (token, (ids, weights)) in (first_token..).zip(ids.zip(weights)) {
        if token >= logits.unpadded_tokens {
            ids.fill(-1);
            weights.fill(0.0);
            continue;
        }
        let (routed_ids, shared_ids) = ids.split_at_mut(config.top_k());
        let (routed_weights, shared_weights) = weights.split_at_mut(config.top_k());
        let row = logits.row(token, config.num_logits());
        score(config.method().scoring, row, scratch.scores);
        select_experts(router, &mut scratch, routed_ids);
        weigh(config, scratch.scores, routed_ids, routed_weights);
        shared_weights.fill(config.fused_shared_experts().weight);
        for (id, shared) in shared_ids.iter_mut().zip(config.num_experts()..) {
            *id = shared as i32;
        }
    }
}

/// Working memory of one core.
struct Scratch<'a> {
    /// Score of each logit of the current token.
    scores: &'a mut [f32],
    /// Keys of the experts selected so far, descending.
    best_keys: &'a mut [f32],
    /// What each group is worth; empty without groups.
    group_keys: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(config: &RouterConfig) -> usize {
        config.num_logits() + config.top_k() + groups(config)
    }

    fn new(config: &RouterConfig, memory: &'a mut [f32]) -> Self {
        let (scores, memory) = memory.split_at_mut(config.num_logits());
        let (best_keys, group_keys) = memory.split_at_mut(config.top_k());
        Self { scores, best_keys, group_keys }
    }
}

fn groups(config: &RouterConfig) -> usize {
    match config.method().selection {
        Selection::TopK => 0,
        Selection::Grouped { groups, .. } => groups,
    }
}

fn score<T: Element>(scoring: Scoring, logits: &[T], scores: &mut [f32]) {
    for (score, logit) in scores.iter_mut().zip(logits) {
        *score = logit.to_f32();
    }
    match scoring {
        Scoring::BeforeSelection(ScoringFunction::Softmax, _) => {
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|x| *x = (*x - max).exp());
            // In float64 and rounded once: a tie that rounding makes or breaks changes ids, and in
            // float32 every order of the terms would round differently.
            let sum: f64 = scores.iter().copied().map(f64::from).sum();
            scores.iter_mut().for_each(|x| *x = finite_or(*x / sum as f32, 0.0));
        }
        Scoring::BeforeSelection(ScoringFunction::Sigmoid, _) => {
            scores.iter_mut().for_each(|x| *x = finite_or(sigmoid(*x), 0.0));
        }
        Scoring::BeforeSelection(ScoringFunction::SqrtSoftplus, _) => {
            scores.iter_mut().for_each(|x| *x = finite_or(softplus(*x).sqrt(), 0.0));
        }
        Scoring::AfterSelection(_) => {
            scores.iter_mut().for_each(|x| *x = finite_or(*x, f32::MIN));
        }
    }
}

fn finite_or(value: f32, otherwise: f32) -> f32 {
    if value.is_finite() { value } else { otherwise }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))` without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn select_experts(router: &Router, scratch: &mut Scratch<'_>, ids: &mut [i32]) {
    match router.config.method().bias {
        SelectionBias::None => select_by_key(router, scratch, ids, |scores, id| scores[id]),
        SelectionBias::PerExpert => {
            let bias = &router.bias[..];
            select_by_key(router, scratch, ids, |scores, id| scores[id] + bias[id]);
        }
    }
}

fn select_by_key(
    router: &Router,
    scratch: &mut Scratch<'_>,
    ids: &mut [i32],
    key: impl Fn(&[f32], usize) -> f32,
) {
    let Scratch { scores, best_keys, group_keys } = scratch;
    best_keys.fill(f32::NEG_INFINITY);
    let method = router.config.method();
    let Selection::Grouped { groups, groups_kept } = method.selection else {
        keep_best(0..scores.len(), |id| key(scores, id), best_keys, ids);
        return;
    };
    let members = |group| {
        let group_size = scores.len() / groups;
        group * group_size..(group + 1) * group_size
    };
    let sums_two = method.bias == SelectionBias::PerExpert && members(0).len() > 1;
    for (group, group_key) in group_keys.iter_mut().enumerate() {
        let (best, second) = two_best(members(group).map(|id| key(scores, id)));
        *group_key = if sums_two { best + second } else { best };
    }
    let is_kept = |group: &usize| {
        let own = group_keys[*group];
        let beats = |(other, &key): (usize, &f32)| key > own || (key == own && other < *group);
        group_keys.iter().enumerate().filter(|&other| beats(other)).count() < groups_kept
    };
    for group in (0..groups).filter(is_kept) {
        keep_best(members(group), |id| key(scores, id), best_keys, ids);
    }
}

fn two_best(keys: impl Iterator<Item = f32>) -> (f32, f32) {
    keys.fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(best, second), key| {
        let loser = if key > best { best } else { key };
        (if key > best { key } else { best }, if loser > second { loser } else { second })
    })
}

/// Moves the ids of the largest keys into `ids`, descending, where they compete with those already
/// there. Candidates ascend from call to call, so of equal keys the lower id comes first and a
/// later one must be strictly larger to pass it. Keys are finite.
fn keep_best(
    candidates: Range<usize>,
    key: impl Fn(usize) -> f32,
    best_keys: &mut [f32],
    ids: &mut [i32],
) {
    let last = best_keys.len() - 1;
    for id in candidates {
        let key = key(id);
        if key <= best_keys[last] {
            continue;
        }
        let mut slot = last;
        while slot > 0 && key > best_keys[slot - 1] {
            best_keys[slot] = best_keys[slot - 1];
            ids[slot] = ids[slot - 1];
            slot -= 1;
        }
        best_keys[slot] = key;
        ids[slot] = id as i32;
    }
}

fn weigh(config: &RouterConfig, scores: &[f32], ids: &[i32], weights: &mut [f32]) {
    for (weight, &id) in weights.iter_mut().zip(ids) {
        *weight = scores[id as usize];
    }
    match config.method().scoring {
        Scoring::BeforeSelection(_, Normalization::AsIs) => {}
        Scoring::BeforeSelection(_, Normalization::Renormalize) => {
            let sum: f32 = weights.iter().sum();
            let divisor = match config.method().selection {
                Selection::Grouped { .. } => sum + GROUPED_EPSILON,
                Selection::TopK if sum > 0.0 => sum,
                Selection::TopK => 1.0,
            };
            weights.iter_mut().for_each(|weight| *weight /= divisor);
        }
        Scoring::AfterSelection(function) => weigh_selected_logits(function, weights),
    }
    let factor = config.routed_scaling_factor();
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

/// Turns the selected logits, descending, into weights. `f32::MIN` stands for an unusable logit.
fn weigh_selected_logits(function: SelectedFunction, weights: &mut [f32]) {
    let usable = weights.iter().take_while(|&&logit| logit > f32::MIN).count();
    let (weights, unusable) = weights.split_at_mut(usable);
    unusable.fill(0.0);
    match function {
        SelectedFunction::Logit => {}
        SelectedFunction::Sigmoid => weights.iter_mut().for_each(|x| *x = sigmoid(*x)),
        SelectedFunction::Softmax => {
            let max = weights.first().copied().unwrap_or(0.0);
            weights.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Moves the weight of zero experts to the identity and points their slots at id 0, weight 0.
fn divert_zero_experts(config: &RouterConfig, out: &mut Routing) {
    let ids = out.topk.ids.chunks_exact_mut(config.slots());
    let weights = out.topk.weights.chunks_exact_mut(config.slots());
    for ((ids, weights), identity) in ids.zip(weights).zip(&mut out.identity_weights) {
        *identity = 0.0;
        for (id, weight) in ids.iter_mut().zip(weights).take(config.top_k()) {
            if *id >= config.num_experts() as i32 {
                *identity += *weight;
                (*id, *weight) = (0, 0.0);
            }
        }
    }
}
