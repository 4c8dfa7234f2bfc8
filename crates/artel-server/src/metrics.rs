//! `/metrics`: what the engine and the server do, in Prometheus' text format.
//!
//! What means the same as in vLLM has vLLM's name behind the prefix; the rest is always `artel:`.

mod ranks;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use artel_engine::{Finished, Metrics};
use prometheus::core::Collector;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Summary};
use prometheus::{Histogram, HistogramOpts, TextEncoder};

use crate::app::App;
use crate::config::ServerConfig;

/// Prefix of what has no name elsewhere.
const OWN: &str = "artel";

/// Content type of the text.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Times of requests, as the server sees them.
#[derive(Debug)]
pub(crate) struct Recorder {
    first_token: Histogram,
    next_token: Histogram,
    mean_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    /// Answers by HTTP status.
    responses: Mutex<BTreeMap<u16, u64>>,
}

impl Recorder {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let histogram = |name: &str, help: &str| {
            let name = format!("{}:{name}", config.metrics_prefix);
            let options = HistogramOpts::new(name, help)
                .buckets(buckets())
                .const_label("model_name", config.name());
            Histogram::with_opts(options).expect("this is a bug: the name of a histogram")
        };
        Self {
            first_token: histogram("time_to_first_token_seconds", "From the request to a token."),
            next_token: histogram("inter_token_latency_seconds", "From a token to the next."),
            mean_token: histogram(
                "request_time_per_output_token_seconds",
                "Mean time of a request's tokens after the first.",
            ),
            whole: histogram("e2e_request_latency_seconds", "From the request to its end."),
            queued: histogram("request_queue_time_seconds", "Until a request had its place."),
            prefill: histogram("request_prefill_time_seconds", "From then to its first token."),
            decode: histogram("request_decode_time_seconds", "From then to its last token."),
            responses: Mutex::default(),
        }
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    pub(crate) fn finished(&self, finished: &Finished, after: Duration) {
        let (timings, tokens) = (&finished.timings, finished.usage.completion_tokens);
        self.whole.observe(after.as_secs_f64());
        self.queued.observe(timings.queued.as_secs_f64());
        if tokens > 0 {
            self.prefill.observe(timings.prefill.as_secs_f64());
            self.decode.observe(timings.decode.as_secs_f64());
        }
        if tokens > 1 {
            self.mean_token.observe(timings.decode.as_secs_f64() / (tokens - 1) as f64);
        }
    }

    pub(crate) fn response(&self, status: u16) {
        *lock(&self.responses).entry(status).or_default() += 1;
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let histograms = [
            &self.first_token,
            &self.next_token,
            &self.mean_token,
            &self.whole,
            &self.queued,
            &self.prefill,
            &self.decode,
        ];
        histograms.iter().flat_map(|histogram| histogram.collect()).collect()
    }
}

/// Three a decade, from half a millisecond to a quarter of an hour.
fn buckets() -> Vec<f64> {
    let decades = [1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0];
    let steps = decades.iter().flat_map(|decade| [1.0, 2.5, 5.0].map(|step| step * decade));
    std::iter::once(5e-4).chain(steps).chain([1000.0]).collect()
}

/// The whole page.
pub(crate) fn text(app: &App) -> String {
    let now = app.model.engine.metrics();
    let mut page = Page { app, families: Vec::new() };
    page.requests(&now);
    page.steps(&now);
    page.experts(&now);
    page.ranks(&now);
    page.families.extend(app.recorder.collect());
    // Families without a sample are not written, and the encoder does not take them.
    page.families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&page.families).unwrap_or_default()
}

struct Page<'a> {
    app: &'a App,
    families: Vec<MetricFamily>,
}

type Sample<'a> = (&'a [(&'a str, &'a str)], f64);

impl Page<'_> {
    fn requests(&mut self, now: &Metrics) {
        let finished = &now.finished;
        let aborted = finished.cancelled + finished.shut_down + finished.failed;
        let reasons = [("stop", finished.stop), ("length", finished.length), ("abort", aborted)];
        let used = now.kv_blocks_used as f64 / now.kv_blocks_total.max(1) as f64;
        self.shared_gauge("num_requests_running", "Requests in the batch.", now.running as f64);
        self.shared_gauge("num_requests_waiting", "Requests that wait.", now.waiting as f64);
        self.shared_gauge("kv_cache_usage_perc", "Share of the cache in use, 0 to 1.", used);
        let counters = [
            ("num_preemptions_total", "Requests that had to begin anew.", now.preemptions),
            ("prefix_cache_queries_total", "Tokens looked for.", now.prefix_cache_queries),
            ("prefix_cache_hits_total", "Tokens found.", now.prefix_cache_hits),
            ("prompt_tokens_total", "Tokens of prompts.", now.prompt_tokens),
            ("generation_tokens_total", "Tokens of answers.", now.generated_tokens),
        ];
        for (name, help, count) in counters {
            self.shared(name, help, MetricType::COUNTER, &[(&[], count as f64)]);
        }
        let labels = reasons.map(|(reason, count)| ([("finished_reason", reason)], count as f64));
        let samples: Vec<Sample<'_>> = labels.iter().map(|(label, n)| (&label[..], *n)).collect();
        let help = "Requests that ended, by reason.";
        self.shared("request_success_total", help, MetricType::COUNTER, &samples);
        let responses = lock(&self.app.recorder.responses).clone();
        let responses: Vec<(String, u64)> =
            responses.into_iter().map(|(status, count)| (status.to_string(), count)).collect();
        let labels: Vec<_> =
            responses.iter().map(|(status, count)| ([("status", &status[..])], *count)).collect();
        let samples: Vec<_> = labels.iter().map(|(label, n)| (&label[..], *n as f64)).collect();
        self.own("http_responses_total", "Answers by status.", MetricType::COUNTER, &samples);
    }

    fn steps(&mut self, now: &Metrics) {
        let (times, last) = (&now.total, &now.last_step);
        let phases =
            [("schedule", times.schedule), ("run", times.run), ("postprocess", times.postprocess)];
        let labels = phases.map(|(phase, time)| ([("phase", phase)], time.as_secs_f64()));
        let samples: Vec<_> = labels.iter().map(|(label, time)| (&label[..], *time)).collect();
        let help = "Seconds of the engine's thread, by phase of its steps.";
        self.own("step_seconds_total", help, MetricType::COUNTER, &samples);
        let steps = [(&[][..], now.steps as f64)];
        self.own("steps_total", "Steps computed.", MetricType::COUNTER, &steps);
        for (name, help, value) in [
            ("kv_blocks_used", "Blocks of the cache that a request owns.", now.kv_blocks_used),
            ("kv_blocks", "Blocks of the cache.", now.kv_blocks_total),
            ("last_step_tokens", "Tokens of the latest step.", last.tokens),
            ("last_step_sequences", "Sequences of the latest step.", last.sequences),
        ] {
            self.own(name, help, MetricType::GAUGE, &[(&[], value as f64)]);
        }
        let help = "Experts of a layer with a token in the latest step, mean over the layers.";
        let active = [(&[][..], last.active_experts)];
        self.own("last_step_active_experts", help, MetricType::GAUGE, &active);
        if !last.path.is_empty() {
            let label = [("path", &last.path[..])];
            let help = "How the latest step served the experts: assignment and kernel.";
            self.own("moe_path_info", help, MetricType::GAUGE, &[(&label, 1.0)]);
        }
    }

    fn experts(&mut self, now: &Metrics) {
        let mut names = Vec::new();
        for (layer, counts) in now.experts.tokens.iter().enumerate() {
            let layer = self.layer(layer);
            for (expert, &count) in counts.iter().enumerate() {
                names.push((layer.clone(), expert.to_string(), count));
            }
        }
        let labels: Vec<_> = names
            .iter()
            .map(|(layer, expert, count)| {
                ([("layer", &layer[..]), ("expert", &expert[..])], *count)
            })
            .collect();
        let samples: Vec<_> = labels.iter().map(|(label, n)| (&label[..], *n as f64)).collect();
        let help = "Pairs of a token and an expert, by layer and expert.";
        self.own("expert_tokens_total", help, MetricType::COUNTER, &samples);
        self.active_experts(now);
        let imbalance: Vec<(String, f64)> = now
            .experts
            .recent
            .iter()
            .enumerate()
            .filter_map(|(layer, counts)| Some((self.layer(layer), imbalance(counts)?)))
            .collect();
        let labels: Vec<_> =
            imbalance.iter().map(|(layer, value)| ([("layer", &layer[..])], *value)).collect();
        let samples: Vec<_> = labels.iter().map(|(label, value)| (&label[..], *value)).collect();
        let help = "Load of the busiest expert over the mean, in the latest 256 to 512 steps.";
        self.own("expert_load_imbalance", help, MetricType::GAUGE, &samples);
    }

    /// The number of the decoder layer that is number `index` of those with experts.
    fn layer(&self, index: usize) -> String {
        self.app.model.expert_layers.get(index).copied().unwrap_or(index).to_string()
    }

    /// A summary without quantiles: a sum over steps, and how many steps.
    fn active_experts(&mut self, now: &Metrics) {
        let counts = now.experts.active.iter().zip(&now.experts.active_steps);
        let metric = |(layer, (active, steps)): (usize, (&u64, &u64))| {
            let labels = [("model_name", self.app.config.name()), ("layer", &self.layer(layer))];
            let mut metric = Metric::from_label(labels.iter().map(pair).collect());
            let mut summary = Summary::default();
            summary.set_sample_sum(*active as f64);
            summary.set_sample_count(*steps);
            metric.set_summary(summary);
            metric
        };
        let metrics = counts.enumerate().map(metric).collect();
        let help = "Experts of a layer with a token, by step.";
        self.push((OWN, "active_experts"), help, MetricType::SUMMARY, metrics);
    }

    fn shared_gauge(&mut self, name: &str, help: &str, value: f64) {
        self.shared(name, help, MetricType::GAUGE, &[(&[], value)]);
    }

    fn shared(&mut self, name: &str, help: &str, kind: MetricType, samples: &[Sample<'_>]) {
        let prefix = self.app.config.metrics_prefix.clone();
        self.add(&prefix, (name, help), kind, samples);
    }

    fn own(&mut self, name: &str, help: &str, kind: MetricType, samples: &[Sample<'_>]) {
        self.add(OWN, (name, help), kind, samples);
    }

    fn add(
        &mut self,
        prefix: &str,
        (name, help): (&str, &str),
        kind: MetricType,
        samples: &[Sample<'_>],
    ) {
        let model = ("model_name", self.app.config.name());
        let metric = |(labels, value): &Sample<'_>| {
            let labels = std::iter::once(&model).chain(*labels);
            let mut metric = Metric::from_label(labels.map(pair).collect());
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(*value);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(*value);
                metric.set_gauge(gauge);
            }
            metric
        };
        let metrics = samples.iter().map(metric).collect();
        self.push((prefix, name), help, kind, metrics);
    }

    fn push(
        &mut self,
        (prefix, name): (&str, &str),
        help: &str,
        kind: MetricType,
        metrics: Vec<Metric>,
    ) {
        let mut family = MetricFamily::default();
        family.set_name(format!("{prefix}:{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

fn pair((name, value): &(&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name((*name).to_owned());
    pair.set_value((*value).to_owned());
    pair
}

/// The largest over the mean; `None` without tokens.
fn imbalance(counts: &[u64]) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let most = counts.iter().max()?;
    (total > 0).then(|| (most * counts.len() as u64) as f64 / total as f64)
}

fn lock<T: fmt::Debug>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
