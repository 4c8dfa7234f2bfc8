//! `artel eval`: how well a model solves problems.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use artel_engine::{Cancellation, EngineConfig, EngineHandle};
use artel_model::{ChatTemplate, Checkpoint, GenerationConfig, Model, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{
    ArithmeticArgs, ComputeArgs, EvalCommand, EvaluationArgs, ExamplesArg, Gsm8kArgs, ModelArgs,
    SplitArg,
};
use crate::eval::arithmetic::{self, Exam, Score, Split};
use crate::eval::completions::Candidate;
use crate::eval::gsm8k::{self, Dataset, Shots};
use crate::eval::remote::RemoteModel;
use crate::interrupt::{EXIT_INTERRUPTED, Interrupt};
use crate::record::{self, Provenance};
use crate::{compute, source};

/// Runs the evaluation that was asked for.
///
/// # Errors
/// When the model or the data does not load, or a result cannot be written.
pub fn eval(command: &EvalCommand) -> anyhow::Result<ExitCode> {
    match command {
        EvalCommand::Arithmetic(args) => match (&args.write, args.split) {
            (Some(path), Some(split)) => write_problems(args, path, split),
            _ => arithmetic(args),
        },
        EvalCommand::Gsm8k(args) => gsm8k(args),
    }
}

/// What every evaluation's record begins with.
#[derive(Debug, Serialize)]
struct Record<R> {
    task: &'static str,
    model: String,
    format: Option<&'static str>,
    #[serde(flatten)]
    provenance: Provenance,
    seconds: f64,
    #[serde(flatten)]
    result: R,
}

#[derive(Debug, Serialize)]
struct ArithmeticResult {
    seed: u64,
    exact_match: f64,
    standard_error: f64,
    tokens_per_second: f64,
    #[serde(flatten)]
    report: arithmetic::Report,
}

#[derive(Debug, Serialize)]
struct Gsm8kResult {
    problems: u64,
    shots: usize,
    strict_match: f64,
    strict_match_standard_error: f64,
    flexible_extract: f64,
    flexible_extract_standard_error: f64,
}

/// A loaded model and what else an evaluation needs of its checkpoint.
struct Subject {
    checkpoint: Checkpoint,
    model: Arc<Model>,
    engine: EngineHandle,
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
}

impl Subject {
    fn load(model: &ModelArgs, args: &ComputeArgs, batch_size: usize) -> anyhow::Result<Self> {
        let checkpoint = source::open(model)?;
        let tokenizer = Tokenizer::read(&checkpoint)?;
        let config = compute::batch_steps(args, EngineConfig::offline(batch_size));
        let subject = compute::Subject { model, compute: args, checkpoint: &checkpoint };
        let (model, engine) = compute::engine(subject, &tokenizer, config)?;
        let engine = engine.spawn()?;
        let end_tokens = GenerationConfig::read(&checkpoint)?.end_tokens;
        Ok(Self { checkpoint, model, engine, tokenizer, end_tokens })
    }

    fn solver(&self) -> Solver {
        let format = self.model.moe_plan().map(|plan| plan.format());
        Solver { model: self.checkpoint.name(), format }
    }
}

/// Who solved the problems.
struct Solver {
    model: String,
    /// Number format of its experts, where that is known.
    format: Option<&'static str>,
}

impl Solver {
    fn record<R>(self, task: &'static str, seconds: f64, result: R) -> Record<R> {
        let Self { model, format } = self;
        Record { task, model, format, provenance: Provenance::here(), seconds, result }
    }
}

fn arithmetic(args: &ArithmeticArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.num_problems > 0, "--num-problems is 0: there is nothing to solve");
    ensure!(args.evaluation.batch_size > 0, "--batch-size is 0: nothing would be solved");
    let interrupt = Interrupt::listen()?;
    let mut samples = SampleFile::create(&args.evaluation)?;
    let bar = progress_bar(args.num_problems);
    let (num_problems, seed) = (args.num_problems, args.seed);
    let exam = Exam { num_problems, seed, max_tokens: args.max_tokens };
    let done = |report: &arithmetic::Report, sample: &arithmetic::Sample<'_>| {
        bar.set_position(report.total.problems);
        bar.set_message(format!("{:.3}", report.total.exact_match()));
        samples.write(sample)
    };
    let cancellation = interrupt.cancellation();
    let (started, report, solver) = match &args.url {
        Some(url) => solve_remotely(url, args, exam, &cancellation, done)?,
        None => solve_here(args, exam, &cancellation, done)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    samples.finish()?;
    let tokens_per_second = report.completion_tokens as f64 / seconds;
    print_arithmetic(args.seed, &report, tokens_per_second)?;
    if let Some(path) = &args.evaluation.save_result {
        let result = ArithmeticResult {
            seed: args.seed,
            exact_match: report.total.exact_match(),
            standard_error: report.total.standard_error(),
            tokens_per_second,
            report,
        };
        record::save(path, &solver.record("arithmetic", seconds, result))?;
    }
    Ok(exit_code(&interrupt))
}

/// When the first problem was put, how the model did, and which it was.
type Solved = (Instant, arithmetic::Report, Solver);

fn solve_here(
    args: &ArithmeticArgs,
    exam: Exam,
    cancellation: &Cancellation,
    done: impl FnMut(&arithmetic::Report, &arithmetic::Sample<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Solved> {
    let subject = Subject::load(&args.model, &args.compute, args.evaluation.batch_size)?;
    let template = ChatTemplate::read(&subject.checkpoint)?;
    let started = Instant::now();
    let candidate = Candidate {
        engine: &subject.engine,
        tokenizer: &subject.tokenizer,
        end_tokens: &subject.end_tokens,
        cancellation,
    };
    let report = arithmetic::evaluate(candidate, &template, exam, done)?;
    Ok((started, report, subject.solver()))
}

fn solve_remotely(
    url: &str,
    args: &ArithmeticArgs,
    exam: Exam,
    cancellation: &Cancellation,
    done: impl FnMut(&arithmetic::Report, &arithmetic::Sample<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Solved> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let model = RemoteModel::connect(url, args.api_key.clone()).await?;
        let started = Instant::now();
        let at_a_time = args.evaluation.batch_size;
        let report =
            arithmetic::evaluate_remote(&model, exam, at_a_time, cancellation, done).await?;
        Ok((started, report, Solver { model: model.name, format: None }))
    })
}

fn print_arithmetic(
    seed: u64,
    report: &arithmetic::Report,
    tokens_per_second: f64,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let line = |score: &Score| {
        let (mean, error) = (score.exact_match(), score.standard_error());
        format!("{mean:.4} ± {error:.4}  ({} of {})", score.right, score.problems)
    };
    writeln!(out, "arithmetic, held-out problems of seed {seed}, greedy")?;
    writeln!(out, "  exact match  {}", line(&report.total))?;
    for (steps, score) in &report.by_steps {
        writeln!(out, "    {steps} steps    {}", line(score))?;
    }
    writeln!(out, "  {} tokens at {tokens_per_second:.0} tokens/s", report.completion_tokens)?;
    Ok(())
}

fn gsm8k(args: &Gsm8kArgs) -> anyhow::Result<ExitCode> {
    let dataset = Dataset::load(&args.data)?;
    let available = dataset.test.len();
    let problems = args.num_problems.unwrap_or(available);
    ensure!(
        (1..=available).contains(&problems),
        "--num-problems is {problems}, but {} has 1 to {available} problems to solve",
        args.data.join("test.jsonl").display()
    );
    let interrupt = Interrupt::listen()?;
    let subject = Subject::load(&args.model, &args.compute, args.evaluation.batch_size)?;
    let mut samples = SampleFile::create(&args.evaluation)?;
    let shots = match args.examples {
        ExamplesArg::Drawn => Shots::HARNESS,
        ExamplesArg::First => Shots::First,
    };
    let bar = progress_bar(problems);
    let started = Instant::now();
    let candidate = Candidate {
        engine: &subject.engine,
        tokenizer: &subject.tokenizer,
        end_tokens: &subject.end_tokens,
        cancellation: &interrupt.cancellation(),
    };
    let report = gsm8k::evaluate(candidate, &dataset, shots, problems, |report, sample| {
        bar.set_position(report.total);
        bar.set_message(format!("{:.3}", report.strict_match().0));
        samples.write(sample)
    })?;
    bar.finish_and_clear();
    samples.finish()?;
    let (strict, flexible) = (report.strict_match(), report.flexible_extract());
    let mut out = std::io::stdout().lock();
    writeln!(out, "gsm8k, {} shots, {} problems", gsm8k::SHOTS, report.total)?;
    writeln!(out, "  strict match      {:.4} ± {:.4}", strict.0, strict.1)?;
    writeln!(out, "  flexible extract  {:.4} ± {:.4}", flexible.0, flexible.1)?;
    if let Some(path) = &args.evaluation.save_result {
        let result = Gsm8kResult {
            problems: report.total,
            shots: gsm8k::SHOTS,
            strict_match: strict.0,
            strict_match_standard_error: strict.1,
            flexible_extract: flexible.0,
            flexible_extract_standard_error: flexible.1,
        };
        let seconds = started.elapsed().as_secs_f64();
        record::save(path, &subject.solver().record("gsm8k", seconds, result))?;
    }
    Ok(exit_code(&interrupt))
}

fn write_problems(args: &ArithmeticArgs, path: &Path, split: SplitArg) -> anyhow::Result<ExitCode> {
    let split = match split {
        SplitArg::Training => Split::Training,
        SplitArg::HeldOut => Split::HeldOut,
    };
    arithmetic::write_jsonl(&mut create(path)?, split, args.seed, args.num_problems as u64)
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {} problems to {}", args.num_problems, path.display());
    Ok(ExitCode::SUCCESS)
}

/// The file of `--save-samples`, if one was asked for.
struct SampleFile(Option<BufWriter<File>>);

impl SampleFile {
    fn create(args: &EvaluationArgs) -> anyhow::Result<Self> {
        Ok(Self(args.save_samples.as_deref().map(create).transpose()?))
    }

    fn write(&mut self, sample: &impl Serialize) -> anyhow::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{}", serde_json::to_string(sample)?).context("cannot write the samples")
    }

    fn finish(self) -> anyhow::Result<()> {
        self.0.map_or(Ok(()), |mut file| file.flush().context("cannot write the samples"))
    }
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::new(file))
}

fn progress_bar(problems: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} exact match {msg} {eta}")
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(problems as u64).with_style(style)
}

/// What was scored before an interruption is reported, but the status says that it is not all.
fn exit_code(interrupt: &Interrupt) -> ExitCode {
    ExitCode::from(if interrupt.requested() { EXIT_INTERRUPTED as u8 } else { 0 })
}
