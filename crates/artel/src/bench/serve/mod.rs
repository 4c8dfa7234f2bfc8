//! A load generator for OpenAI-compatible servers, with the options, formulas and report of vLLM's
//! serving benchmark.

mod answer;
pub mod arrivals;
pub mod client;
mod inside;
mod load;
pub mod malformed;
pub mod metrics;
mod plot;
mod report;
pub mod result;
mod sse;
mod tokenizer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::answer::Outcome;
use self::arrivals::Rate;
use self::client::{Client, Request, RequestFields, ServedModel, Target};
use self::inside::{Inside, Reading};
use self::load::{Load, Run};
use self::malformed::{Comparison, Malformed};
use self::metrics::{Summary, Wanted};
use self::report::Setting;
use self::result::{Record, Save};
use super::dataset::{self, Dataset, Prompt, Prompts};
use super::texts::Texts;

/// Threads that talk to the server; more would take processors from a server on the same machine.
const THREADS_MAX: usize = 4;
/// Stream of random numbers for arrivals and names; prompts take the stream of number 0.
const ARRIVALS_STREAM: u64 = 1;
/// Failures that are shown one by one.
const FAILURES_SHOWN: usize = 10;
/// Files that a client of many connections may have open.
const OPEN_FILES: u64 = 65_536;

/// Which model is asked for.
#[derive(Debug, Clone, Default)]
pub struct ModelNames {
    /// Its name; the first that the server lists if none.
    pub model: Option<String>,
    /// Its name in requests, where that is another.
    pub served: Option<String>,
    /// Names of which each request takes one; empty: the model's own.
    pub any_of: Vec<String>,
}

/// Whether and where there is a tokenizer.
#[derive(Debug, Clone)]
pub enum TokenizerChoice {
    /// In this folder; where the model comes from if none.
    Find(Option<PathBuf>),
    /// Tokens are counted by the server.
    None,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where requests go.
    pub target: Target,
    /// Which model they ask.
    pub names: ModelNames,
    /// Who counts tokens.
    pub tokenizer: TokenizerChoice,
    /// How long a server may take to answer for the first time; zero: it is not asked.
    pub ready_limit: Duration,
    /// What requests ask.
    pub dataset: Dataset,
    /// Further fields of requests.
    pub fields: RequestFields,
    /// How fast they come.
    pub rate: Rate,
    /// How evenly.
    pub burstiness: f64,
    /// How many run at the same time at most.
    pub concurrency: Option<usize>,
    /// Bad requests whose effect on the others is measured.
    pub malformed: Option<Malformed>,
    /// What is computed.
    pub wanted: Wanted,
    /// Name of the run.
    pub label: Option<String>,
    /// What is kept.
    pub save: Save,
    /// Where the picture goes.
    pub plot: Option<PathBuf>,
    /// Whether there is a progress bar.
    pub progress: bool,
}

/// Measures a server and prints the report on standard output.
///
/// # Errors
/// When the server or the data set cannot be used, when no request succeeds, or when the result
/// cannot be written.
pub fn run(config: &Config) -> Result<()> {
    if let Some(path) = &config.plot {
        plot::check(path)?;
    }
    if let Err(why) = rlimit::increase_nofile_limit(OPEN_FILES) {
        tracing::warn!("the limit of open files stays as it is: {why}");
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(measure(config))
}

async fn measure(config: &Config) -> Result<()> {
    let client = Arc::new(Client::new(config.target.clone())?);
    let model = served_model(config, &client).await?;
    let texts = match &config.tokenizer {
        TokenizerChoice::Find(folder) => Some(tokenizer::find(folder.as_deref(), &model)?),
        TokenizerChoice::None => None,
    };
    let runs = config.malformed.map_or(1, |malformed| malformed.runs());
    let dataset = Dataset { count: config.dataset.count * runs, ..config.dataset.clone() };
    let prompts = dataset::load(&dataset, texts.as_ref())?;
    tell(config, &prompts);
    let mut random = ChaCha8Rng::seed_from_u64(config.dataset.seed);
    random.set_stream(ARRIVALS_STREAM);
    let requests = requests(config, &client, &model, &prompts.measured, &mut random);
    let warmups = self::requests(config, &client, &model, &prompts.warmups, &mut random);
    let count = requests.len() / runs;
    ensure!(count > 0, "{} prompts are too few for {runs} runs", requests.len());
    let times = arrivals::schedule(config.rate, config.burstiness, count, &mut random)?;
    prepare(config, &client, &requests[0], warmups).await?;
    eprintln!("Starting main benchmark run...");
    let before = reading(&client).await;
    let bar = load::progress_bar(requests.len(), config.progress);
    let load = Load { requests, times, rate: config.rate, concurrency: config.concurrency };
    let (run, beside) = match config.malformed {
        None => {
            let run = load::run(&client, load, &bar).await;
            let inside = before.zip(reading(&client).await);
            let inside = inside.and_then(|(before, after)| Inside::between(&before, &after));
            (run, Beside { inside, malformed: None })
        }
        Some(wanted) => {
            let (run, found) = malformed::compare(&client, wanted, &load, &mut random, &bar).await;
            (run, Beside { inside: None, malformed: Some(found) })
        }
    };
    bar.finish_and_clear();
    conclude(config, &model, texts.as_ref(), &run, &beside)
}

/// What is known besides what the requests saw.
#[derive(Debug, Default)]
pub struct Beside {
    /// What the server told of the run.
    inside: Option<Inside>,
    /// What malformed requests cost.
    malformed: Option<Comparison>,
}

/// The report, the result and the picture.
fn conclude(
    config: &Config,
    model: &ServedModel,
    texts: Option<&Texts>,
    run: &Run,
    beside: &Beside,
) -> Result<()> {
    let counted = run.outcomes.iter().filter(|outcome| outcome.succeeded());
    let tokens_known =
        texts.is_some() || counted.into_iter().all(|outcome| outcome.output_tokens.is_some());
    let tokens = run.outcomes.iter().map(|outcome| output_tokens(outcome, texts));
    let tokens = tokens.collect::<Result<Vec<usize>>>()?;
    let summary = Summary::of(&run.outcomes, &tokens, run.duration, &config.wanted);
    show_failures(&run.outcomes);
    let request_rate = match config.rate {
        Rate::Constant(rate) => rate,
        Rate::RampUp { .. } => f64::INFINITY,
    };
    let setting = Setting { concurrency: config.concurrency, request_rate, tokens_known };
    print!("{}", report::text(&summary, &setting, beside));
    if config.save.wanted {
        let path = result::save(&Record {
            config,
            model_id: config.names.model.as_deref().unwrap_or(&model.root),
            tokenizer_id: texts.map(|texts| texts.name.as_str()),
            run,
            output_tokens: &tokens,
            summary: &summary,
            beside,
            now: chrono::Utc::now(),
        })?;
        eprintln!("Result: {}", path.display());
    }
    if let Some(path) = &config.plot {
        plot::draw(path, &run.outcomes, &tokens)?;
        eprintln!("Picture: {}", path.display());
    }
    match run.outcomes.iter().find_map(|outcome| outcome.error.as_ref()) {
        Some(error) if summary.completed == 0 => {
            bail!("none of {} requests succeeded; the first failed with: {error}", summary.failed)
        }
        _ => Ok(()),
    }
}

/// The model that is asked for, as the server knows it.
async fn served_model(config: &Config, client: &Client) -> Result<ServedModel> {
    let started = std::time::Instant::now();
    let models = loop {
        match client.models().await {
            Err(_) if started.elapsed() < config.ready_limit => {
                tokio::time::sleep(client::READY_PAUSE).await;
            }
            models => break models?,
        }
    };
    let base = &config.target.base_url;
    let Some(wanted) = &config.names.model else {
        let Some(first) = models.into_iter().next() else {
            bail!("{base} does not list its models: name one by --model");
        };
        eprintln!("Model: {}, the first that the server lists", first.id);
        return Ok(first);
    };
    let id = config.names.served.as_ref().unwrap_or(wanted);
    let listed = models.iter().find(|model| model.id == *id);
    if listed.is_none() && !models.is_empty() {
        let names: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
        tracing::warn!("{base} does not list a model {id}, only {}", names.join(", "));
    }
    let root = listed.map_or(wanted, |model| &model.root).clone();
    Ok(ServedModel { id: id.clone(), root })
}

fn requests(
    config: &Config,
    client: &Client,
    model: &ServedModel,
    prompts: &[Prompt],
    random: &mut impl Rng,
) -> Vec<Request> {
    let run = format!("bench-{:08x}", random.next_u32());
    let request = |(index, prompt): (usize, &Prompt)| {
        let any = config.names.any_of.choose(random);
        let name = any.unwrap_or(&model.id);
        client.request(format!("{run}-{index}"), name, prompt, &config.fields)
    };
    prompts.iter().enumerate().map(request).collect()
}

/// Waits for the server and warms it up, where that is wanted.
async fn prepare(
    config: &Config,
    client: &Arc<Client>,
    first: &Request,
    warmups: Vec<Request>,
) -> Result<()> {
    if !config.ready_limit.is_zero() {
        eprintln!("Starting initial single prompt test run...");
        client.wait_until_ready(first, config.ready_limit).await?;
    }
    if warmups.is_empty() {
        return Ok(());
    }
    let count = warmups.len();
    eprintln!("Warming up with {count} requests...");
    let bar = load::progress_bar(count, config.progress);
    let (rate, times) = (Rate::Constant(f64::INFINITY), vec![0.0; count]);
    let load = Load { requests: warmups, times, rate, concurrency: config.concurrency };
    let run = load::run(client, load, &bar).await;
    bar.finish_and_clear();
    let errors: Vec<&String> = run.outcomes.iter().filter_map(|out| out.error.as_ref()).collect();
    if let Some(error) = errors.first() {
        ensure!(
            errors.len() < count,
            "no warm-up request succeeded; the first failed with: {error}"
        );
        tracing::warn!(
            "{} of {count} warm-up requests failed, the first with: {error}",
            errors.len()
        );
    }
    Ok(())
}

/// What will happen, before it does.
fn tell(config: &Config, prompts: &Prompts) {
    match config.rate {
        Rate::Constant(rate) => eprintln!("Traffic request rate: {rate}"),
        Rate::RampUp { strategy, start, end } => {
            eprintln!("Traffic ramp-up strategy: {}, {start} to {end} RPS", strategy.name());
        }
    }
    let burstiness = config.burstiness;
    let process = if burstiness == 1.0 { "Poisson process" } else { "Gamma distribution" };
    eprintln!("Burstiness factor: {burstiness} ({process})");
    match config.concurrency {
        Some(limit) => eprintln!("Maximum request concurrency: {limit}"),
        None => eprintln!("Maximum request concurrency: None"),
    }
    let (distinct, count) = (prompts.distinct(), prompts.measured.len());
    if distinct < count {
        eprintln!(
            "Only {distinct} of {count} prompts differ: a mixture of experts uses fewer experts for \
             the same text, and caches of prefixes make it faster than new text"
        );
    }
}

fn show_failures(outcomes: &[Outcome]) {
    let failures: Vec<&String> = outcomes.iter().filter_map(|out| out.error.as_ref()).collect();
    if !failures.is_empty() {
        eprintln!("Failed requests during benchmark run detected (capping to {FAILURES_SHOWN}):");
    }
    for (index, error) in failures.iter().take(FAILURES_SHOWN).enumerate() {
        eprintln!("Error {index}: {error}");
    }
}

/// Tokens of an answer: the server's count, else ours, else one for each event.
fn output_tokens(outcome: &Outcome, texts: Option<&Texts>) -> Result<usize> {
    match (outcome.output_tokens.filter(|tokens| *tokens > 0), texts) {
        _ if !outcome.succeeded() => Ok(0),
        (Some(tokens), _) => Ok(tokens),
        (None, Some(texts)) => Ok(texts.tokenizer.encode_verbatim(&outcome.text)?.len()),
        (None, None) => Ok(outcome.itls.len() + 1),
    }
}

async fn reading(client: &Client) -> Option<Reading> {
    Reading::parse(&client.metrics().await?)
}
