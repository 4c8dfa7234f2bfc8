//! The model that a command works on: a folder, or the one that is part of the program.

use anyhow::Context;
use artel_model::{Checkpoint, Format, LoadOptions, Model, Progress};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::{ModelArgs, WeightFormat};

/// Name of the model that ships with the program.
const BUNDLED_NAME: &str = "tally";

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
    match &args.model {
        Some(folder) => Ok(Checkpoint::open(folder)?),
        None => Checkpoint::from_static(BUNDLED_NAME, &BUNDLED)
            .context("this is a bug: the bundled model does not open"),
    }
}

/// Loads the model of `checkpoint`, with a progress bar on a terminal.
///
/// # Errors
/// When a weight is missing, too many, or of the wrong shape or type.
pub fn load(args: &ModelArgs, checkpoint: &Checkpoint) -> anyhow::Result<Model> {
    let format = args.format.map(|format| match format {
        WeightFormat::F32 => Format::F32,
        WeightFormat::F16 => Format::F16,
        WeightFormat::Bf16 => Format::Bf16,
        WeightFormat::Fp8Block128 => Format::Fp8Block128,
    });
    let options = LoadOptions { format, ..LoadOptions::default() };
    let bar = progress_bar(&checkpoint.name());
    let model = Model::load_with_progress(checkpoint, &options, &mut |progress: Progress| {
        if bar.length() != Some(progress.bytes_total as u64) {
            bar.set_length(progress.bytes_total as u64);
        }
        bar.set_position(progress.bytes_done as u64);
    });
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
    if let Some(plan) = model.moe_plan() {
        tracing::info!("{plan}");
    }
    Ok(model)
}

/// A bar on standard error; nothing where that is not a terminal.
fn progress_bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("loading {msg} {wide_bar} {bytes}/{total_bytes}")
        .expect("this is a bug: the template of the progress bar");
    ProgressBar::new(0).with_style(style).with_message(name.to_owned())
}
