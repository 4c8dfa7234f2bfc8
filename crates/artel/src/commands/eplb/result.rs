//! A comparison as JSON, for `cargo xtask bench-report` and other readers.

use artel_moe::eplb::simulate::{Redundancy, Replay, StepReport, Summary};
use serde::Serialize;

use super::load::Load;
use super::simulate::Outcome;
use crate::cli::EplbSimulateArgs;
use crate::record::Provenance;

/// Points of a line: more steps are averaged.
const POINTS_MAX: usize = 100;
/// Steps of a heat map, likewise.
const HEAT_POINTS_MAX: usize = 50;

/// What was compared, and everything that the pictures need.
#[derive(Serialize)]
pub struct Comparison {
    #[serde(flatten)]
    provenance: Provenance,
    /// The command that makes this file again.
    command: String,
    load: String,
    model: String,
    layers: usize,
    experts: usize,
    top_k: usize,
    source_ranks: usize,
    gpus: usize,
    redundant: usize,
    nodes: usize,
    interval: usize,
    window: usize,
    us_per_token: f64,
    bytes_per_expert: u64,
    gigabytes_per_second: f64,
    /// Steps before the first plan.
    settled: usize,
    /// Steps that a point of a line stands for.
    steps_per_point: usize,
    /// Steps that a row of `watched` stands for.
    steps_per_heat_point: usize,
    /// Load of each GPU over the mean before the first plan, `[layers][gpus]`: one text a layer.
    before: Vec<String>,
    rows: Vec<Row>,
}

/// One policy.
#[derive(Serialize)]
struct Row {
    policy: String,
    #[serde(flatten)]
    summary: Summary,
    redundancy: Option<Redundancy>,
    /// Imbalance over the steps: numbers, separated by blanks.
    imbalance_by_step: String,
    /// Load of each GPU over the mean after the first plan, `[layers][gpus]`: one text a layer.
    after: Vec<String>,
    /// The layer that was most uneven in the first step.
    watched_layer: usize,
    /// Load of each GPU over the mean in it, `[points][gpus]`: one text a point.
    watched: Vec<String>,
}

impl Comparison {
    /// Of these outcomes.
    pub fn new(args: &EplbSimulateArgs, load: &Load, outcomes: &[Outcome]) -> Self {
        let (shape, cluster) = (load.shape(), &args.cluster);
        let first = outcomes.first().map(|outcome| &outcome.replay);
        let steps = first.map_or(0, |replay| replay.steps.len());
        let [steps_per_point, steps_per_heat_point] =
            [POINTS_MAX, HEAT_POINTS_MAX].map(|points| steps.div_ceil(points).max(1));
        let row = |outcome: &Outcome| Row::new(outcome, steps_per_point, steps_per_heat_point);
        Self {
            provenance: Provenance::here(),
            command: command(),
            load: load.name.clone(),
            model: load.model.clone(),
            layers: shape.layers,
            experts: shape.experts,
            top_k: shape.top_k,
            source_ranks: shape.source_ranks,
            gpus: cluster.gpus.get(),
            redundant: cluster.redundant,
            nodes: cluster.nodes.get(),
            interval: args.interval.get(),
            window: args.window.get(),
            us_per_token: args.costs.us_per_token,
            bytes_per_expert: args.costs.bytes_per_expert,
            gigabytes_per_second: args.costs.gigabytes_per_second,
            settled: first.map_or(0, |replay| replay.settled),
            steps_per_point,
            steps_per_heat_point,
            before: first.map_or(Vec::new(), |replay| matrix(&replay.before)),
            rows: outcomes.iter().map(row).collect(),
        }
    }
}

impl Row {
    fn new(outcome: &Outcome, steps: usize, heat_steps: usize) -> Self {
        let Outcome { name, replay, summary, redundancy } = outcome;
        Self {
            policy: name.clone(),
            summary: summary.clone(),
            redundancy: redundancy.clone(),
            imbalance_by_step: join(imbalances(replay, steps), 3),
            after: matrix(&replay.after),
            watched_layer: replay.watched_layer,
            watched: matrix(&watched(replay, heat_steps)),
        }
    }
}

/// Imbalance over every so many steps: time over the time with perfect balance.
pub fn imbalances(replay: &Replay, steps: usize) -> impl Iterator<Item = f64> {
    let of_steps = |steps: &[StepReport]| {
        let sum = |of: fn(&StepReport) -> f64| steps.iter().map(of).sum::<f64>();
        let (max, mean) = (sum(|step| step.max_tokens), sum(|step| step.avg_tokens));
        if mean > 0.0 { max / mean } else { 1.0 }
    };
    replay.steps.chunks(steps).map(of_steps)
}

/// Load of each GPU in the watched layer, mean over every so many steps, `[points][gpus]`.
pub fn watched(replay: &Replay, steps: usize) -> Vec<Vec<f64>> {
    let gpus = replay.watched.first().map_or(0, Vec::len);
    let mean = |rows: &[Vec<f32>]| {
        let of_gpu = |gpu: usize| rows.iter().map(|row| f64::from(row[gpu])).sum::<f64>();
        (0..gpus).map(|gpu| of_gpu(gpu) / rows.len() as f64).collect()
    };
    replay.watched.chunks(steps).map(mean).collect()
}

/// Numbers over their mean; 1 without load.
pub fn over_mean(row: &[f64]) -> impl Iterator<Item = f64> {
    let mean = row.iter().sum::<f64>() / row.len().max(1) as f64;
    row.iter().map(move |load| if mean > 0.0 { load / mean } else { 1.0 })
}

fn matrix(rows: &[Vec<f64>]) -> Vec<String> {
    rows.iter().map(|row| join(over_mean(row), 2)).collect()
}

fn join(numbers: impl Iterator<Item = f64>, decimals: usize) -> String {
    numbers.map(|number| format!("{number:.decimals$}")).collect::<Vec<_>>().join(" ")
}

/// What was typed, without the folder of the program.
fn command() -> String {
    let mut command = vec!["artel".to_owned()];
    command.extend(std::env::args().skip(1));
    command.join(" ")
}
