//! `artel bench latency` and `artel bench throughput`: a loaded model and one measurement.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use artel_engine::{Engine, EngineConfig};
use artel_model::{Checkpoint, Model};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use super::dataset::{Format, dataset};
use crate::bench::dataset;
use crate::bench::offline::floors::Floors;
use crate::bench::offline::{Offline, latency, throughput};
use crate::bench::texts::Texts;
use crate::cli::{BenchLatencyArgs, BenchThroughputArgs, ComputeArgs, ModelArgs};
use crate::record::{self, Provenance};
use crate::{compute, source};

/// What is measured, beside its engine.
struct Subject {
    checkpoint: Checkpoint,
    model: Arc<Model>,
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
        model: &ModelArgs,
        compute: &ComputeArgs,
        sequences: Option<NonZeroUsize>,
        step_tokens: Option<NonZeroUsize>,
    ) -> anyhow::Result<(Self, Engine)> {
        let checkpoint = source::open(model)?;
        // Random weights have nothing to say; any tokenizer can write that down.
        let texts = match checkpoint.is_dummy() {
            true => Texts::read(&source::bundled()?)?,
            false => Texts::read(&checkpoint)?,
        };
        let sequences = sequences.map_or(EngineConfig::default().max_num_seqs, usize::from);
        let mut config = compute::batch_steps(compute, EngineConfig::offline(sequences));
        if let Some(tokens) = step_tokens {
            config.max_num_batched_tokens = tokens.get();
        }
        let subject = compute::Subject { model, compute, checkpoint: &checkpoint };
        let (model, engine) = compute::engine(subject, &texts.tokenizer, config)?;
        Ok((Self { checkpoint, model, texts }, engine))
    }

    /// A result with what it is worth nothing without.
    fn record(&self, result: Value) -> Record {
        Record {
            result,
            model: self.checkpoint.name(),
            format: self.model.moe_plan().map(|plan| plan.format()),
            provenance: Provenance::here(),
        }
    }
}

/// Writes the record where that is wanted.
fn save(record: &Record, path: Option<&Path>) -> anyhow::Result<()> {
    path.map_or(Ok(()), |path| record::save(path, record))
}

/// Measures one batch.
///
/// # Errors
/// When the model does not load, the batch does not fit or the result cannot be written.
pub fn latency(args: &BenchLatencyArgs) -> anyhow::Result<()> {
    let largest = args.batch_size.iter().max().context("--batch-size has no size")?;
    let sequences = largest.saturating_mul(args.n);
    let step_tokens = args.max_num_batched_tokens;
    let (subject, mut engine) =
        Subject::load(&args.model, &args.compute, Some(sequences), step_tokens)?;
    let mut ids = subject.texts.tokenizer.text_ids();
    ids.retain(|id| (*id as usize) < subject.model.config().vocabulary);
    ensure!(!ids.is_empty(), "the tokenizer has no token that stands for text");
    let ceilings = compute::ceilings(&args.compute)?;
    let floors = ceilings.map(|ceilings| Floors::new(&subject.model, ceilings));
    let mut results = Vec::new();
    for batch_size in &args.batch_size {
        let options = latency::Options {
            input_tokens: args.input_len.get(),
            output_tokens: args.output_len.get(),
            batch_size: batch_size.get(),
            answers: args.n.get(),
            warmups: args.num_iters_warmup,
            iterations: args.num_iters.get(),
            seed: args.seed,
        };
        let bar = progress_bar(options.warmups + options.iterations);
        let latencies = latency::measure(&mut engine, &ids, &options, &bar)?;
        bar.finish_and_clear();
        let steps = latencies.steps(&options, floors);
        print!("{}{}", latencies.text(), steps.text());
        let mut result = latencies.value();
        result["batch_size"] = options.batch_size.into();
        result["steps"] = steps.value();
        results.push(result);
    }
    let result = match results.len() {
        1 => results.remove(0),
        _ => json!({ "batches": results }),
    };
    save(&subject.record(result), args.output_json.as_deref())
}

/// Measures many requests.
///
/// # Errors
/// When the model or the data set does not load, a prompt does not fit or the result cannot be
/// written.
pub fn throughput(args: &BenchThroughputArgs) -> anyhow::Result<()> {
    let (sequences, step_tokens) = (args.max_num_seqs, args.max_num_batched_tokens);
    let (subject, engine) = Subject::load(&args.model, &args.compute, sequences, step_tokens)?;
    let engine = Offline(engine.spawn()?);
    let context = subject.model.config().max_positions;
    let dataset = dataset(&args.dataset, Format::Prompt, 0, Some(context))?;
    let prompts = dataset::load(&dataset, Some(&subject.texts))?.measured;
    let bar = progress_bar(prompts.len());
    let tokenizer = &subject.texts.tokenizer;
    let throughput = throughput::measure(&engine, tokenizer, &prompts, &bar)?;
    bar.finish_and_clear();
    print!("{}", throughput.text());
    save(&subject.record(throughput.value()), args.output_json.as_deref())
}

fn progress_bar(count: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} [{elapsed} < {eta}]")
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(count as u64).with_style(style)
}
