//! `artel eplb simulate`: policies side by side on the same steps.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use artel_moe::eplb::simulate::{Redundancy, Replay, ReplayConfig, Strategy, Summary, replay};
use artel_moe::eplb::{Cluster, LayerPlan, PlacementFile};
use indicatif::HumanBytes;

use super::load::Load;
use super::{plot, result};
use crate::cli::{EplbSimulateArgs, EplbStrategyArg};

/// One policy and what came of it.
pub struct Outcome {
    /// Policy and rule as they are typed.
    pub name: String,
    /// Every step of it.
    pub replay: Replay,
    /// Its steps in a few numbers.
    pub summary: Summary,
    /// Whether redundant slots were worth it; `None` where there is nothing to compare with.
    pub redundancy: Option<Redundancy>,
}

/// Prints the comparison, draws and saves it.
///
/// # Errors
/// When the load cannot be read, does not fit the GPUs, or a file cannot be written.
pub fn simulate(args: &EplbSimulateArgs) -> anyhow::Result<()> {
    let load = Load::new(&args.load, args.cluster.gpus.get())?;
    let cluster = load.cluster(&args.cluster)?;
    let initial = match &args.placement {
        None => Vec::new(),
        Some(path) => placement(path, &cluster)?,
    };
    let config = ReplayConfig { initial, ..config(args, &load, cluster) };
    let plain = without_redundancy(args, &load, &config)?;
    let mut outcomes = Vec::new();
    for strategy in &args.policy {
        let replay = run(args, strategy, &load, &config)?;
        let first = config.first_plan();
        ensure!(!replay.steps.is_empty(), "{} holds no step", load.name);
        if replay.settled == replay.steps.len() {
            let steps = replay.steps.len();
            anyhow::bail!(
                "{steps} steps end before the first plan, which comes after {first}: nothing to \
                 compare; lower --interval"
            );
        }
        let redundancy = match &plain {
            Some(plain) if strategy.policy.name != "none" => {
                let without = run(args, strategy, &load, plain)?;
                let slots = config.cluster.slots_per_rank() - plain.cluster.slots_per_rank();
                Some(Redundancy::of(&replay, &without, slots, config.bytes_per_expert))
            }
            _ => None,
        };
        let summary = replay.summary();
        outcomes.push(Outcome { name: strategy.name(), replay, summary, redundancy });
    }
    write_table(&load, args, &outcomes)?;
    if let Some(folder) = &args.plot {
        plot::draw(folder, &outcomes)?;
    }
    if let Some(path) = &args.save_result {
        crate::record::save(path, &result::Comparison::new(args, &load, &outcomes))?;
    }
    Ok(())
}

fn config(args: &EplbSimulateArgs, load: &Load, cluster: Cluster) -> ReplayConfig {
    ReplayConfig {
        window: args.window,
        interval: args.interval,
        resplit_interval: args.resplit_interval,
        source_ranks: load.shape().source_ranks,
        us_per_token: args.costs.us_per_token,
        bytes_per_expert: args.costs.bytes_per_expert,
        bytes_per_second: args.costs.gigabytes_per_second * 1e9,
        seed: args.load.seed,
        ..ReplayConfig::new(cluster)
    }
}

/// The same without redundant slots, where the GPUs can share the experts evenly.
fn without_redundancy(
    args: &EplbSimulateArgs,
    load: &Load,
    config: &ReplayConfig,
) -> anyhow::Result<Option<ReplayConfig>> {
    let gpus = args.cluster.gpus.get();
    let comparable = args.cluster.redundant > 0
        && config.initial.is_empty()
        && load.shape().experts.is_multiple_of(gpus);
    let cluster = Cluster::of_slots(load.shape().experts, gpus);
    Ok(match comparable {
        false => None,
        true => Some(ReplayConfig {
            cluster: cluster?.with_nodes(args.cluster.nodes.get())?,
            ..config.clone()
        }),
    })
}

fn run(
    args: &EplbSimulateArgs,
    strategy: &EplbStrategyArg,
    load: &Load,
    config: &ReplayConfig,
) -> anyhow::Result<Replay> {
    let policy = super::policy(strategy.policy, &args.cluster);
    let policy = (strategy.policy.name != "none").then_some(policy.as_ref());
    let strategy = Strategy { policy, rule: strategy.rule };
    replay(load.steps()?, &strategy, config).with_context(|| format!("on {}", load.name))
}

fn placement(path: &Path, cluster: &Cluster) -> anyhow::Result<Vec<LayerPlan>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = PlacementFile::from_json(&text).with_context(|| format!("in {}", path.display()))?;
    let (ranks, slots) = (file.cluster().ranks(), file.cluster().slots_per_rank());
    ensure!(
        (ranks, slots) == (cluster.ranks(), cluster.slots_per_rank()),
        "{} is for {ranks} GPUs with {slots} slots each, and here are {} with {}",
        path.display(),
        cluster.ranks(),
        cluster.slots_per_rank()
    );
    Ok(file.layers().to_vec())
}

fn write_table(load: &Load, args: &EplbSimulateArgs, outcomes: &[Outcome]) -> io::Result<()> {
    let (shape, cluster) = (load.shape(), &args.cluster);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: {} layers of {} experts, {} a token; {} GPUs, {} redundant slots; {} steps after the \
         first plan\n",
        load.name,
        shape.layers,
        shape.experts,
        shape.top_k,
        cluster.gpus,
        cluster.redundant,
        outcomes.first().map_or(0, |outcome| outcome.summary.steps)
    )?;
    writeln!(
        out,
        "{:<22} {:>9} {:>7} {:>7} {:>8} {:>10} {:>7} {:>11} {:>10} {:>9}",
        "policy",
        "imbalance",
        "p99",
        "worst",
        "planned",
        "lost us",
        "active",
        "slots moved",
        "moved",
        "move ms"
    )?;
    for Outcome { name, summary, .. } in outcomes {
        writeln!(
            out,
            "{name:<22} {:>9.3} {:>7.3} {:>7.2} {:>8} {:>10.1} {:>7.1} {:>11.1} {:>10} {:>9.1}",
            summary.imbalance,
            summary.imbalance_p99,
            summary.imbalance_worst,
            planned(summary),
            summary.lost_us_per_step,
            summary.activated_experts,
            summary.moved_slots_per_plan,
            HumanBytes(summary.moved_bytes).to_string(),
            summary.move_us / 1e3,
        )?;
    }
    writeln!(
        out,
        "\nimbalance: slowest GPU of each layer over the mean, by time; worst: of one layer in one \
         step; planned:\non the load that plans were made for; lost: a step; active: experts with \
         tokens on a GPU, most; slots\nmoved: a plan and layer; moved, move ms: all plans"
    )?;
    write_redundancy(&mut out, outcomes)
}

fn planned(summary: &Summary) -> String {
    if summary.plans == 0 { "-".to_owned() } else { format!("{:.3}", summary.planned_imbalance) }
}

fn write_redundancy(out: &mut impl Write, outcomes: &[Outcome]) -> io::Result<()> {
    for Outcome { name, redundancy, .. } in outcomes {
        let Some(redundancy) = redundancy else { continue };
        let Redundancy { saved_us_per_step, move_us_per_step, bytes_per_rank, pays } = redundancy;
        writeln!(
            out,
            "\n{name}: redundant slots save {saved_us_per_step:.1} us a step and cost \
             {move_us_per_step:.1} us more of moves (if steps wait for them)\n  and {} on each GPU: \
             {}",
            HumanBytes(*bytes_per_rank),
            if *pays { "they pay" } else { "they do not pay" }
        )?;
    }
    Ok(())
}
