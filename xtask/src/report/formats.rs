//! The page of the number formats: `docs/formats.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::gpu::{self, UNIFORM};
use super::{read, write};

/// The layer on a CPU in every format.
const CPU: &str = "benches/results/cpu/formats.json";
/// What makes it.
const CPU_COMMAND: &str = "artel bench layer --device cpu --shape qwen3-30b-a3b --format FORMATS --tokens \
                           1,8,64 --save-result benches/results/cpu/formats.json";
/// What makes the scores.
const SCORE_COMMAND: &str = "artel eval arithmetic --format FORMAT --save-result benches/results/cpu/arithmetic-FORMAT.json";
/// The layer whose times on a GPU are compared, in every format.
const GPU_SHAPE: &str = "m2.5-tp2-";
/// Batch sizes of the GPU's columns.
const GPU_TOKENS: [u32; 4] = [1, 8, 64, 4096];
/// The format that others are measured against.
const PLAIN: &str = "bf16";

/// A run of `artel bench layer --device cpu` over formats.
#[derive(Debug, Deserialize)]
struct CpuRecord {
    commit: String,
    date: String,
    rows: Vec<CpuRow>,
}

#[derive(Debug, Deserialize)]
struct CpuRow {
    shape: String,
    format: String,
    tokens: u32,
    microseconds: f64,
    share_of_ceiling: f64,
    bytes_per_weight: f64,
    relative_error: f64,
}

/// A run of `artel eval arithmetic`.
#[derive(Debug, Deserialize)]
struct Score {
    total: Total,
}

#[derive(Debug, Deserialize)]
struct Total {
    problems: u32,
    right: u32,
}

/// What is known of the formats, each in the order of the CPU's record.
struct Measured {
    cpu: CpuRecord,
    scores: BTreeMap<String, Score>,
    gpu: BTreeMap<String, gpu::Record>,
}

/// Writes the page; gives back what is missing.
///
/// # Errors
/// When a record is malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    if !root.join(CPU).exists() {
        return Ok(vec![format!(
            "docs/formats.md is not made: there is no {CPU}; run `{CPU_COMMAND}`"
        )]);
    }
    let cpu: CpuRecord = read(&root.join(CPU), CPU_COMMAND)?;
    let records = gpu::records(root)?.into_iter();
    let gpu = records.filter(|record| record.shape.starts_with(GPU_SHAPE));
    let gpu = gpu.map(|record| (record.format().to_owned(), record)).collect();
    let (mut measured, mut missing) = (Measured { cpu, scores: BTreeMap::new(), gpu }, Vec::new());
    for format in formats(&measured.cpu.rows) {
        let path = format!("benches/results/cpu/arithmetic-{format}.json");
        match root.join(&path) {
            file if file.exists() => {
                measured.scores.insert(format.to_owned(), read(&file, SCORE_COMMAND)?);
            }
            _ => missing.push(format!("docs/formats.md lacks {path}: run `{SCORE_COMMAND}`")),
        }
        if !measured.gpu.contains_key(format) {
            missing.push(format!(
                "docs/formats.md lacks {GPU_SHAPE}… in {format}: on a machine with the GPU run `{}`",
                gpu::COMMAND
            ));
        }
    }
    write(&root.join("docs/formats.md"), &page(&measured))?;
    Ok(missing)
}

/// Every format once, in the order of the rows.
fn formats(rows: &[CpuRow]) -> Vec<&str> {
    let mut formats: Vec<&str> = Vec::new();
    for row in rows {
        if !formats.contains(&row.format.as_str()) {
            formats.push(&row.format);
        }
    }
    formats
}

fn page(measured: &Measured) -> String {
    let CpuRecord { commit, date, rows } = &measured.cpu;
    let mut text = format!(
        "# Number formats of the experts\n\nGenerated from `benches/results` by `cargo xtask \
         bench-report`; measured by\n\n```\n{CPU_COMMAND}\n{SCORE_COMMAND}\n{}\n```\n\n\
         Bytes a weight: with its scales, in groups of 128 where the format leaves that open. Error: of a \
         layer's output, in the norm, against float64 on the same stored weights (activations quantised \
         where the format does), the largest over the batch sizes. Score: word problems that the bundled \
         model solves in this format, greedy, its attention and dense layers converted too. GPU: \
         microseconds of the experts of MiniMax-M2.5 on one of two H200s by batch size T, and the share of \
         the least time in which their bytes can be read or their operations done; uniform routing, cold \
         weights. An empty cell was not measured. CPU commit {commit}, {date}.\n\n",
        gpu::COMMAND
    );
    text.push_str("| format | bytes a weight | error, CPU | error, GPU | score |");
    GPU_TOKENS.iter().for_each(|tokens| _ = write!(text, " GPU, T = {tokens} |"));
    text.push_str("\n|---|---:|---:|---:|---:|");
    text.push_str(&"---:|".repeat(GPU_TOKENS.len()));
    text.push('\n');
    for format in formats(rows) {
        text.push_str(&main_row(measured, format));
    }
    text.push_str(&cpu_table(rows));
    text
}

fn main_row(measured: &Measured, format: &str) -> String {
    let of_format: Vec<&CpuRow> =
        measured.cpu.rows.iter().filter(|row| row.format == format).collect();
    let error = of_format.iter().map(|row| row.relative_error).fold(0.0, f64::max);
    let gpu: Vec<&gpu::Row> =
        measured.gpu.get(format).map_or(Vec::new(), |record| record.rows_of(UNIFORM).collect());
    let gpu_error = gpu.iter().map(|row| row.relative_error).reduce(f64::max);
    let score = measured
        .scores
        .get(format)
        .map_or(String::new(), |Score { total }| format!("{} of {}", total.right, total.problems));
    let mut text = format!(
        "| {format} | {:.3} | {error:.1e} | {} | {score} |",
        of_format[0].bytes_per_weight,
        gpu_error.map_or(String::new(), |error| format!("{error:.1e}")),
    );
    for tokens in GPU_TOKENS {
        match gpu.iter().find(|row| row.tokens == tokens) {
            Some(row) => {
                let share = 100.0 * row.floor_microseconds / row.microseconds;
                let _ = write!(text, " {:.1} ({share:.0} %) |", row.microseconds);
            }
            None => text.push_str(" |"),
        }
    }
    text + "\n"
}

/// Times on a CPU, beside those of the plain format.
fn cpu_table(rows: &[CpuRow]) -> String {
    let mut tokens: Vec<u32> = rows.iter().map(|row| row.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let find = |format: &str, tokens: u32| {
        rows.iter().find(|row| row.format == format && row.tokens == tokens)
    };
    let mut text = format!(
        "\n## On a CPU\n\n{}: microseconds by batch size T, the share of the least time that the \
         machine allows, and how many times faster than {PLAIN}.\n\n| format |",
        rows[0].shape
    );
    tokens.iter().for_each(|tokens| _ = write!(text, " T = {tokens} |"));
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(tokens.len()));
    text.push('\n');
    for format in formats(rows) {
        let _ = write!(text, "| {format} |");
        for &tokens in &tokens {
            let Some(row) = find(format, tokens) else {
                text.push_str(" |");
                continue;
            };
            let CpuRow { microseconds, share_of_ceiling, .. } = row;
            let share = 100.0 * share_of_ceiling;
            let _ = write!(text, " {microseconds:.0} ({share:.0} %");
            if let Some(plain) = find(PLAIN, tokens) {
                let _ = write!(text, ", {:.2}x", plain.microseconds / microseconds);
            }
            text.push_str(") |");
        }
        text.push('\n');
    }
    text
}
