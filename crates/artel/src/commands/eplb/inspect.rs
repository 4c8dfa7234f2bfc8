//! `artel eplb inspect`: what a trace or a placement holds.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context;
use artel_moe::eplb::trace::{TraceError, TraceShape};
use artel_moe::eplb::{PlacementFile, Shares};

use super::load;
use crate::cli::EplbInspectArgs;

/// Prints the description.
///
/// # Errors
/// When the file is neither, or is damaged other than by ending too early.
pub fn inspect(args: &EplbInspectArgs) -> anyhow::Result<()> {
    let path = &args.file;
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut first = Vec::new();
    file.take(1).read_to_end(&mut first)?;
    match first.as_slice() {
        b"{" => placement(path),
        _ => trace(path),
    }
}

fn placement(path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let file = PlacementFile::from_json(&text).with_context(|| format!("in {}", path.display()))?;
    let (cluster, experts) = (file.cluster(), file.experts());
    let mut out = io::stdout().lock();
    writeln!(out, "placement of {} layers, hash {:016x}", file.layers().len(), file.hash())?;
    writeln!(out, "  model          {}", file.model())?;
    writeln!(out, "  experts        {experts} a layer in {} slots", cluster.slots())?;
    let (ranks, nodes, slots) = (cluster.ranks(), cluster.nodes(), cluster.slots_per_rank());
    writeln!(out, "  GPUs           {ranks} on {nodes} node(s), {slots} slots each")?;
    let dead = ranks - cluster.living().count();
    if dead > 0 {
        writeln!(out, "  out of use     {dead}")?;
    }
    for (layer, plan) in file.layers().iter().enumerate() {
        let counts = plan.placement.logical_replica_count();
        let several = counts.iter().filter(|count| **count > 1).count();
        let shares = match plan.shares == Shares::equal(&plan.placement) {
            true => "equal shares",
            false => "shares of their own",
        };
        let most = plan.placement.replicas_max();
        writeln!(
            out,
            "  layer {layer:<3}      {several} experts with up to {most} copies, {shares}"
        )?;
    }
    Ok(())
}

/// What is counted while a trace is read.
struct Totals {
    records: usize,
    steps: usize,
    last_step: Option<u64>,
    /// `[layers][L]`.
    loads: Vec<Vec<u64>>,
}

fn trace(path: &Path) -> anyhow::Result<()> {
    let reader = load::open(path)?;
    let shape = reader.header().shape();
    let mut out = io::stdout().lock();
    writeln!(out, "trace of {} layers", shape.layers)?;
    writeln!(out, "  model          {}", reader.header().model())?;
    writeln!(out, "  experts        {} a layer, {} for each token", shape.experts, shape.top_k)?;
    writeln!(out, "  source ranks   {}", shape.source_ranks)?;
    let mut totals = Totals::new(shape);
    let mut cut = None;
    for record in reader {
        match record {
            Ok(record) => totals.add(record.step, &record.counts),
            Err(error) if error.is_truncated() => cut = Some(error),
            Err(error) => {
                totals.write(&mut out, shape)?;
                return Err(error).with_context(|| format!("in {}", path.display()));
            }
        }
    }
    totals.write(&mut out, shape)?;
    if let Some(error) = cut {
        writeln!(out, "  cut off        {error}; the records before are complete")?;
    }
    Ok(())
}

impl Totals {
    fn new(shape: TraceShape) -> Self {
        let loads = vec![vec![0; shape.experts]; shape.layers];
        Self { records: 0, steps: 0, last_step: None, loads }
    }

    fn add(&mut self, step: u64, counts: &[Vec<i32>]) {
        self.records += 1;
        self.steps += usize::from(self.last_step != Some(step));
        self.last_step = Some(step);
        for (loads, counts) in self.loads.iter_mut().zip(counts) {
            let add = |(load, count): (&mut u64, &i32)| *load += u64::from(count.unsigned_abs());
            loads.iter_mut().zip(counts).for_each(add);
        }
    }

    fn write(&self, out: &mut impl Write, shape: TraceShape) -> Result<(), TraceError> {
        let last = self.last_step.map_or("none".to_owned(), |step| step.to_string());
        writeln!(out, "  steps          {} in {} records, last {last}", self.steps, self.records)?;
        for (layer, loads) in self.loads.iter().enumerate() {
            let total: u64 = loads.iter().sum();
            let (most, count) = (loads.iter().max().unwrap_or(&0), loads.len() as f64);
            let unused = loads.iter().filter(|load| **load == 0).count();
            let skew = if total > 0 { *most as f64 * count / total as f64 } else { 1.0 };
            writeln!(
                out,
                "  layer {layer:<3}      {} tokens, most chosen expert {skew:.2} times the mean, \
                 {unused} never chosen",
                total / shape.top_k as u64
            )?;
        }
        Ok(())
    }
}
