//! What the steps of a batch take: the time to its first tokens, and to each further one.

use std::time::{Duration, Instant};

use artel_engine::Engine;
use serde_json::{Value, json};

use crate::bench::statistics::percentile;

/// One step as it was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    /// New tokens.
    tokens: usize,
    /// Sequences.
    sequences: usize,
    /// Work of the host.
    host: Duration,
    /// When it was complete, since the batch was asked for.
    at: Duration,
}

/// Watches an engine while it works off a batch of so many sequences.
#[derive(Debug)]
pub struct Watch {
    started: Instant,
    sequences: usize,
    seen: u64,
    latest: Option<Step>,
    /// When the latest step with more than a token of a sequence was complete.
    prompts_done: Option<Duration>,
}

/// Of all batches.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepTimes {
    /// Seconds from the request until every sequence has its first token, one for each batch.
    first_tokens: Vec<f64>,
    /// Seconds between two steps that decode one token of each sequence.
    decodes: Vec<f64>,
    /// Seconds of the host's work in those.
    host: Vec<f64>,
    /// Experts of a layer that were used in those, as far as that is known.
    active_experts: Vec<f64>,
}

impl Watch {
    /// Begins with a batch.
    pub fn new(engine: &Engine, sequences: usize) -> Self {
        let seen = engine.read_metrics(|metrics| metrics.steps);
        Self { started: Instant::now(), sequences, seen, latest: None, prompts_done: None }
    }

    /// Looks at what the engine has completed since.
    pub fn look(&mut self, engine: &Engine, times: &mut StepTimes) {
        let at = self.started.elapsed();
        let (steps, step, active_experts) = engine.read_metrics(|metrics| {
            let step = &metrics.last_step;
            let (tokens, sequences, host) = (step.tokens, step.sequences, step.times.host());
            (metrics.steps, Step { tokens, sequences, host, at }, step.active_experts)
        });
        if steps == self.seen {
            return;
        }
        self.seen = steps;
        if step.tokens > step.sequences {
            self.prompts_done = Some(at);
        }
        let is_full = |step: &Step| [step.tokens, step.sequences] == [self.sequences; 2];
        if let Some(before) = self.latest.filter(|before| is_full(before) && is_full(&step)) {
            times.decodes.push((at - before.at).as_secs_f64());
            times.host.push(step.host.as_secs_f64());
            times.active_experts.push(active_experts);
        }
        self.latest = Some(step);
    }

    /// The batch is complete.
    pub fn end(self, times: &mut StepTimes) {
        times.first_tokens.extend(self.prompts_done.map(|at| at.as_secs_f64()));
    }
}

impl StepTimes {
    /// Adds those of another batch.
    pub fn extend(&mut self, other: Self) {
        self.first_tokens.extend(other.first_tokens);
        self.decodes.extend(other.decodes);
        self.host.extend(other.host);
        self.active_experts.extend(other.active_experts);
    }

    /// Median seconds from the request until every sequence has its first token.
    pub fn first_token(&self) -> Option<f64> {
        median(&self.first_tokens)
    }

    /// Median seconds of a step that decodes one token of each sequence.
    pub fn decode(&self) -> Option<f64> {
        median(&self.decodes)
    }

    /// Median seconds that the host works for such a step.
    pub fn host(&self) -> Option<f64> {
        median(&self.host)
    }

    /// Mean experts of a layer that such a step uses.
    pub fn active_experts(&self) -> Option<f64> {
        let known = self.active_experts.iter().filter(|experts| **experts > 0.0);
        let (sum, count) = known.fold((0.0, 0), |(sum, count), experts| (sum + experts, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// For the record.
    pub fn value(&self) -> Value {
        json!({
            "first_token_seconds": self.first_token(),
            "decode_steps": self.decodes.len(),
            "decode_step_seconds": self.decode(),
            "decode_step_host_seconds": self.host(),
            "decode_step_active_experts": self.active_experts(),
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| percentile(&sorted, 50.0))
}
