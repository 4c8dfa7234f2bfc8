//! The page of whole models on a GPU: `docs/gpu-serving.md`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use super::{read, write};

/// Where the measurements lie.
const RESULTS: &str = "benches/results/h200/serving";
/// What makes one of them.
const COMMAND: &str = "artel bench latency benches/models/NAME --load-format dummy --device cuda \
                       --kernels NAME.pack --batch-size 1,16,64 --input-len 1024 --output-len 64 --num-iters-warmup 1 --num-iters 3 --output-json \
                       benches/results/h200/serving/NAME.json";

/// A run of `artel bench latency` on a GPU: one model, several batch sizes.
#[derive(Debug, Deserialize)]
struct Record {
    format: String,
    commit: String,
    date: String,
    batches: Vec<Batch>,
}

#[derive(Debug, Deserialize)]
struct Batch {
    batch_size: usize,
    steps: Steps,
}

#[derive(Debug, Deserialize)]
struct Steps {
    times: Times,
    first_token_floor_seconds: f64,
    decode_step_floor_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Times {
    first_token_seconds: f64,
    decode_step_seconds: f64,
    decode_step_host_seconds: f64,
    decode_step_active_experts: f64,
}

/// Writes the page; gives back what is missing.
///
/// # Errors
/// When a record is malformed, or `docs/` cannot be written.
pub(super) fn make(root: &Path) -> anyhow::Result<Vec<String>> {
    let records = records(&root.join(RESULTS))?;
    let Some((_, first)) = records.first() else {
        return Ok(vec![format!(
            "docs/gpu-serving.md is not made: nothing in {RESULTS}; on a machine with the GPU run \
             `{COMMAND}`"
        )]);
    };
    let mut page = format!(
        "# Whole models on a GPU\n\nGenerated from `{RESULTS}` by `cargo xtask bench-report`; measured \
         by\n\n```\n{COMMAND}\n```\n\nOne NVIDIA H200, dummy weights, prompts of 1,024 tokens, tokens drawn \
         at temperature 1. \
         Time to the first token: from the prompts to the first token of all of them. Time of a token: \
         median step that only decodes. Floors: the weights of the experts that the steps touched, all \
         other weights and the keys and values that are read, over 4.35 TB/s; the operations of the \
         prompts over the measured peak of the matrix units. Host: what the host works in a step, beside \
         the GPU. Commit {}, {}.\n",
        first.commit, first.date
    );
    for (name, record) in &records {
        page.push_str(&section(name, record));
    }
    write(&root.join("docs/gpu-serving.md"), &page)?;
    Ok(Vec::new())
}

/// The records by name, in alphabetical order.
fn records(folder: &Path) -> anyhow::Result<Vec<(String, Record)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let list = std::fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| Ok(entry?.path()));
    let mut paths = list.collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let named = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, read(path, COMMAND)?))
    };
    paths.iter().map(named).collect()
}

fn section(name: &str, record: &Record) -> String {
    let mut text = format!(
        "\n## {name}\n\n`benches/models/{name}`, {}.\n\n| sequences | first token ms | floor ms | share | token ms | floor \
         ms | share | tokens/s | host ms | experts read a layer |\n|---:|---:|---:|---:|---:|---:|---:|\
         ---:|---:|---:|\n",
        record.format
    );
    for Batch { batch_size, steps } in &record.batches {
        let Steps { times, first_token_floor_seconds, decode_step_floor_seconds } = steps;
        let share = |floor: f64, time: f64| 100.0 * floor / time;
        let _ = writeln!(
            text,
            "| {batch_size} | {:.1} | {:.1} | {:.0} % | {:.2} | {:.2} | {:.0} % | {:.0} | {:.3} | {:.1} |",
            1e3 * times.first_token_seconds,
            1e3 * first_token_floor_seconds,
            share(*first_token_floor_seconds, times.first_token_seconds),
            1e3 * times.decode_step_seconds,
            1e3 * decode_step_floor_seconds,
            share(*decode_step_floor_seconds, times.decode_step_seconds),
            *batch_size as f64 / times.decode_step_seconds,
            1e3 * times.decode_step_host_seconds,
            times.decode_step_active_experts,
        );
    }
    text
}
