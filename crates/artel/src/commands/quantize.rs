//! `artel quantize`: a checkpoint with its weights in another format, and what that lost.

use std::io::{self, Write};
use std::path::Path;

use artel_model::Checkpoint;
use artel_model::quantize::{self as folder, Calibration, LayerError, QuantizeOptions};
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{ModelArgs, QuantizeArgs};
use crate::source;

/// Writes the folder and prints the error of each layer.
///
/// # Errors
/// When the model does not load or cannot be quantised, the texts to calibrate with cannot be read, or
/// the folder cannot be written.
pub fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let checkpoint = source::open(&ModelArgs::of(args.model.clone()))?;
    let options = QuantizeOptions {
        format: args.format,
        group: args.group_size.get(),
        zero_points: args.zero_points,
    };
    let tokens = args.calibrate_tokens.get();
    let calibration = args.calibrate.as_deref().map(|file| calibrate(&checkpoint, file, tokens));
    let calibration = calibration.transpose()?;
    let bar = source::progress_bar("quantising", &checkpoint.name());
    let report = &mut |progress| source::show(&bar, progress);
    let (from, output) = (&checkpoint, &args.output);
    let done = match &calibration {
        None => folder::quantize(from, &options, output, report),
        Some(calibration) => {
            folder::quantize_calibrated(from, &options, calibration, output, report)
        }
    };
    bar.finish_and_clear();
    let done = done?;
    let mut out = io::stdout().lock();
    write_layers(&mut out, &done.layers)?;
    if let Some(calibration) = &calibration {
        let tokens = HumanCount(calibration.tokens() as u64);
        writeln!(out, "calibrated with {tokens} tokens; plain: the same without calibration")?;
    }
    let (output, bytes) = (args.output.display(), HumanBytes(done.bytes as u64));
    writeln!(out, "wrote {output}: {bytes} in {}", args.format)?;
    Ok(())
}

/// Lets the model read the texts of `file`.
fn calibrate(checkpoint: &Checkpoint, file: &Path, tokens: usize) -> anyhow::Result<Calibration> {
    let bar = source::token_bar("calibrating", &checkpoint.name());
    let calibration = Calibration::read(checkpoint, file, tokens, &mut |progress| {
        bar.set_length(progress.tokens_total as u64);
        bar.set_position(progress.tokens_done as u64);
    });
    bar.finish_and_clear();
    Ok(calibration?)
}

/// A line for each layer: errors of weights and, where they are known, of outputs.
fn write_layers(out: &mut impl Write, layers: &[LayerError]) -> io::Result<()> {
    let is_calibrated = layers.iter().any(|layer| layer.calibrated.is_some());
    write!(out, "  {:<24} {:>16} {:>10}", "layer", "parameters", "error")?;
    if is_calibrated {
        write!(out, " {:>10} {:>12} {:>10}", "plain", "output error", "plain")?;
    }
    writeln!(out)?;
    for LayerError { layer, parameters, error, calibrated } in layers {
        let parameters = HumanCount(*parameters as u64).to_string();
        write!(out, "  {layer:<24} {parameters:>16} {:>9.3}%", error * 100.0)?;
        if let Some(found) = calibrated {
            let [usual, output, usual_output] =
                [found.uncalibrated_error, found.output_error, found.uncalibrated_output_error]
                    .map(|error| error * 100.0);
            write!(out, " {usual:>9.3}% {output:>11.3}% {usual_output:>9.3}%")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
