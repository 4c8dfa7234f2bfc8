//! The page of placements: `docs/eplb.md` and its pictures.

mod chart;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Deserializer, de::Error};

use super::{read, write};

/// Where the comparisons lie.
const RESULTS: &str = "benches/results/eplb";
/// What stands before them on the page.
const HEAD: &str = include_str!("head.md");
/// The comparisons of the page in their order, and what else makes them than their own command.
const COMPARISONS: [(&str, &str); 7] = [
    ("uniform", ""),
    ("lognormal", ""),
    ("zipf", ""),
    ("drift", ""),
    ("drift-planned", PLAN_FOR_DRIFT),
    ("one-host", ""),
    ("tally", RECORD_TALLY),
];
/// How the placement to begin with is made where load drifts away from it.
const PLAN_FOR_DRIFT: &str =
    "artel eplb plan --synthetic drift:0.2 --steps 100 --gpus 32 --redundant 64 -o placement.json";
/// How the trace of the bundled model is made.
const RECORD_TALLY: &str = "artel eval arithmetic --num-problems 512 --record-experts tally.trace";

/// A run of `artel eplb simulate`.
#[derive(Debug, Deserialize)]
struct Comparison {
    commit: String,
    date: String,
    command: String,
    load: String,
    layers: usize,
    experts: usize,
    top_k: usize,
    source_ranks: usize,
    gpus: usize,
    redundant: usize,
    us_per_token: f64,
    bytes_per_expert: u64,
    gigabytes_per_second: f64,
    steps_per_point: usize,
    steps_per_heat_point: usize,
    #[serde(deserialize_with = "matrix")]
    before: Vec<Vec<f64>>,
    rows: Vec<Row>,
}

/// One policy.
#[derive(Debug, Deserialize)]
struct Row {
    policy: String,
    steps: usize,
    imbalance: f64,
    imbalance_p99: f64,
    planned_imbalance: f64,
    lost_us_per_step: f64,
    activated_experts: f64,
    plans: usize,
    moved_slots_per_plan: f64,
    moved_bytes: u64,
    redundancy: Option<Redundancy>,
    #[serde(deserialize_with = "numbers")]
    imbalance_by_step: Vec<f64>,
    #[serde(deserialize_with = "matrix")]
    after: Vec<Vec<f64>>,
    watched_layer: usize,
    #[serde(deserialize_with = "matrix")]
    watched: Vec<Vec<f64>>,
}

/// Whether redundant slots were worth it.
#[derive(Debug, Deserialize)]
struct Redundancy {
    saved_us_per_step: f64,
    move_us_per_step: f64,
    bytes_per_rank: u64,
    pays: bool,
}

fn parse<E: Error>(text: &str) -> Result<Vec<f64>, E> {
    text.split_whitespace().map(|number| number.parse().map_err(E::custom)).collect()
}

/// Numbers in one text, separated by blanks.
fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    parse(&String::deserialize(deserializer)?)
}

/// One such text a row.
fn matrix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f64>>, D::Error> {
    Vec::<String>::deserialize(deserializer)?.iter().map(|row| parse(row)).collect()
}

/// Writes `docs/eplb.md` and its pictures; gives back what is missing.
///
/// # Errors
/// When a comparison is malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut comparisons = Vec::new();
    for (name, first) in COMPARISONS {
        let path = root.join(RESULTS).join(format!("{name}.json"));
        if path.exists() {
            let comparison: Comparison = read(&path, "artel eplb simulate")?;
            comparisons.push((name, first, comparison));
        } else {
            let before = if first.is_empty() { "" } else { " after what makes its input" };
            missing.push(format!(
                "docs/eplb.md lacks {name}: run `artel eplb simulate … --save-result \
                 {RESULTS}/{name}.json`{before}"
            ));
        }
    }
    if comparisons.is_empty() {
        return Ok(missing);
    }
    let mut page = HEAD.to_owned();
    page.push_str(&summary(&comparisons));
    for (name, first, comparison) in &comparisons {
        page.push_str(&section(name, first, comparison)?);
        pictures(&root.join("docs"), name, comparison)?;
    }
    write(&root.join("docs/eplb.md"), &page)?;
    Ok(missing)
}

/// All loads in one table: imbalance by policy.
fn summary(comparisons: &[(&str, &str, Comparison)]) -> String {
    let mut policies: Vec<&str> = Vec::new();
    for row in comparisons.iter().flat_map(|(_, _, comparison)| &comparison.rows) {
        if !policies.contains(&row.policy.as_str()) {
            policies.push(&row.policy);
        }
    }
    let mut text = format!(
        "\nImbalance in short; generated from `{RESULTS}` by `cargo xtask bench-report`:\n\n| load | \
         GPUs, redundant slots | {} |\n|:---|---:|{}\n",
        policies.join(" | "),
        "---:|".repeat(policies.len())
    );
    for (name, _, comparison) in comparisons {
        let of = |policy: &&str| {
            let row = comparison.rows.iter().find(|row| row.policy == **policy);
            row.map_or_else(String::new, |row| format!("{:.3}", row.imbalance))
        };
        let cells: Vec<String> = policies.iter().map(of).collect();
        let Comparison { load, gpus, redundant, .. } = comparison;
        let _ = writeln!(text, "| {name}: {load} | {gpus}, {redundant} | {} |", cells.join(" | "));
    }
    text
}

fn section(name: &str, first: &str, comparison: &Comparison) -> anyhow::Result<String> {
    let Comparison { commit, date, command, load, layers, experts, top_k, .. } = comparison;
    let Comparison { gpus, redundant, source_ranks, .. } = comparison;
    let first = if first.is_empty() { String::new() } else { format!("{first}\n") };
    let steps = comparison.rows.first().context("a comparison without policies")?.steps;
    let sources = match source_ranks {
        1 => "all GPUs see all tokens".to_owned(),
        ranks => format!("tokens come from {ranks} GPUs"),
    };
    let mut text = format!(
        "\n### {name}: {load}, {gpus} GPUs\n\n{layers} layers of {experts} experts, {top_k} a token, \
         {redundant} redundant slots; {sources}; {steps} steps. Commit {commit}, {date}.\n\n```\n\
         {first}{command}\n```\n\n| policy | imbalance | P99 of steps | planned | lost us a step | \
         active | slots moved | bytes moved |\n|:---|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for row in &comparison.rows {
        let planned = match row.plans {
            0 => String::new(),
            _ => format!("{:.3}", row.planned_imbalance),
        };
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.3} | {planned} | {:.1} | {:.1} | {:.1} | {} |",
            row.policy,
            row.imbalance,
            row.imbalance_p99,
            row.lost_us_per_step,
            row.activated_experts,
            row.moved_slots_per_plan,
            bytes(row.moved_bytes)
        );
    }
    text.push_str(&redundancy(comparison));
    let _ = write!(text, "\n![imbalance over steps, {load}](eplb-{name}.svg)\n");
    let _ = write!(text, "\n![load of GPUs by layer, {load}](eplb-{name}-layers.svg)\n");
    if name == "drift" {
        let _ = write!(text, "\n![load of GPUs by step, {load}](eplb-{name}-steps.svg)\n");
    }
    Ok(text)
}

/// What redundant slots save and cost.
fn redundancy(comparison: &Comparison) -> String {
    let Comparison { us_per_token, bytes_per_expert, gigabytes_per_second, .. } = comparison;
    let rows = comparison.rows.iter();
    let worth = rows.filter_map(|row| row.redundancy.as_ref().map(|worth| (&row.policy, worth)));
    let worth: Vec<_> = worth.collect();
    let Some((_, first)) = worth.first() else { return String::new() };
    let mut text = format!(
        "\nAre the redundant slots worth it? They take {} on each GPU. Beside the same policy without \
         them, a step saves and pays for moves, if steps wait for those ({us_per_token} us a token \
         and expert, {} an expert, {gigabytes_per_second} GB/s into a GPU):\n\n| policy | saves us | \
         pays us | |\n|:---|---:|---:|:---|\n",
        bytes(first.bytes_per_rank),
        bytes(*bytes_per_expert)
    );
    for (policy, worth) in worth {
        let verdict = if worth.pays { "pays" } else { "does not pay" };
        let (saved, paid) = (worth.saved_us_per_step, worth.move_us_per_step);
        let _ = writeln!(text, "| {policy} | {saved:.1} | {paid:.1} | {verdict} |");
    }
    text
}

fn pictures(docs: &Path, name: &str, comparison: &Comparison) -> anyhow::Result<()> {
    let rows = &comparison.rows;
    let lines: Vec<(&str, &[f64])> =
        rows.iter().map(|row| (row.policy.as_str(), row.imbalance_by_step.as_slice())).collect();
    let title = format!("Imbalance over steps: {}", comparison.load);
    let path = docs.join(format!("eplb-{name}.svg"));
    chart::draw_lines(&path, &title, &lines, comparison.steps_per_point)?;

    // The published policy and the last of ours stand for all.
    let shown = || {
        let greedy = rows.iter().find(|row| row.policy == "greedy");
        greedy.into_iter().chain(rows.last())
    };
    let mut maps = vec![("before the first plan".to_owned(), comparison.before.as_slice())];
    maps.extend(shown().map(|row| (row.policy.clone(), row.after.as_slice())));
    chart::draw_heat(&docs.join(format!("eplb-{name}-layers.svg")), "layer", &maps, 1)?;
    if name == "drift" {
        let title = |row: &Row| format!("{}, layer {}", row.policy, row.watched_layer);
        let maps: Vec<_> = shown().map(|row| (title(row), row.watched.as_slice())).collect();
        let path = docs.join(format!("eplb-{name}-steps.svg"));
        chart::draw_heat(&path, "step", &maps, comparison.steps_per_heat_point)?;
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    match count {
        0 => "0".to_owned(),
        count if count < 1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        count => format!("{:.1} GB", count as f64 / 1e9),
    }
}
