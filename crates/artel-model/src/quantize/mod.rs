//! A checkpoint written again with quantised weights, in a layout that other engines read too.
//!
//! What is quantised is what loading converts: projections of attention, dense MLPs and experts.
//! Embedding, output layer, routers and norms stay as they are. One matrix at a time is in memory.
//!
//! A [`Calibration`] says what the matrices meet when the model reads texts. With it scales are chosen
//! for the smallest error of outputs.

mod calibration;
mod errors;
mod layout;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_calibration;
mod texts;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use artel_moe::quant::{AnyMatrix, Fit, Format, Int4Matrix, Int8GroupMatrix, ZeroPoints};
pub use calibration::{Calibration, CalibrationProgress};
use errors::Squares;
pub use errors::{CalibratedError, LayerError};
use layout::Stored;
use serde_json::Value;
use writer::FolderWriter;

use crate::checkpoint::{Progress, StoredTensor};
use crate::weights::dense_matrix;
use crate::{Checkpoint, LoadOptions, Model, ModelError, Result};

/// Files of a folder that are copied where they are there.
const TEXTS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
];

/// How a checkpoint is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// One with codes.
    pub format: Format,
    /// Columns that share a scale, in the formats that leave it open (INT4 and INT8 by group).
    pub group: usize,
    /// Whether groups of INT4 have zero points.
    pub zero_points: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Bytes of all tensors.
    pub bytes: usize,
    /// In the order of the layers.
    pub layers: Vec<LayerError>,
}

/// Writes the checkpoint into `folder`, which is made, with its weights quantised. The folder has a
/// `config.json` only when everything is in it. Reports after each tensor.
///
/// # Errors
/// [`ModelError`] when the checkpoint does not load, is quantised already, keeps experts as one tensor,
/// or the folder has files in it or cannot be written.
pub fn quantize(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    folder: &Path,
    report: &mut dyn FnMut(Progress),
) -> Result<Quantized> {
    write(checkpoint, (options, None), folder, report)
}

/// The same with scales for which the outputs of matrices, given inputs as those of `calibration`, lose
/// least. The layout is the same.
///
/// # Errors
/// As [`quantize`], and when the calibration is that of another model.
pub fn quantize_calibrated(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    calibration: &Calibration,
    folder: &Path,
    report: &mut dyn FnMut(Progress),
) -> Result<Quantized> {
    write(checkpoint, (options, Some(calibration)), folder, report)
}

fn write(
    checkpoint: &Checkpoint,
    (options, calibration): (&QuantizeOptions, Option<&Calibration>),
    folder: &Path,
    report: &mut dyn FnMut(Progress),
) -> Result<Quantized> {
    let quantization = layout::quantization_config(options)?;
    check_options(checkpoint, options)?;
    let names = quantized_names(checkpoint)?;
    let plan = plan(checkpoint, options, &names)?;
    let mut writer = FolderWriter::create(folder, plan.iter().flat_map(|(.., stored)| stored))?;
    let bytes_total = plan.iter().map(|(_, tensor, _)| tensor.bytes.len()).sum();
    let (mut bytes_done, mut errors) = (0, BTreeMap::new());
    for (name, tensor, _) in &plan {
        if names.contains(*name) {
            let mean_squares = calibration.map(|all| mean_squares(all, name)).transpose()?;
            let (matrix, squares) = quantize_matrix(name, tensor, options, mean_squares)?;
            let sums: &mut Squares = errors.entry(layer_of(name)).or_default();
            sums.add(&squares);
            layout::contents(&matrix).iter().try_for_each(|bytes| writer.write(bytes))?;
        } else {
            writer.write(tensor.bytes.as_bytes())?;
        }
        // Nobody asks for these pages again; a process that keeps them looks as large as the checkpoint.
        tensor.bytes.release_pages();
        bytes_done += tensor.bytes.len();
        report(Progress { bytes_done, bytes_total });
    }
    let bytes = writer.finish()?;
    for file in TEXTS {
        if let Some(text) = checkpoint.find_text(file)? {
            writer::write_file(folder, file, text.as_bytes())?;
        }
    }
    let mut config = checkpoint.find_json("config.json")?.unwrap_or_default();
    config.insert("quantization_config".to_owned(), quantization);
    writer::write_json(folder, "config.json", &Value::Object(config))?;
    let layer = |((name, number), squares): ((String, Option<usize>), Squares)| {
        squares.of(number.map_or(name.clone(), |number| format!("{name}{number}")))
    };
    let layers = errors.into_iter().map(layer).collect();
    Ok(Quantized { bytes, layers })
}

fn check_options(checkpoint: &Checkpoint, options: &QuantizeOptions) -> Result<()> {
    let refuse = |why: String| Err(ModelError::Quantize { why });
    if checkpoint.config().has("quantization_config") {
        return refuse(format!("{} is quantised already", checkpoint.name()));
    }
    if options.zero_points && options.format != Format::Int4W4A16 {
        return refuse(format!("{} has no zero points; int4-w4a16 can have them", options.format));
    }
    Ok(())
}

/// Matrices that loading would convert.
fn quantized_names(checkpoint: &Checkpoint) -> Result<BTreeSet<String>> {
    let model = Model::load(checkpoint, &LoadOptions::default())?;
    let converted = model.parameters().matrices().iter().filter(|(_, group)| group.is_converted());
    let names: BTreeSet<String> = converted.map(|(name, _)| name.clone()).collect();
    let has_experts = names.iter().any(|name| name.contains("experts"));
    if model.config().experts > 0 && !has_experts {
        let why = format!(
            "{} keeps all experts of a layer in one tensor, which is not quantised yet",
            checkpoint.name()
        );
        return Err(ModelError::Quantize { why });
    }
    Ok(names)
}

/// Every tensor of the checkpoint and what it becomes.
type Plan<'a> = Vec<(&'a str, &'a StoredTensor, Vec<Stored>)>;

fn plan<'a>(
    checkpoint: &'a Checkpoint,
    options: &QuantizeOptions,
    names: &BTreeSet<String>,
) -> Result<Plan<'a>> {
    let tensor = |(name, tensor): (&'a str, &'a StoredTensor)| {
        let stored = match name.strip_suffix("weight").filter(|_| names.contains(name)) {
            Some(base) => layout::tensors(options, base, shape_of(name, tensor)?)?,
            None => {
                let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
                vec![Stored { name: name.to_owned(), dtype, shape }]
            }
        };
        Ok((name, tensor, stored))
    };
    checkpoint.tensors().map(tensor).collect()
}

fn shape_of(name: &str, tensor: &StoredTensor) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(&tensor.shape[..]).map_err(|_| ModelError::Quantize {
        why: format!("{name} has shape {:?} and is no matrix", tensor.shape),
    })
}

fn mean_squares<'a>(calibration: &'a Calibration, name: &str) -> Result<&'a [f32]> {
    calibration.mean_squares(name).ok_or_else(|| ModelError::Quantize {
        why: format!("the calibration is that of another model: it has not met {name}"),
    })
}

/// The matrix quantised, with scales for inputs of these mean squares where they are known, and what was
/// lost.
fn quantize_matrix(
    name: &str,
    tensor: &StoredTensor,
    options: &QuantizeOptions,
    mean_squares: Option<&[f32]>,
) -> Result<(AnyMatrix, Squares)> {
    let dense = dense_matrix(name, tensor, shape_of(name, tensor)?)?;
    let usual = convert(&dense, options, Fit::Weights)?;
    let Some(mean_squares) = mean_squares else {
        let squares = Squares::uncalibrated(&dense, &usual);
        return Ok((usual, squares));
    };
    let fitted = convert(&dense, options, Fit::Inputs(mean_squares))?;
    let squares = Squares::calibrated(&dense, [&usual, &fitted], mean_squares);
    Ok((fitted, squares))
}

fn convert(dense: &AnyMatrix, options: &QuantizeOptions, fit: Fit<'_>) -> Result<AnyMatrix> {
    let shape = [dense.rows(), dense.columns()];
    let row = |row, out: &mut [f32]| dense.dequantize_row(row, out);
    let zero_points = if options.zero_points { ZeroPoints::Fitted } else { ZeroPoints::None };
    Ok(match options.format {
        Format::Int4W4A16 => {
            let matrix = Int4Matrix::quantize(shape, options.group, zero_points, fit, row)?;
            AnyMatrix::Int4W4A16(matrix)
        }
        Format::Int8W8A16 => {
            AnyMatrix::Int8W8A16(Int8GroupMatrix::quantize(shape, options.group, fit, row)?)
        }
        format => dense.convert_fitted(format, fit)?,
    })
}

/// `model.layers.` and 3 of `model.layers.3.mlp.up_proj.weight`; all of a name without a number.
fn layer_of(name: &str) -> (String, Option<usize>) {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.iter().position(|part| part.parse::<usize>().is_ok()) {
        Some(place) => (format!("{}.", parts[..place].join(".")), parts[place].parse().ok()),
        None => (name.to_owned(), None),
    }
}
