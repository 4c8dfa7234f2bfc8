//! Mixture-of-experts inference from one binary. Flags and environment are read here and nowhere
//! below.

mod bench;
mod cli;
mod commands;
mod compute;
mod eval;
mod interrupt;
mod npy;
mod ranks;
mod record;
mod sampling;
// Only GPU commands take layers by name.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
mod shapes;
mod source;

use std::io;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command, LogLevel};

fn main() -> ExitCode {
    let cli = Cli::parse_from(cli::with_dotted_fields(std::env::args_os()));
    match start(&cli).and_then(|()| dispatch(&cli.command)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("artel: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// Settings of the process: log and threads.
fn start(cli: &Cli) -> anyhow::Result<()> {
    let usual = match cli.command {
        Command::Serve(_) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    let level = match cli.log.unwrap_or(usual) {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).init();
    let threads = cli.threads.map_or(0, std::num::NonZeroUsize::get);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("cannot start the compute threads")
}

fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(args) => commands::run::run(args),
        Command::Serve(args) => commands::serve::serve(args),
        Command::Inspect(args) => commands::inspect::inspect(args).map(done),
        Command::Logits(args) => commands::logits::logits(args).map(done),
        Command::Quantize(args) => commands::quantize::quantize(args).map(done),
        Command::Eval(command) => commands::eval::eval(command),
        Command::Bench(command) => commands::bench::bench(command).map(done),
        Command::Eplb(command) => commands::eplb::eplb(command).map(done),
        Command::Kernels(command) => commands::kernels::kernels(command).map(done),
        Command::Tune(args) => commands::tune::tune(args).map(done),
    }
}

/// The error and its causes, each said once: some messages hold their cause already.
fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        match (text.is_empty(), text.contains(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}

/// The reader of our output went away, as `| head` does; nobody is left to tell.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
