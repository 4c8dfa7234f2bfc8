//! The model that a command works on: a folder, or the one that is part of the program.

use anyhow::{Context, bail};
use artel_device::cpu::CpuFeatures;
use artel_device::host::available_memory_bytes;
use artel_model::{Checkpoint, LoadOptions, Model, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::{LoadFormat, ModelArgs};

/// Name of the model that ships with the program.
pub const BUNDLED_NAME: &str = "tally";

/// Makes (file name, content) of files of the bundled model.
macro_rules! bundled {
    ($($file:literal),+ $(,)?) => {
        [$(($file, include_bytes!(concat!("../../../models/tally/", $file)) as &[u8])),+]
    };
}

/// The files of the bundled model.
static BUNDLED: [(&str, &[u8]); 5] = bundled![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Opens the checkpoint that `args` names.
///
/// # Errors
/// When it cannot be opened; the message names the file.
pub fn open(args: &ModelArgs) -> anyhow::Result<Checkpoint> {
    match (&args.model, args.load_format) {
        (Some(folder), LoadFormat::Auto) => Ok(Checkpoint::open(folder)?),
        (Some(folder), LoadFormat::Dummy) => Ok(Checkpoint::open_dummy(folder)?),
        (None, LoadFormat::Auto) => bundled(),
        (None, LoadFormat::Dummy) => {
            bail!("--load-format dummy needs MODEL, a folder with config.json")
        }
    }
}

/// The checkpoint that is part of the program.
///
/// # Errors
/// Never, unless the program is broken.
pub fn bundled() -> anyhow::Result<Checkpoint> {
    Checkpoint::from_static(BUNDLED_NAME, &BUNDLED)
        .context("this is a bug: the bundled model does not open")
}

/// Loads the model of `checkpoint` to compute with it: weights that fit the memory are read from
/// the disk now, in order, and not piece by piece when the first tokens need them.
///
/// # Errors
/// When a weight is missing, too many, or of the wrong shape or type.
pub fn load(args: &ModelArgs, checkpoint: &Checkpoint) -> anyhow::Result<Model> {
    let model = load_mapped(args, checkpoint)?;
    if args.model.is_some() && !checkpoint.is_dummy() {
        let bytes: usize = checkpoint.tensors().map(|(_, tensor)| tensor.bytes.len()).sum();
        match available_memory_bytes() {
            Some(available) if bytes > available => tracing::warn!(
                "the weights take {}, but only {} of memory are free: they will be read from the \
                 disk again and again",
                HumanBytes(bytes as u64),
                HumanBytes(available as u64)
            ),
            _ => {
                let bar = progress_bar("reading", &checkpoint.name());
                checkpoint.read_ahead(&mut |progress| show(&bar, progress));
                bar.finish_and_clear();
            }
        }
    }
    Ok(model)
}

/// Loads the model of `checkpoint` to look at it: weights stay on the disk unless they are
/// converted.
///
/// # Errors
/// As [`load`].
pub fn load_mapped(args: &ModelArgs, checkpoint: &Checkpoint) -> anyhow::Result<Model> {
    let features = CpuFeatures::detect();
    let features = if args.fast { features } else { features.with_invariant_rows() };
    let options = LoadOptions { format: args.format, features };
    let bar = progress_bar("loading", &checkpoint.name());
    let model = Model::load_with_progress(checkpoint, &options, &mut |done| show(&bar, done));
    bar.finish_and_clear();
    let model = model?;
    let config = model.config();
    tracing::info!(
        "loaded {}: {}, {} parameters, {}",
        checkpoint.name(),
        config.architecture,
        model.parameters().total(),
        HumanBytes(model.parameters().bytes() as u64)
    );
    Ok(model)
}

/// A bar of bytes on standard error; nothing where that is not a terminal.
pub fn progress_bar(verb: &'static str, name: &str) -> ProgressBar {
    bar(verb, name, "{bytes}/{total_bytes}")
}

/// The same of tokens.
pub fn token_bar(verb: &'static str, name: &str) -> ProgressBar {
    bar(verb, name, "{human_pos}/{human_len} tokens")
}

fn bar(verb: &'static str, name: &str, amount: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{prefix}} {{msg}} {{wide_bar}} {amount}"))
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(0).with_style(style).with_prefix(verb).with_message(name.to_owned())
}

/// Moves the bar to where the work is.
pub fn show(bar: &ProgressBar, progress: Progress) {
    if bar.length() != Some(progress.bytes_total as u64) {
        bar.set_length(progress.bytes_total as u64);
    }
    bar.set_position(progress.bytes_done as u64);
}
