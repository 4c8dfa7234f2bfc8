//! How long one batch takes from its prompts to its last tokens, with the report and JSON keys of
//! vLLM's latency benchmark.

use std::fmt::Write;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use artel_engine::{Engine, Event, EventStream, FinishReason};
use indicatif::ProgressBar;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::Job;
use super::floors::{Floor, Floors};
use super::steps::{StepTimes, Watch};
use crate::bench::statistics::percentile;

/// What is reported besides the mean.
const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];

/// One batch, and how often it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Tokens of each prompt.
    pub input_tokens: usize,
    /// Tokens of each answer.
    pub output_tokens: usize,
    /// Prompts in the batch.
    pub batch_size: usize,
    /// Answers to each prompt.
    pub answers: usize,
    /// Runs before the measurement.
    pub warmups: usize,
    /// Runs that are measured.
    pub iterations: usize,
    /// Seed of prompts and answers.
    pub seed: u64,
}

/// Seconds of each run, and of its steps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Latencies {
    seconds: Vec<f64>,
    steps: StepTimes,
}

/// Runs the batch; prompts are tokens drawn from `ids`.
///
/// # Errors
/// When a size is 0 or does not fit the context, or the engine fails.
pub fn measure(
    engine: &mut Engine,
    ids: &[u32],
    options: &Options,
    bar: &ProgressBar,
) -> Result<Latencies> {
    ensure!(options.iterations > 0, "--num-iters is 0: there is nothing to measure");
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut latencies = Latencies::default();
    for run in 0..options.warmups + options.iterations {
        // New prompts for each run: a cache of prefixes must not have seen them.
        let jobs = jobs(options, ids, &mut random);
        let (seconds, steps) = work_off(engine, &jobs)?;
        if run >= options.warmups {
            latencies.seconds.push(seconds);
            latencies.steps.extend(steps);
        }
        bar.inc(1);
    }
    Ok(latencies)
}

/// All jobs together, watched step by step.
fn work_off(engine: &mut Engine, jobs: &[Job]) -> Result<(f64, StepTimes)> {
    let started = Instant::now();
    let mut watch = Watch::new(engine, jobs.len());
    let mut steps = StepTimes::default();
    let streams =
        jobs.iter().map(|job| engine.submit(job.request())).collect::<Result<Vec<_>, _>>()?;
    while engine.has_work() {
        engine.step();
        watch.look(engine, &mut steps);
    }
    watch.end(&mut steps);
    let seconds = started.elapsed().as_secs_f64();
    streams.into_iter().try_for_each(expect_full_length)?;
    Ok((seconds, steps))
}

fn expect_full_length(mut stream: EventStream) -> Result<()> {
    while let Some(event) = stream.try_recv() {
        match event {
            Event::Finished(end) if end.reason != FinishReason::Length => {
                bail!("a request ended early: {:?}", end.reason)
            }
            _ => {}
        }
    }
    Ok(())
}

fn jobs(options: &Options, ids: &[u32], random: &mut ChaCha8Rng) -> Vec<Job> {
    let mut jobs = Vec::with_capacity(options.batch_size * options.answers);
    for _ in 0..options.batch_size {
        let drawn = (0..options.input_tokens).map(|_| ids[random.random_range(0..ids.len())]);
        let prompt_ids: Vec<u32> = drawn.collect();
        for _ in 0..options.answers {
            let (prompt_ids, output_tokens) = (prompt_ids.clone(), options.output_tokens);
            jobs.push(Job { prompt_ids, output_tokens, seed: random.random() });
        }
    }
    jobs
}

impl Latencies {
    fn mean(&self) -> f64 {
        self.seconds.iter().sum::<f64>() / self.seconds.len() as f64
    }

    fn percentiles(&self) -> impl Iterator<Item = (u32, f64)> {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        PERCENTILES.into_iter().map(move |p| (p, percentile(&sorted, f64::from(p))))
    }

    /// The report, with a line end after the last line.
    pub fn text(&self) -> String {
        let mut text = format!("Avg latency: {} seconds\n", self.mean());
        for (percent, seconds) in self.percentiles() {
            writeln!(text, "{percent}% percentile latency: {seconds} seconds")
                .expect("this is a bug: a string is full");
        }
        text
    }

    /// The result.
    pub fn value(&self) -> Value {
        let percentiles = self.percentiles().map(|(p, seconds)| (p.to_string(), seconds.into()));
        let percentiles: serde_json::Map<String, Value> = percentiles.collect();
        json!({"avg_latency": self.mean(), "latencies": self.seconds, "percentiles": percentiles})
    }

    /// What the steps took, beside the floors of a GPU.
    pub fn steps(&self, options: &Options, floors: Option<Floors<'_>>) -> Steps {
        let sequences = options.batch_size * options.answers;
        let context = options.input_tokens as f64 + options.output_tokens as f64 / 2.0;
        let experts = self.steps.active_experts();
        Steps {
            sequences,
            input_tokens: options.input_tokens,
            times: self.steps.clone(),
            prefill: floors.map(|floors| floors.prefill(options.batch_size, options.input_tokens)),
            decode: floors.map(|floors| floors.decode(sequences, context, experts)),
        }
    }
}

/// Times of steps, and their floors where a GPU computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    sequences: usize,
    input_tokens: usize,
    times: StepTimes,
    prefill: Option<Floor>,
    decode: Option<Floor>,
}

impl Steps {
    /// A line for each kind of step, with a line end after the last.
    pub fn text(&self) -> String {
        let Self { sequences, input_tokens, times, .. } = self;
        let mut text = String::new();
        if let Some(seconds) = times.first_token() {
            let floor = beside(self.prefill, seconds, "TFLOP");
            text += &format!(
                "Time to first token, {sequences} x {input_tokens} tokens: {:.3} ms{floor}\n",
                seconds * 1e3
            );
        }
        if let (Some(seconds), Some(host)) = (times.decode(), times.host()) {
            let floor = beside(self.decode, seconds, "TB");
            text += &format!(
                "Time per output token, {sequences} sequences: {:.3} ms{floor}, work of the host \
                 {:.3} ms\n",
                seconds * 1e3,
                host * 1e3
            );
        }
        text
    }

    /// For the record.
    pub fn value(&self) -> Value {
        let floor = |floor: Option<Floor>| floor.map(|floor| floor.seconds);
        json!({
            "times": self.times.value(),
            "first_token_floor_seconds": floor(self.prefill),
            "decode_step_floor_seconds": floor(self.decode),
        })
    }
}

/// A floor, and how near `seconds` come to it.
fn beside(floor: Option<Floor>, seconds: f64, unit: &str) -> String {
    floor.map_or_else(String::new, |Floor { work, seconds: least }| {
        let (work, percent) = (work / 1e12, 100.0 * least / seconds);
        format!(" (floor {:.3} ms for {work:.4} {unit}: {percent:.0} %)", least * 1e3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_and_the_keys_are_those_of_the_peer() {
        let seconds = vec![0.5, 0.25, 1.25];
        let latencies = Latencies { seconds, ..Latencies::default() };
        let expected = "\
Avg latency: 0.6666666666666666 seconds
10% percentile latency: 0.3 seconds
25% percentile latency: 0.375 seconds
50% percentile latency: 0.5 seconds
75% percentile latency: 0.875 seconds
90% percentile latency: 1.1 seconds
99% percentile latency: 1.2349999999999999 seconds
";
        assert_eq!(latencies.text(), expected);
        let value = latencies.value();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["avg_latency", "latencies", "percentiles"]);
        assert_eq!(
            (&value["latencies"][1], &value["percentiles"]["75"]),
            (&0.25.into(), &0.875.into())
        );
    }

    #[test]
    fn a_batch_has_answers_of_their_own_and_prompts_of_every_kind() {
        let options = Options {
            input_tokens: 50,
            output_tokens: 4,
            batch_size: 3,
            answers: 2,
            warmups: 0,
            iterations: 1,
            seed: 0,
        };
        let jobs = jobs(&options, &[5, 6, 7], &mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(jobs.len(), 6);
        assert_eq!(jobs[0].prompt_ids, jobs[1].prompt_ids);
        assert_ne!(jobs[0].seed, jobs[1].seed);
        assert_ne!(jobs[0].prompt_ids, jobs[2].prompt_ids);
        assert!([5, 6, 7].iter().all(|id| jobs[0].prompt_ids.contains(id)));
    }
}
