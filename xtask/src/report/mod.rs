//! `cargo xtask bench-report`: the tables and pictures of `docs/`, made from `benches/results/`.

mod chart;
mod cpu;
mod eplb;
mod formats;
mod gpu;
mod malformed;
mod serving;
mod small_steps;

use std::path::Path;

use anyhow::Context;
use plotters::style::RGBColor;
use serde::de::DeserializeOwned;

/// Of the lines of a chart, in their order.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// Writes `docs/cpu-layer.*` and, from what there is of it, `docs/gpu-layer*`, `docs/gpu-serving.md`,
/// `docs/malformed.md`, `docs/formats.md` and `docs/eplb*`. Gives back a sentence for every measurement that is missing.
///
/// # Errors
/// When the record of the CPU is missing, a record is malformed, or `docs/` cannot be written.
pub fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    cpu::make(root)?;
    let mut missing = gpu::make(root)?;
    missing.extend(serving::make(root)?);
    missing.extend(malformed::make(root)?);
    missing.extend(formats::make(root)?);
    missing.extend(eplb::make(root)?);
    Ok(missing)
}

/// A record; `command` makes it.
fn read<T: DeserializeOwned>(path: &Path, command: &str) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: run `{command}` first", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Writes a file of `docs/` and makes the folder for it.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a page lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
