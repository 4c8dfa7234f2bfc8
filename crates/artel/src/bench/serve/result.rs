//! The result as JSON, with the keys of vLLM's serving benchmark.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::arrivals::Rate;
use super::inside::Inside;
use super::load::Run;
use super::metrics::Summary;
use super::report::percentile_name;
use super::{Beside, Config};
use crate::record;

/// Where and how the result is kept.
#[derive(Debug, Clone, Default)]
pub struct Save {
    /// Whether it is kept at all.
    pub wanted: bool,
    /// Whether every request is.
    pub detailed: bool,
    /// Whether it comes after what the file holds.
    pub append: bool,
    /// Folder; the current one if none.
    pub folder: Option<PathBuf>,
    /// File; a name that tells the run if none.
    pub file: Option<PathBuf>,
    /// Further fields.
    pub metadata: Vec<(String, String)>,
}

/// All that the result tells.
#[derive(Debug)]
pub struct Record<'a> {
    /// How it was made.
    pub config: &'a Config,
    /// The model's name.
    pub model_id: &'a str,
    /// Where the tokenizer comes from.
    pub tokenizer_id: Option<&'a str>,
    /// What happened.
    pub run: &'a Run,
    /// Tokens of each answer.
    pub output_tokens: &'a [usize],
    /// The numbers.
    pub summary: &'a Summary,
    /// What is known besides.
    pub beside: &'a Beside,
    /// When the run ended.
    pub now: DateTime<Utc>,
}

/// Writes the result; returns where it lies.
///
/// # Errors
/// When the file or its folder cannot be written.
pub fn save(record: &Record<'_>) -> Result<PathBuf> {
    let save = &record.config.save;
    let name = save.file.clone().unwrap_or_else(|| file_name(record).into());
    let path = save.folder.clone().unwrap_or_default().join(name);
    let value = value(record);
    if save.append {
        let named = || format!("cannot write {}", path.display());
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(&path).with_context(named)?;
        let before = file.seek(SeekFrom::End(0)).with_context(named)?;
        let separator = if before > 0 { "\n" } else { "" };
        write!(file, "{separator}{value}").with_context(named)?;
    } else {
        record::save(&path, &value)?;
    }
    Ok(path)
}

/// `{label}-{rate}qps-concurrency{n}-{model}-{date}.json`.
fn file_name(record: &Record<'_>) -> String {
    let config = record.config;
    let label = config.label.as_deref().unwrap_or(config.target.backend.name());
    let rate = match config.rate {
        Rate::Constant(rate) => format!("{rate:?}qps"),
        Rate::RampUp { strategy, start, end } => {
            format!("ramp-up-{}-{start}qps-{end}qps", strategy.name())
        }
    };
    let concurrency = config.concurrency.map(|limit| format!("-concurrency{limit}"));
    let concurrency = concurrency.unwrap_or_default();
    let model = record.model_id.rsplit('/').next().unwrap_or_default();
    format!("{label}-{rate}{concurrency}-{model}-{}.json", date(record))
}

fn date(record: &Record<'_>) -> String {
    record.now.format("%Y%m%d-%H%M%S").to_string()
}

/// The result; see the module.
pub fn value(record: &Record<'_>) -> Value {
    let mut fields = setup(record);
    let summary = record.summary;
    fields.extend(object(json!({
        "duration": summary.duration,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.total_input,
        "total_output_tokens": summary.total_output,
        "request_throughput": summary.request_throughput(),
        "request_goodput": summary.goodput,
        "output_throughput": summary.output_throughput(),
        "total_token_throughput": summary.total_throughput(),
    })));
    if record.config.save.detailed {
        fields.extend(details(record));
    }
    fields.extend(object(json!({
        "max_output_tokens_per_s": summary.peak_tokens as f64,
        "max_concurrent_requests": summary.peak_concurrent,
        // Seconds of audio a second: there is no audio here.
        "rtfx": 0.0,
    })));
    if !record.run.rate_changes.is_empty() {
        let stamp = |at: &DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string();
        let changes = record.run.rate_changes.iter();
        let changes = changes.map(|(rps, at)| json!({"rps": rps, "timestamp": stamp(at)}));
        fields.insert("rps_change_events".to_owned(), changes.collect());
    }
    for (measure, statistics) in &summary.measures {
        let key = measure.key();
        let mut set =
            |name: &str, value: f64| fields.insert(format!("{name}_{key}_ms"), value.into());
        set("mean", statistics.mean);
        set("median", statistics.median);
        set("std", statistics.std);
        for (percent, value) in &statistics.percentiles {
            set(&format!("p{}", percentile_name(*percent)), *value);
        }
    }
    if let Some(inside) = &record.beside.inside {
        fields.insert("artel".to_owned(), artel(inside, summary.duration));
    }
    if let Some(malformed) = &record.beside.malformed {
        fields.insert("malformed".to_owned(), malformed.json());
    }
    fields.into()
}

/// What was asked for.
fn setup(record: &Record<'_>) -> Map<String, Value> {
    let config = record.config;
    let backend = config.target.backend.name();
    let mut fields = object(json!({
        "date": date(record),
        "endpoint_type": backend,
        "backend": backend,
        "label": config.label,
        "model_id": record.model_id,
        "tokenizer_id": record.tokenizer_id,
        "num_prompts": config.dataset.count,
    }));
    let metadata = config.save.metadata.iter();
    fields.extend(metadata.map(|(key, value)| (key.clone(), value.clone().into())));
    let rate = match config.rate {
        Rate::Constant(rate) if rate.is_finite() => rate.into(),
        _ => Value::from("inf"),
    };
    // JSON has no infinity.
    let burstiness = match config.burstiness {
        finite if finite.is_finite() => finite.into(),
        _ => Value::from("inf"),
    };
    fields.extend(object(json!({
        "request_rate": rate,
        "burstiness": burstiness,
        "max_concurrency": config.concurrency,
    })));
    if let Rate::RampUp { strategy, start, end } = config.rate {
        fields.extend(object(json!({
            "ramp_up_strategy": strategy.name(),
            "ramp_up_start_rps": start as u64,
            "ramp_up_end_rps": end as u64,
        })));
    }
    fields
}

/// Every request by itself.
fn details(record: &Record<'_>) -> Map<String, Value> {
    let outcomes = &record.run.outcomes;
    object(json!({
        "input_lens": outcomes.iter().map(|outcome| outcome.prompt_tokens).collect::<Vec<_>>(),
        "output_lens": record.output_tokens,
        "ttfts": outcomes.iter().map(|outcome| outcome.ttft).collect::<Vec<_>>(),
        "itls": outcomes.iter().map(|outcome| &outcome.itls).collect::<Vec<_>>(),
        "latencies": outcomes.iter().map(|outcome| outcome.latency).collect::<Vec<_>>(),
        "start_times": outcomes.iter().map(|outcome| outcome.start).collect::<Vec<_>>(),
        "queue_times": outcomes.iter().map(|outcome| outcome.queue_time).collect::<Vec<_>>(),
        "generated_texts": outcomes.iter().map(|outcome| &outcome.text).collect::<Vec<_>>(),
        "errors": outcomes
            .iter()
            .map(|outcome| outcome.error.as_deref().unwrap_or_default())
            .collect::<Vec<_>>(),
    }))
}

fn artel(inside: &Inside, duration: f64) -> Value {
    let seconds: Map<String, Value> =
        inside.step_seconds.iter().map(|(phase, time)| (phase.clone(), (*time).into())).collect();
    let layers: Map<String, Value> = inside
        .layers
        .iter()
        .map(|(name, layer)| {
            let active = (layer.active_count > 0.0).then(|| layer.active_sum / layer.active_count);
            let layer = json!({
                "expert_load_entropy": layer.entropy(),
                "expert_load_imbalance": layer.imbalance(),
                "active_experts_per_step": active,
                "expert_tokens": layer.tokens,
            });
            (name.clone(), layer)
        })
        .collect();
    let load = inside.load();
    json!({
        "steps": inside.steps,
        "step_seconds": seconds,
        "idle_share": inside.idle_share(duration),
        "expert_load_entropy": load.map(|load| load.entropy),
        "expert_load_imbalance": load.map(|load| load.imbalance),
        "active_experts_per_step": inside.active_experts(),
        "layers": layers,
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => unreachable!("this is a bug: {other} is no object"),
    }
}
