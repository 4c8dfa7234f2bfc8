//! `artel bench serve`: what was typed becomes a run.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Map, Value};

use super::dataset::{Format, dataset};
use crate::bench::serve::arrivals::{RampUp, Rate};
use crate::bench::serve::client::{Backend, RequestFields, Target};
use crate::bench::serve::malformed::Malformed;
use crate::bench::serve::metrics::{Measure, Objective, Wanted};
use crate::bench::serve::result::Save;
use crate::bench::serve::{self, Config, ModelNames, TokenizerChoice};
use crate::cli::{
    BackendArg, BenchServeArgs, DatasetArg, MeasureArg, RampUpArg, ServeReportArgs,
    ServeSamplingArgs, ServerArgs, TrafficArgs,
};

/// Variable with the key that OpenAI's own clients send.
const API_KEY: &str = "OPENAI_API_KEY";

/// Measures a server.
///
/// # Errors
/// When an option makes no sense, and as [`serve::run`].
pub fn serve(args: &BenchServeArgs) -> anyhow::Result<()> {
    serve::run(&config(args)?)
}

fn config(args: &BenchServeArgs) -> anyhow::Result<Config> {
    let (server, traffic, report) = (&args.server, &args.traffic, &args.report);
    let rate = rate(traffic)?;
    let format = match server.backend {
        BackendArg::Openai => Format::Prompt,
        BackendArg::OpenaiChat => Format::Message,
    };
    ensure!(traffic.burstiness > 0.0, "--burstiness {} is not positive", traffic.burstiness);
    Ok(Config {
        target: target(server),
        names: ModelNames {
            model: server.model.clone(),
            served: server.served_model_name.clone(),
            any_of: server.lora_modules.clone(),
        },
        tokenizer: match server.skip_tokenizer_init {
            true => TokenizerChoice::None,
            false => TokenizerChoice::Find(server.tokenizer.clone()),
        },
        ready_limit: Duration::from_secs(server.ready_check_timeout_sec),
        dataset: dataset(&args.dataset, format, traffic.num_warmups, None)?,
        fields: fields(&args.sampling, args.dataset.dataset_name),
        rate,
        burstiness: traffic.burstiness,
        malformed: malformed(traffic)?,
        concurrency: traffic.max_concurrency.map(usize::from),
        wanted: wanted(report, traffic)?,
        label: report.label.clone(),
        save: save(report),
        plot: report.plot.clone(),
        progress: !report.disable_tqdm,
    })
}

fn target(server: &ServerArgs) -> Target {
    let backend = match server.backend {
        BackendArg::Openai => Backend::Completions,
        BackendArg::OpenaiChat => Backend::Chat,
    };
    let host = match server.host.as_str() {
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let base_url = server.base_url.clone();
    let base_url = base_url.unwrap_or_else(|| format!("http://{host}:{}", server.port));
    let endpoint = server.endpoint.clone();
    Target {
        backend,
        base_url: base_url.trim_end_matches('/').to_owned(),
        endpoint: endpoint.unwrap_or_else(|| format!("/v1{}", backend.path_end())),
        headers: server.header.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
        api_key: std::env::var(API_KEY).ok().filter(|key| !key.is_empty()),
    }
}

fn rate(args: &TrafficArgs) -> anyhow::Result<Rate> {
    let ramp = (args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps);
    let (Some(strategy), Some(start), Some(end)) = ramp else {
        ensure!(args.request_rate > 0.0, "--request-rate {} is not positive", args.request_rate);
        return Ok(Rate::Constant(args.request_rate));
    };
    ensure!(start <= end, "--ramp-up-start-rps {start} is more than --ramp-up-end-rps {end}");
    let strategy = match strategy {
        RampUpArg::Linear => RampUp::Linear,
        RampUpArg::Exponential => RampUp::Exponential,
    };
    Ok(Rate::RampUp { strategy, start: f64::from(start.get()), end: f64::from(end.get()) })
}

fn malformed(args: &TrafficArgs) -> anyhow::Result<Option<Malformed>> {
    let Some(share) = args.malformed_rate else { return Ok(None) };
    let allowed = share > 0.0 && share < 1.0;
    ensure!(allowed, "--malformed-rate {share} is not between 0 and 1");
    Ok(Some(Malformed { share, rounds: args.malformed_rounds.get() }))
}

fn fields(args: &ServeSamplingArgs, dataset: DatasetArg) -> RequestFields {
    let number = |value: Option<f64>| value.map(Value::from);
    let sampling = [
        ("top_p", number(args.top_p)),
        ("top_k", args.top_k.map(Value::from)),
        ("min_p", number(args.min_p)),
        ("temperature", number(args.temperature)),
        ("frequency_penalty", number(args.frequency_penalty)),
        ("presence_penalty", number(args.presence_penalty)),
        ("repetition_penalty", number(args.repetition_penalty)),
    ];
    let sampling = sampling.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut extra: Map<String, Value> = sampling.collect();
    extra.extend(args.extra_body.iter().flat_map(|body| body.0.clone()));
    // Random prompts end anywhere; their answers have the length that was asked for.
    let ignore_eos = args.ignore_eos || dataset == DatasetArg::Random;
    RequestFields { ignore_eos, logprobs: args.logprobs, extra }
}

fn wanted(report: &ServeReportArgs, traffic: &TrafficArgs) -> anyhow::Result<Wanted> {
    let asked: Vec<Measure> = match report.percentile_metrics.as_slice() {
        [] => vec![Measure::Ttft, Measure::Tpot, Measure::Itl],
        names => names.iter().copied().map(measure).collect(),
    };
    // A client that holds nothing back has no queue, and one without a rate only a queue.
    let limited = traffic.max_concurrency.is_some();
    let paced = limited && traffic.request_rate.is_finite();
    let exists = |measure: &Measure| match measure {
        Measure::ClientQueueTime => limited,
        Measure::E2elIncludingQueue => paced,
        _ => true,
    };
    let measures = Measure::ALL.into_iter().filter(|one| asked.contains(one) && exists(one));
    let percentiles = report.metric_percentiles.clone();
    let wrong = percentiles.iter().find(|percent| !(0.0..=100.0).contains(*percent));
    if let Some(wrong) = wrong {
        anyhow::bail!("--metric-percentiles {wrong} is not between 0 and 100");
    }
    let objectives = report.goodput.iter().map(|limit| Objective {
        measure: measure(limit.measure),
        milliseconds: limit.milliseconds,
    });
    Ok(Wanted { measures: measures.collect(), percentiles, objectives: objectives.collect() })
}

fn measure(measure: MeasureArg) -> Measure {
    match measure {
        MeasureArg::Ttft => Measure::Ttft,
        MeasureArg::Tpot => Measure::Tpot,
        MeasureArg::Itl => Measure::Itl,
        MeasureArg::E2el => Measure::E2el,
        MeasureArg::ClientQueueTime => Measure::ClientQueueTime,
        MeasureArg::E2elIncludingClientQueue => Measure::E2elIncludingQueue,
    }
}

fn save(report: &ServeReportArgs) -> Save {
    let metadata = report.metadata.iter().map(|pair| (pair.key.clone(), pair.value.clone()));
    Save {
        wanted: report.save_result || report.append_result,
        detailed: report.save_detailed,
        append: report.append_result,
        folder: report.result_dir.clone(),
        file: report.result_filename.clone(),
        metadata: metadata.collect(),
    }
}
