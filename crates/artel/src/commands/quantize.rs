//! `artel quantize`: a checkpoint with its weights in another format, and what that lost.

use std::io::{self, Write};

use artel_model::quantize::{LayerError, QuantizeOptions, quantize as write_folder};
use indicatif::{HumanBytes, HumanCount};

use crate::cli::{ModelArgs, QuantizeArgs};
use crate::source;

/// Writes the folder and prints the error of each layer.
///
/// # Errors
/// When the model does not load or cannot be quantised, or the folder cannot be written.
pub fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let checkpoint = source::open(&ModelArgs::of(args.model.clone()))?;
    let options = QuantizeOptions {
        format: args.format,
        group: args.group_size.get(),
        zero_points: args.zero_points,
    };
    let bar = source::progress_bar("quantising", &checkpoint.name());
    let report = &mut |progress| source::show(&bar, progress);
    let done = write_folder(&checkpoint, &options, &args.output, report);
    bar.finish_and_clear();
    let done = done?;
    let mut out = io::stdout().lock();
    writeln!(out, "  {:<24} {:>16} {:>10}", "layer", "parameters", "error")?;
    for LayerError { layer, parameters, error } in &done.layers {
        let parameters = HumanCount(*parameters as u64).to_string();
        writeln!(out, "  {layer:<24} {parameters:>16} {:>9.3}%", error * 100.0)?;
    }
    let (output, bytes) = (args.output.display(), HumanBytes(done.bytes as u64));
    writeln!(out, "wrote {output}: {bytes} in {}", args.format)?;
    Ok(())
}
