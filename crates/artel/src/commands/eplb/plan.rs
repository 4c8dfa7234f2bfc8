//! `artel eplb plan`: one placement for all of the load.

use std::fs;

use anyhow::{Context, ensure};
use artel_moe::eplb::{LayerPlan, LayerQuery, Placement, PlacementFile, balance};

use super::load::Load;
use crate::cli::EplbPlanArgs;

/// Writes the placement and says how even it is.
///
/// # Errors
/// When the load cannot be read, does not fit the GPUs, or the file cannot be written.
pub fn plan(args: &EplbPlanArgs) -> anyhow::Result<()> {
    let load = Load::new(&args.load, args.cluster.gpus.get())?;
    let cluster = load.cluster(&args.cluster)?;
    let policy = super::policy(args.policy, &args.cluster);
    let (loads, steps) = sums(&load)?;
    ensure!(steps > 0, "{} holds no step", load.name);
    let initial = Placement::initial(load.shape().experts, args.cluster.redundant)?;
    let initial = LayerPlan::equal(initial);
    let mut plans = Vec::new();
    println!("{:>5}  {:>15}  {:>15}", "layer", "imbalance as is", "imbalance after");
    for (layer, load) in loads.iter().enumerate() {
        let query = LayerQuery { load, cluster: &cluster, current: &initial.placement };
        let plan = policy.plan(&query)?;
        let [before, after] =
            [&initial, &plan].map(|plan| balance::imbalance_of(plan, load, &cluster));
        println!("{layer:>5}  {before:>15.4}  {after:>15.4}");
        plans.push(plan);
    }
    let file = PlacementFile::new(load.model.clone(), cluster, plans)?;
    let path = &args.output;
    fs::write(path, file.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {steps} steps of {}, hash {:016x}", path.display(), load.name, file.hash());
    Ok(())
}

/// Load of the experts over all steps, `[layers][L]`, and the number of steps.
fn sums(load: &Load) -> anyhow::Result<(Vec<Vec<f64>>, usize)> {
    let shape = load.shape();
    let mut sums = vec![vec![0.0; shape.experts]; shape.layers];
    let mut steps = 0;
    for records in load.steps()? {
        steps += 1;
        for record in records.with_context(|| format!("on {}", load.name))? {
            for (sums, counts) in sums.iter_mut().zip(&record.counts) {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += f64::from(*count));
            }
        }
    }
    Ok((sums, steps))
}
