//! The numbers of a run, by the formulas of vLLM's serving benchmark.

use super::answer::Outcome;
use crate::bench::statistics::percentile;

const MILLISECONDS: f64 = 1e3;

/// What is measured of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Sending to the first token.
    Ttft,
    /// `(latency - ttft) / (tokens - 1)`; requests with one token have none.
    Tpot,
    /// Gaps between events that carry tokens.
    Itl,
    /// Sending to the last token.
    E2el,
    /// How long the limit of concurrent requests held a request back.
    ClientQueueTime,
    /// That time and sending to the last token.
    E2elIncludingQueue,
}

impl Measure {
    /// All, in the order of the report.
    pub const ALL: [Self; 6] = [
        Self::Ttft,
        Self::Tpot,
        Self::Itl,
        Self::E2el,
        Self::ClientQueueTime,
        Self::E2elIncludingQueue,
    ];

    /// Name in keys of the result.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
            Self::ClientQueueTime => "client_queue_time",
            Self::E2elIncludingQueue => "e2el_including_client_queue",
        }
    }

    /// Name in lines of the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "TTFT",
            Self::Tpot => "TPOT",
            Self::Itl => "ITL",
            Self::E2el => "E2EL",
            Self::ClientQueueTime => "Client Queue Time",
            Self::E2elIncludingQueue => "E2EL incl. Client Queue",
        }
    }

    /// Title of its part of the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ttft => "Time to First Token",
            Self::Tpot => "Time per Output Token (excl. 1st token)",
            Self::Itl => "Inter-token Latency",
            Self::E2el => "End-to-end Latency",
            Self::ClientQueueTime => "Client-side Queueing",
            Self::E2elIncludingQueue => "Queue-inclusive End-to-end Latency",
        }
    }
}

/// A limit that a good request keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Of what: TTFT, TPOT or E2EL.
    pub measure: Measure,
    /// The limit.
    pub milliseconds: f64,
}

/// What to compute.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Measures to summarise.
    pub measures: Vec<Measure>,
    /// Percentiles of each.
    pub percentiles: Vec<f64>,
    /// Limits of a good request; none: goodput is not asked for.
    pub objectives: Vec<Objective>,
}

/// One measure over all requests, in milliseconds; zeros where nothing was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Arithmetic mean.
    pub mean: f64,
    /// Middle value.
    pub median: f64,
    /// Standard deviation of the population.
    pub std: f64,
    /// (percentile, value).
    pub percentiles: Vec<(f64, f64)>,
}

impl Statistics {
    fn of(mut seconds: Vec<f64>, percentiles: &[f64]) -> Self {
        if seconds.is_empty() {
            seconds.push(0.0);
        }
        seconds.sort_by(f64::total_cmp);
        let count = seconds.len() as f64;
        let mean = seconds.iter().sum::<f64>() / count;
        let variance = seconds.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let at = |percent: f64| percentile(&seconds, percent) * MILLISECONDS;
        Self {
            mean: mean * MILLISECONDS,
            median: at(50.0),
            std: variance.sqrt() * MILLISECONDS,
            percentiles: percentiles.iter().map(|&percent| (percent, at(percent))).collect(),
        }
    }
}

/// The numbers of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Requests that came to their end.
    pub completed: usize,
    /// The others.
    pub failed: usize,
    /// Seconds from the start of the run to the end of the last answer.
    pub duration: f64,
    /// Tokens of the prompts of completed requests.
    pub total_input: usize,
    /// Tokens of their answers.
    pub total_output: usize,
    /// Completed requests a second that kept all limits.
    pub goodput: Option<f64>,
    /// Most tokens in one second, counting one for each event.
    pub peak_tokens: usize,
    /// Most requests that were open at some time in one second.
    pub peak_concurrent: usize,
    /// The measures that were asked for.
    pub measures: Vec<(Measure, Statistics)>,
}

impl Summary {
    /// Summarises `outcomes` with `output_tokens` for each, over `duration` seconds.
    pub fn of(
        outcomes: &[Outcome],
        output_tokens: &[usize],
        duration: f64,
        wanted: &Wanted,
    ) -> Self {
        let completed: Vec<(&Outcome, usize)> = outcomes
            .iter()
            .zip(output_tokens.iter().copied())
            .filter(|(outcome, _)| outcome.succeeded())
            .collect();
        let statistics = |&measure: &Measure| {
            let values =
                completed.iter().flat_map(|(outcome, tokens)| values(measure, outcome, *tokens));
            (measure, Statistics::of(values.collect(), &wanted.percentiles))
        };
        let is_good = |(outcome, tokens): &&(&Outcome, usize)| {
            wanted.objectives.iter().all(|objective| keeps(objective, outcome, *tokens))
        };
        let good = completed.iter().filter(is_good).count();
        let (peak_tokens, peak_concurrent) = peaks(&completed);
        Self {
            completed: completed.len(),
            failed: outcomes.len() - completed.len(),
            duration,
            total_input: completed.iter().map(|(outcome, _)| outcome.prompt_tokens).sum(),
            total_output: completed.iter().map(|(_, tokens)| tokens).sum(),
            goodput: (!wanted.objectives.is_empty()).then_some(good as f64 / duration),
            peak_tokens,
            peak_concurrent,
            measures: wanted.measures.iter().map(statistics).collect(),
        }
    }

    /// Completed requests a second.
    pub fn request_throughput(&self) -> f64 {
        self.completed as f64 / self.duration
    }

    /// Tokens of answers a second.
    pub fn output_throughput(&self) -> f64 {
        self.total_output as f64 / self.duration
    }

    /// Tokens of prompts and answers a second.
    pub fn total_throughput(&self) -> f64 {
        (self.total_input + self.total_output) as f64 / self.duration
    }
}

/// The values of one request, in seconds.
pub fn values(measure: Measure, outcome: &Outcome, tokens: usize) -> Vec<f64> {
    match measure {
        Measure::Ttft => vec![outcome.ttft],
        Measure::Tpot if tokens > 1 => {
            vec![(outcome.latency - outcome.ttft) / (tokens - 1) as f64]
        }
        Measure::Tpot => Vec::new(),
        Measure::Itl => outcome.itls.clone(),
        Measure::E2el => vec![outcome.latency],
        Measure::ClientQueueTime => vec![outcome.queue_time],
        Measure::E2elIncludingQueue => vec![outcome.latency + outcome.queue_time],
    }
}

/// A request without the measured value, as one token has no TPOT, keeps the limit.
fn keeps(objective: &Objective, outcome: &Outcome, tokens: usize) -> bool {
    let limit = objective.milliseconds / MILLISECONDS;
    values(objective.measure, outcome, tokens).iter().all(|seconds| *seconds <= limit)
}

/// Most events with tokens, and most open requests, in any second since the first request.
fn peaks(completed: &[(&Outcome, usize)]) -> (usize, usize) {
    let starts = completed.iter().map(|(outcome, _)| outcome.start);
    let origin = starts.fold(f64::INFINITY, f64::min);
    let ends = completed.iter().map(|(outcome, _)| outcome.start + outcome.latency - origin);
    let seconds = ends.fold(0.0, f64::max).ceil() as usize + 1;
    let (mut tokens, mut open) = (vec![0; seconds], vec![0; seconds]);
    for (outcome, _) in completed {
        let start = outcome.start - origin;
        let mut now = start + outcome.ttft;
        tokens[now as usize] += 1;
        for gap in &outcome.itls {
            now += gap;
            // Sums of gaps may round past the end.
            tokens[(now as usize).min(seconds - 1)] += 1;
        }
        let end = (start + outcome.latency) as usize;
        open[start as usize..=end].iter_mut().for_each(|requests| *requests += 1);
    }
    let most = |counts: Vec<usize>| counts.into_iter().max().unwrap_or(0);
    (most(tokens), most(open))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three requests, worked by hand. Seconds:
    /// A sent 0.0, tokens at 0.5 0.75 1.25 1.5: ttft .5, latency 1.5, tpot (1.5-.5)/3 = 1/3
    /// B sent 0.5, tokens at 1.5 and 2.5 (4 tokens in 2 events): ttft 1, latency 2, tpot 1/3
    /// C sent 2.0, one token at 2.25: ttft .25, latency .25, no tpot
    fn timeline() -> (Vec<Outcome>, Vec<usize>) {
        let outcome = |start, ttft, itls: &[f64], prompt_tokens| Outcome {
            start,
            ttft,
            itls: itls.to_vec(),
            latency: ttft + itls.iter().sum::<f64>(),
            queue_time: start / 2.0,
            prompt_tokens,
            ..Outcome::default()
        };
        let outcomes = vec![
            outcome(0.0, 0.5, &[0.25, 0.5, 0.25], 10),
            outcome(0.5, 1.0, &[1.0], 20),
            Outcome { error: Some("HTTP 500".to_owned()), ..outcome(0.6, 9.0, &[9.0], 99) },
            outcome(2.0, 0.25, &[], 30),
        ];
        (outcomes, vec![4, 4, 0, 1])
    }

    fn summary(measures: &[Measure], objectives: &[(Measure, f64)]) -> Summary {
        let (outcomes, tokens) = timeline();
        let objective = |&(measure, milliseconds)| Objective { measure, milliseconds };
        let wanted = Wanted {
            measures: measures.to_vec(),
            percentiles: vec![25.0, 99.0],
            objectives: objectives.iter().map(objective).collect(),
        };
        Summary::of(&outcomes, &tokens, 2.5, &wanted)
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    fn check(measure: Measure, mean: f64, median: f64, std: f64, p25: f64, p99: f64) {
        let summary = summary(&[measure], &[]);
        let (found, statistics) = &summary.measures[0];
        assert_eq!(*found, measure);
        near(statistics.mean, mean);
        near(statistics.median, median);
        near(statistics.std, std);
        near(statistics.percentiles[0].1, p25);
        near(statistics.percentiles[1].1, p99);
    }

    #[test]
    fn counts_and_throughputs() {
        let summary = summary(&[], &[]);
        assert_eq!((summary.completed, summary.failed), (3, 1));
        assert_eq!((summary.total_input, summary.total_output), (60, 9));
        near(summary.request_throughput(), 1.2);
        near(summary.output_throughput(), 3.6);
        near(summary.total_throughput(), 27.6);
        assert_eq!(summary.goodput, None);
    }

    #[test]
    fn time_to_first_token() {
        // 250, 500, 1000: mean 1750/3; std of (-1000/3, -250/3, 1250/3) = sqrt(2625000/27).
        check(Measure::Ttft, 1750.0 / 3.0, 500.0, (2_625_000.0f64 / 27.0).sqrt(), 375.0, 990.0);
    }

    #[test]
    fn time_per_output_token_leaves_single_tokens_out() {
        check(Measure::Tpot, 1000.0 / 3.0, 1000.0 / 3.0, 0.0, 1000.0 / 3.0, 1000.0 / 3.0);
    }

    #[test]
    fn inter_token_latency_takes_all_gaps_together() {
        // 250, 250, 500, 1000: mean 500, deviations -250 -250 0 500: variance 93750.
        check(Measure::Itl, 500.0, 375.0, 93_750.0f64.sqrt(), 250.0, 985.0);
    }

    #[test]
    fn end_to_end_with_and_without_the_queue() {
        // 250, 1500, 2000: mean 1250, deviations -1000 250 750: variance 1625000/3.
        check(Measure::E2el, 1250.0, 1500.0, (1_625_000.0f64 / 3.0).sqrt(), 875.0, 1990.0);
        // Queue 0, 250, 1000.
        let queue_std = (1_625_000.0f64 / 9.0).sqrt();
        check(Measure::ClientQueueTime, 1250.0 / 3.0, 250.0, queue_std, 125.0, 985.0);
        // 1500, 2250, 1250.
        let both = (1_625_000.0f64 / 9.0).sqrt();
        check(Measure::E2elIncludingQueue, 5000.0 / 3.0, 1500.0, both, 1375.0, 2235.0);
    }

    #[test]
    fn goodput_needs_all_limits() {
        let goodput = |limits: &[(Measure, f64)]| summary(&[], limits).goodput.unwrap() * 2.5;
        near(goodput(&[(Measure::Ttft, 500.0)]), 2.0);
        near(goodput(&[(Measure::Ttft, 1000.0), (Measure::E2el, 1999.0)]), 2.0);
        near(goodput(&[(Measure::Tpot, 333.0)]), 1.0);
        near(goodput(&[(Measure::Tpot, 334.0)]), 3.0);
        near(goodput(&[(Measure::E2el, 0.0)]), 0.0);
    }

    #[test]
    fn peaks_are_by_the_second() {
        // Tokens: second 0 has .5 .75, second 1 has 1.25 1.5 1.5, second 2 has 2.5 2.25.
        // Requests: A in seconds 0 1, B in 0 1 2, C in 2.
        let summary = summary(&[], &[]);
        assert_eq!((summary.peak_tokens, summary.peak_concurrent), (3, 2));
    }

    #[test]
    fn nothing_gives_zeros() {
        let wanted = Wanted {
            measures: vec![Measure::Ttft, Measure::Itl],
            percentiles: vec![99.0],
            objectives: Vec::new(),
        };
        let failed = Outcome { error: Some("refused".to_owned()), ..Outcome::default() };
        let summary = Summary::of(&[failed], &[0], 1.0, &wanted);
        assert_eq!((summary.completed, summary.failed, summary.peak_tokens), (0, 1, 0));
        assert!(summary.measures.iter().all(|(_, statistics)| statistics.mean == 0.0));
    }
}
