//! What the engine does, in numbers.

use std::time::Duration;

use crate::event::FinishReason;
use crate::ranks::RankMetrics;
use crate::runner::RunReport;

/// Steps after which the older half of what counts as recent is forgotten.
const RECENT_STEPS: u64 = 256;

/// What an engine does and has done, as of its latest step.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests that have a place in the batch.
    pub running: usize,
    /// Requests that wait for one, those that had to give way included.
    pub waiting: usize,
    /// Blocks that a request owns.
    pub kv_blocks_used: usize,
    /// All blocks.
    pub kv_blocks_total: usize,
    /// Tokens that were looked for in the cache as their requests got a place.
    pub prefix_cache_queries: u64,
    /// Those of them that were there.
    pub prefix_cache_hits: u64,
    /// Requests that had to give their blocks back and begin anew.
    pub preemptions: u64,
    /// Tokens of prompts of the requests that got a place.
    pub prompt_tokens: u64,
    /// Tokens produced.
    pub generated_tokens: u64,
    /// Requests that ended, by reason.
    pub finished: FinishedCounts,
    /// Steps computed.
    pub steps: u64,
    /// The latest step.
    pub last_step: StepMetrics,
    /// Time of all steps.
    pub total: StepTimes,
    /// What the experts did.
    pub experts: ExpertMetrics,
    /// The ranks that hold them, where there are several.
    pub ranks: Option<RankMetrics>,
}

/// Requests that ended, by [`FinishReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FinishedCounts {
    /// By a stop string or token.
    pub stop: u64,
    /// At their length.
    pub length: u64,
    /// Because nobody wanted the answer any more.
    pub cancelled: u64,
    /// With the engine.
    pub shut_down: u64,
    /// With an error.
    pub failed: u64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepMetrics {
    /// New tokens, prompts and answers together.
    pub tokens: usize,
    /// Sequences that took part.
    pub sequences: usize,
    /// Its time.
    pub times: StepTimes,
    /// Experts of a layer that had a token, in the latest step for which that is known; the mean over
    /// the layers with experts.
    pub active_experts: f64,
    /// How the experts were served: assignment and kernel.
    pub path: String,
}

/// Where the time of steps went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTimes {
    /// Choosing tokens and giving out blocks.
    pub schedule: Duration,
    /// Computing, waiting for a device included.
    pub run: Duration,
    /// The part of `run` in which there was nothing to do but wait for a device.
    pub wait: Duration,
    /// Turning tokens into text and sending it.
    pub postprocess: Duration,
}

/// Tokens of each expert, `[layers with experts][experts]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpertMetrics {
    /// Since the start.
    pub tokens: Vec<Vec<u64>>,
    /// Of the latest 256 to 512 steps.
    pub recent: Vec<Vec<u64>>,
    /// Experts of each layer that had a token in a step, summed over the steps that were looked at.
    pub active: Vec<u64>,
    /// Those of them in which a layer had tokens.
    pub active_steps: Vec<u64>,
    /// The newer part of those.
    newer: Vec<Vec<u64>>,
}

impl StepTimes {
    /// All of it.
    pub fn sum(&self) -> Duration {
        self.schedule + self.run + self.postprocess
    }

    /// All of it but waiting for a device: what the host does for a step on one.
    pub fn host(&self) -> Duration {
        self.sum().saturating_sub(self.wait)
    }
}

impl Metrics {
    /// Adds a step.
    pub(crate) fn record(&mut self, step: StepMetrics, report: RunReport<'_>) {
        self.steps += 1;
        self.total.schedule += step.times.schedule;
        self.total.run += step.times.run;
        self.total.wait += step.times.wait;
        self.total.postprocess += step.times.postprocess;
        let forget = self.steps.is_multiple_of(RECENT_STEPS);
        self.experts.record(report.expert_pairs, report.expert_steps, forget);
        let active_experts = match (report.expert_pairs, report.expert_steps) {
            (pairs @ [_, ..], 1) => {
                let active = pairs.iter().flatten().filter(|pairs| **pairs > 0).count();
                active as f64 / pairs.len() as f64
            }
            _ => self.last_step.active_experts,
        };
        if self.last_step.path != report.path {
            self.last_step.path = report.path.to_owned();
        }
        let path = std::mem::take(&mut self.last_step.path);
        self.last_step = StepMetrics { active_experts, path, ..step };
        self.ranks = report.ranks.cloned();
    }
}

impl FinishedCounts {
    pub(crate) fn record(&mut self, reason: &FinishReason) {
        *match reason {
            FinishReason::Stop(_) => &mut self.stop,
            FinishReason::Length => &mut self.length,
            FinishReason::Cancelled => &mut self.cancelled,
            FinishReason::ShutDown => &mut self.shut_down,
            FinishReason::Failed(_) => &mut self.failed,
        } += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.stop + self.length + self.cancelled + self.shut_down + self.failed
    }
}

impl ExpertMetrics {
    fn record(&mut self, pairs: &[Vec<i32>], steps: u64, forget: bool) {
        for counts in [&mut self.tokens, &mut self.recent, &mut self.newer] {
            counts.resize_with(counts.len().max(pairs.len()), Vec::new);
            for (counts, pairs) in counts.iter_mut().zip(pairs) {
                counts.resize(pairs.len(), 0);
                counts.iter_mut().zip(pairs).for_each(|(count, pairs)| *count += *pairs as u64);
            }
        }
        if forget {
            self.recent = std::mem::take(&mut self.newer);
        }
        // Of several steps together nobody knows which experts each of them used.
        if steps != 1 {
            return;
        }
        self.active.resize(self.tokens.len(), 0);
        self.active_steps.resize(self.tokens.len(), 0);
        for (layer, pairs) in pairs.iter().enumerate() {
            let active = pairs.iter().filter(|pairs| **pairs > 0).count() as u64;
            self.active[layer] += active;
            self.active_steps[layer] += u64::from(active > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_counted_since_the_start_and_recently() {
        let mut metrics = Metrics::default();
        let pairs = [vec![1, 0, 2], vec![3, 0, 0]];
        for step in 1..=700u64 {
            let report =
                RunReport { expert_pairs: &pairs, expert_steps: 1, path: "direct", ranks: None };
            metrics.record(StepMetrics { tokens: 3, ..StepMetrics::default() }, report);
            assert_eq!(metrics.experts.tokens[1], [3 * step, 0, 0]);
            assert_eq!(metrics.experts.active, [2 * step, step]);
            assert_eq!(metrics.experts.active_steps, [step, step]);
            let recent = metrics.experts.recent[0][0];
            assert!(recent == step || (256..=512).contains(&recent), "{recent} of {step}");
        }
        assert_eq!((metrics.steps, metrics.last_step.tokens), (700, 3));
        assert_eq!(
            (metrics.last_step.active_experts, &metrics.last_step.path[..]),
            (1.5, "direct")
        );
        let several = RunReport { expert_pairs: &pairs, expert_steps: 9, path: "", ranks: None };
        metrics.record(StepMetrics::default(), several);
        let nothing = RunReport { expert_pairs: &[], expert_steps: 0, path: "", ranks: None };
        metrics.record(StepMetrics::default(), nothing);
        assert_eq!(metrics.experts.tokens[1], [3 * 701, 0, 0]);
        assert_eq!(metrics.experts.active, [2 * 700, 700], "unknown of several steps");
        assert_eq!(metrics.last_step.active_experts, 1.5);
    }
}
