//! The page of the layer on a GPU: `docs/gpu-layer.md`, a picture for each shape, and one of all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use super::small_steps::SmallSteps;
use super::{chart, read, write};

/// Where the measurements lie.
const RESULTS: &str = "benches/results/h200";
/// What makes them.
pub(super) const COMMAND: &str =
    "artel bench layer --device cuda --save-result benches/results/h200";
/// Another implementation on the same GPU.
const PEER: &str = "benches/peers/vllm-0.22-h200.json";
/// Times of the small steps, beside the shapes.
const SMALL_STEPS: &str = "small-steps.json";
/// What makes them.
const STEPS_COMMAND: &str = "artel bench steps --save-result benches/results/h200/small-steps.json";
/// How tokens choose their experts in the comparison.
pub(super) const UNIFORM: &str = "uniform";

/// A run of `artel bench layer --device cuda`: one shape.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub(super) shape: String,
    sizes: Sizes,
    gpu: Gpu,
    method: String,
    ceilings: Ceilings,
    commit: String,
    date: String,
    pub(super) rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Sizes {
    num_experts: usize,
    top_k: usize,
    hidden_size: usize,
    intermediate_size: usize,
    format: String,
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { num_experts, top_k, hidden_size, intermediate_size, format } = self;
        write!(
            formatter,
            "{num_experts} experts of {hidden_size} x {intermediate_size}, {top_k} a token, {format}"
        )
    }
}

#[derive(Debug, Deserialize)]
struct Gpu {
    name: String,
    architecture: String,
    driver: String,
}

#[derive(Debug, Deserialize)]
struct Ceilings {
    read_terabytes_per_second: f64,
    teraflops: f64,
}

/// One batch size.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) tokens: u32,
    pub(super) routing: String,
    path: String,
    pub(super) microseconds: f64,
    pub(super) floor_microseconds: f64,
    share_of_floor: f64,
    terabytes_per_second: f64,
    teraflops: f64,
    experts_touched: f64,
    pub(super) relative_error: f64,
}

/// Times of another implementation.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Peer {
    pub(super) name: String,
    #[serde(default)]
    what: String,
    rows: Vec<PeerRow>,
}

#[derive(Debug, Deserialize)]
struct PeerRow {
    shape: String,
    tokens: u32,
    #[serde(default = "uniform")]
    routing: String,
    microseconds: f64,
}

fn uniform() -> String {
    UNIFORM.to_owned()
}

impl Peer {
    /// Its times by batch size.
    pub(super) fn times(&self, shape: &str, routing: &str) -> BTreeMap<u32, f64> {
        let same = |row: &&PeerRow| row.shape == shape && row.routing == routing;
        self.rows.iter().filter(same).map(|row| (row.tokens, row.microseconds)).collect()
    }
}

impl Record {
    /// Ways in which tokens choose their experts, in the order of the record.
    pub(super) fn routings(&self) -> Vec<&str> {
        let mut routings: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !routings.contains(&row.routing.as_str()) {
                routings.push(&row.routing);
            }
        }
        routings
    }

    /// Number format of the experts.
    pub(super) fn format(&self) -> &str {
        &self.sizes.format
    }

    pub(super) fn rows_of<'a>(&'a self, routing: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.routing == routing)
    }
}

/// Writes `docs/gpu-layer.md` and its pictures; gives back what is missing.
///
/// # Errors
/// When a record is malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let records = records(root)?;
    if records.is_empty() {
        missing.push(format!(
            "docs/gpu-layer.md is not made: no experts-*.json in {RESULTS}; on a machine with the \
             GPU run `{COMMAND}`"
        ));
    }
    let peer = match root.join(PEER) {
        path if path.exists() => read(&path, COMMAND)?,
        _ => {
            missing.push(format!("nothing to compare the GPU with: there is no {PEER}"));
            Peer::default()
        }
    };
    let small_steps = match root.join(RESULTS).join(SMALL_STEPS) {
        path if path.exists() => Some(read::<SmallSteps>(&path, STEPS_COMMAND)?),
        _ => {
            missing.push(format!(
                "no times of the small steps: there is no {RESULTS}/{SMALL_STEPS}; run `{STEPS_COMMAND}`"
            ));
            None
        }
    };
    let Some(first) = records.first() else { return Ok(missing) };
    let mut page = head(first, &peer);
    for record in &records {
        page.push_str(&section(record, &peer));
        chart::draw_shape(&root.join("docs").join(picture(&record.shape)), record, &peer)?;
    }
    if let Some(small_steps) = small_steps {
        page.push_str(&small_steps.section(&peer.name));
    }
    write(&root.join("docs/gpu-layer.md"), &page)?;
    chart::draw_summary(&root.join("docs/gpu-layer.svg"), &records, &peer)?;
    Ok(missing)
}

/// All of them, in the order of their files.
///
/// # Errors
/// When a record is malformed or its folder cannot be listed.
pub(super) fn records(root: &Path) -> anyhow::Result<Vec<Record>> {
    let folder = root.join(RESULTS);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let list = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| Ok(entry?.path()));
    let mut paths = list.collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("experts-") && name.ends_with(".json")
    });
    paths.sort();
    paths.iter().map(|path| read(path, COMMAND)).collect()
}

fn picture(shape: &str) -> String {
    format!("gpu-layer-{shape}.svg")
}

fn head(record: &Record, peer: &Peer) -> String {
    let Record { gpu, method, ceilings, .. } = record;
    let beside = match peer.rows.is_empty() {
        true => String::new(),
        false => format!("\n\n{}: {} Same GPU, same method.", peer.name, sentence(&peer.what)),
    };
    format!(
        "# The experts of a layer on a GPU\n\nGenerated from `{RESULTS}` by `cargo xtask \
         bench-report`; measured by `artel bench layer --device cuda`.\n\n{} ({}), CUDA {}. Time: \
         {method}.\n\nFloor: the weights of the experts that a step touches and its hidden states \
         at the measured {:.2} TB/s, or its operations at what the vendor's library reaches in a \
         dense product of 8192 (stated for each shape), whichever is longer. Error: Frobenius norm \
         against float64 on sampled tokens, relative.{beside}\n\n![share of the floor by batch \
         size](gpu-layer.svg)\n",
        gpu.name, gpu.architecture, gpu.driver, ceilings.read_terabytes_per_second,
    )
}

fn sentence(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text}.") }
}

fn section(record: &Record, peer: &Peer) -> String {
    let Record { shape, sizes, commit, date, ceilings, .. } = record;
    let mut text = format!(
        "\n## {shape}\n\n{sizes}. Commit {commit}, {date}. Arithmetic ceiling {:.0} TFLOP/s.\n\n\
         ![time by batch size, {shape}]({})\n",
        ceilings.teraflops,
        picture(shape)
    );
    for routing in record.routings() {
        let theirs = peer.times(shape, routing);
        let _ = write!(text, "\n### {routing} routing\n\n{}", columns(peer, &theirs));
        for row in record.rows_of(routing) {
            text.push_str(&line(row, &theirs));
        }
    }
    text
}

/// Head of a table; with two columns more where the peer was measured.
fn columns(peer: &Peer, theirs: &BTreeMap<u32, f64>) -> String {
    let (names, rules) = match theirs.is_empty() {
        true => (String::new(), ""),
        false => (format!(" {} us | its time over ours |", peer.name), "---:|---:|"),
    };
    format!(
        "| tokens | us | floor us | share of floor |{names} TB/s | TFLOP/s | experts read | error | \
         path |\n|---:|---:|---:|---:|{rules}---:|---:|---:|---:|:---|\n"
    )
}

fn line(row: &Row, theirs: &BTreeMap<u32, f64>) -> String {
    let Row { tokens, microseconds, floor_microseconds, path, .. } = row;
    let share = 100.0 * row.share_of_floor;
    let beside = match theirs.get(tokens) {
        Some(peer) => format!(" {peer:.1} | {:.2} |", peer / microseconds),
        None if theirs.is_empty() => String::new(),
        None => " | |".to_owned(),
    };
    format!(
        "| {tokens} | {microseconds:.1} | {floor_microseconds:.1} | {share:.0} % |{beside} {:.2} | \
         {:.0} | {:.1} | {:.1e} | {path} |\n",
        row.terabytes_per_second, row.teraflops, row.experts_touched, row.relative_error
    )
}
