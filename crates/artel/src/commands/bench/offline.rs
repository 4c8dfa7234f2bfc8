//! `artel bench latency` and `artel bench throughput`: a loaded model and one measurement.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use artel_engine::EngineConfig;
use artel_model::{Checkpoint, Model};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use super::dataset::{Format, dataset};
use crate::bench::dataset;
use crate::bench::offline::{Offline, latency, throughput};
use crate::bench::texts::Texts;
use crate::cli::{BenchLatencyArgs, BenchThroughputArgs, ModelArgs, RankArgs};
use crate::record::{self, Provenance};
use crate::{ranks, source};

/// A loaded model.
struct Subject {
    checkpoint: Checkpoint,
    model: Arc<Model>,
    engine: Offline,
    texts: Texts,
}

/// The keys of the peer, and what a measurement is worth nothing without.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    result: Value,
    model: String,
    format: Option<&'static str>,
    #[serde(flatten)]
    provenance: Provenance,
}

impl Subject {
    fn load(
        args: &ModelArgs,
        ranks: &RankArgs,
        sequences: Option<NonZeroUsize>,
        step_tokens: Option<NonZeroUsize>,
    ) -> anyhow::Result<Self> {
        let checkpoint = source::open(args)?;
        let texts = Texts::read(&checkpoint)?;
        let model = source::load(args, &checkpoint)?;
        let (model, runner) = ranks::runner(ranks, model, &checkpoint.name())?;
        let sequences = sequences.map_or(EngineConfig::default().max_num_seqs, usize::from);
        let mut config = EngineConfig::offline(sequences);
        if let Some(tokens) = step_tokens {
            config.max_num_batched_tokens = tokens.get();
        }
        let engine = Offline(source::start(runner, &texts.tokenizer, config)?);
        Ok(Self { checkpoint, model, engine, texts })
    }

    /// Prints the report and writes the result where that is wanted.
    fn tell(&self, text: &str, result: Value, path: Option<&Path>) -> anyhow::Result<()> {
        print!("{text}");
        let Some(path) = path else { return Ok(()) };
        record::save(
            path,
            &Record {
                result,
                model: self.checkpoint.name(),
                format: self.model.moe_plan().map(|plan| plan.format()),
                provenance: Provenance::here(),
            },
        )
    }
}

/// Measures one batch.
///
/// # Errors
/// When the model does not load, the batch does not fit or the result cannot be written.
pub fn latency(args: &BenchLatencyArgs) -> anyhow::Result<()> {
    let sequences = args.batch_size.saturating_mul(args.n);
    let subject =
        Subject::load(&args.model, &args.ranks, Some(sequences), args.max_num_batched_tokens)?;
    let ids = subject.texts.tokenizer.text_ids();
    ensure!(!ids.is_empty(), "the tokenizer has no token that stands for text");
    let options = latency::Options {
        input_tokens: args.input_len.get(),
        output_tokens: args.output_len.get(),
        batch_size: args.batch_size.get(),
        answers: args.n.get(),
        warmups: args.num_iters_warmup,
        iterations: args.num_iters.get(),
        seed: args.seed,
    };
    let bar = progress_bar(options.warmups + options.iterations);
    let latencies = latency::measure(&subject.engine, &ids, &options, &bar)?;
    bar.finish_and_clear();
    subject.tell(&latencies.text(), latencies.value(), args.output_json.as_deref())
}

/// Measures many requests.
///
/// # Errors
/// When the model or the data set does not load, a prompt does not fit or the result cannot be
/// written.
pub fn throughput(args: &BenchThroughputArgs) -> anyhow::Result<()> {
    let (sequences, step_tokens) = (args.max_num_seqs, args.max_num_batched_tokens);
    let subject = Subject::load(&args.model, &args.ranks, sequences, step_tokens)?;
    let context = subject.model.config().max_positions;
    let dataset = dataset(&args.dataset, Format::Prompt, 0, Some(context))?;
    let prompts = dataset::load(&dataset, Some(&subject.texts))?.measured;
    let bar = progress_bar(prompts.len());
    let tokenizer = &subject.texts.tokenizer;
    let throughput = throughput::measure(&subject.engine, tokenizer, &prompts, &bar)?;
    bar.finish_and_clear();
    subject.tell(&throughput.text(), throughput.value(), args.output_json.as_deref())
}

fn progress_bar(count: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} [{elapsed} < {eta}]")
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(count as u64).with_style(style)
}
