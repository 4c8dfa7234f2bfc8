//! Ranks as flags describe them: who computes the experts of a model, and who watches.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use artel_device::cpu::CpuFeatures;
use artel_engine::{CpuRunner, ExpertRanks};
use artel_model::Model;
use artel_moe::dispatch::{CopyChoice, RankGroup, RankOptions};
use artel_moe::eplb::map_and_record::{ReplicaRule, ReplicaSalt};
use artel_moe::eplb::trace::{TraceHeader, TraceShape, TraceWriter};
use artel_moe::eplb::{Cluster, EplbConfig, LayerPlan, PlacementFile};

use crate::cli::RankArgs;

/// What computes `model`, which goes by `name` in traces and messages.
///
/// # Errors
/// When a flag makes no sense for the model, a file is not what it should be, or threads do not
/// start.
pub fn runner(args: &RankArgs, mut model: Model, name: &str) -> Result<(Arc<Model>, CpuRunner)> {
    let ranks = spread(args, &mut model)?;
    if let Some(plan) = model.moe_plan() {
        plan.to_string().lines().for_each(|line| tracing::info!("plan: {line}"));
    }
    let trace = args.record_experts.as_deref().map(|path| open_trace(path, &model, name));
    let model = Arc::new(model);
    let mut runner = CpuRunner::new(Arc::clone(&model));
    if let Some(ranks) = ranks {
        runner = runner.with_ranks(ranks);
    }
    if let Some(trace) = trace {
        runner = runner.with_trace(trace?);
    }
    Ok((model, runner))
}

/// Moves the experts of the model to ranks, where that is wanted.
fn spread(args: &RankArgs, model: &mut Model) -> Result<Option<ExpertRanks>> {
    let file = args.eplb_placement.as_deref().map(read_placement).transpose()?;
    let asked = args.ranks.map(usize::from);
    let count = asked.or(file.as_ref().map(|file| file.cluster().ranks())).unwrap_or(1);
    ensure!(
        count > 1 || !args.enable_eplb,
        "--enable-eplb balances experts over ranks, but there is one: give --ranks 2 or more"
    );
    if count == 1 && file.is_none() {
        return Ok(None);
    }
    let config = eplb_config(&args.eplb_config)?;
    let (cluster, plans) = match file {
        Some(file) => (file.cluster().clone(), planned(&file, model, count)?),
        None => initial(model, &config, count)?,
    };
    let options = RankOptions {
        threads_per_rank: (rayon::current_num_threads() / count).max(1),
        move_timeout: config.move_timeout(),
        in_rounds: config.enable_migration_batching,
        ..RankOptions::new(CpuFeatures::detect(), count)
    };
    let has_shares = args.eplb_placement.is_some() && config.replica_rule.is_none();
    let choose = |layer| {
        let salt = ReplicaSalt::of_replicated_tokens(layer);
        match config.balance_batches {
            true => CopyChoice::Quotas { memory_bound_below: config.memory_bound_below },
            false if has_shares => ReplicaRule::Shares(salt).into(),
            false => config.rule(salt).into(),
        }
    };
    let layers = model.ranked_layers(plans, choose)?;
    let group = RankGroup::start(cluster, layers, options)?;
    model.use_ranks(&group)?;
    let ranks = ExpertRanks::new(group);
    let cluster = ranks.cluster();
    tracing::info!("experts: {} ranks with {} slots each", count, cluster.slots_per_rank());
    if !args.enable_eplb {
        return Ok(Some(ranks));
    }
    tracing::info!(
        "experts: balanced by {} every {} steps, by the load of {} steps",
        config.policy,
        config.step_interval,
        config.window_size
    );
    Ok(Some(ranks.balanced(config)?))
}

/// Every expert once, and copies of the first ones where slots are left.
fn initial(model: &Model, config: &EplbConfig, ranks: usize) -> Result<(Cluster, Vec<LayerPlan>)> {
    let (experts, layers) = (model.config().experts, model.expert_layers().len());
    ensure!(layers > 0, "the model has no experts to spread over {ranks} ranks");
    let cluster = config.cluster(experts, ranks).context(
        "slots do not fit the ranks: --enable-eplb --eplb-config num_redundant_experts=N adds N",
    )?;
    let plan = LayerPlan::equal(config.initial_placement(experts)?);
    Ok((cluster, vec![plan; layers]))
}

/// The plans of a file, if they are for this model and so many ranks.
fn planned(file: &PlacementFile, model: &Model, ranks: usize) -> Result<Vec<LayerPlan>> {
    let found = [file.layers().len(), file.experts(), file.cluster().ranks()];
    let expected = [model.expert_layers().len(), model.config().experts, ranks];
    ensure!(
        found == expected,
        "the placement has [layers, experts, ranks] {found:?}, but the model and --ranks have \
         {expected:?}: make one for them with `artel eplb plan`"
    );
    Ok(file.layers().to_vec())
}

fn read_placement(path: &Path) -> Result<PlacementFile> {
    let named = || format!("--eplb-placement {}", path.display());
    let text = fs::read_to_string(path).with_context(named)?;
    PlacementFile::from_json(&text).with_context(named)
}

/// The settings, later ones over earlier ones.
fn eplb_config(settings: &[String]) -> Result<EplbConfig> {
    let mut config = EplbConfig::default();
    for setting in settings {
        if setting.trim_start().starts_with('{') {
            ensure!(
                config == EplbConfig::default(),
                "--eplb-config with JSON comes once, before single settings"
            );
            config = EplbConfig::from_json(setting)?;
        } else if let Some((field, value)) = setting.split_once('=') {
            config.set(field.trim(), value.trim())?;
        } else {
            bail!("--eplb-config {setting} is neither JSON nor FIELD=VALUE");
        }
    }
    Ok(config)
}

fn open_trace(path: &Path, model: &Model, name: &str) -> Result<TraceWriter<File>> {
    let named = || format!("--record-experts {}", path.display());
    let config = model.config();
    let shape = TraceShape {
        layers: model.expert_layers().len(),
        experts: config.experts,
        top_k: config.experts_per_token,
        source_ranks: 1,
    };
    let header = TraceHeader::new(shape, name).with_context(named)?;
    let file = File::create(path).with_context(named)?;
    TraceWriter::new(file, header).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_in_order() {
        let read = |settings: &[&str]| {
            eplb_config(&settings.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        let config = read(&["{\"step_interval\": 50}", "window_size=20", "policy = balanced"]);
        let config = config.unwrap();
        assert_eq!((config.step_interval, config.window_size), (50, 20));
        assert_eq!(config.policy.name(), "balanced");
        for wrong in [&["window_size"][..], &["window_size=0"], &["window=5"], &["{\"x\": 1}"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert!(read(&["window_size=3", "{}"]).is_err());
    }
}
