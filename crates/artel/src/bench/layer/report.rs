//! The table and the record.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use super::ceilings::Ceilings;

/// One batch size of one layer in one format, as measured.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the model.
    pub shape: String,
    /// Number format of the experts.
    pub format: String,
    /// `T`.
    pub tokens: usize,
    /// Experts in memory.
    pub num_experts: usize,
    /// Experts of the model.
    pub num_experts_published: usize,
    /// Median time of a step.
    pub microseconds: f64,
    /// Shortest time of a step.
    pub microseconds_min: f64,
    /// Bytes of the weights of the experts that a step touches, mean.
    pub weight_bytes: f64,
    /// Operations of a step; a multiply-add is two.
    pub operations: f64,
    /// Rate at which this machine reads these weights and does nothing else.
    pub read_gigabytes_per_second: f64,
    /// Rate of the `gemm` crate on an equal dense product in float32.
    pub gemm_crate_gigaflops: f64,
}

/// A row of the record.
#[derive(Debug, Clone, Serialize)]
pub struct RecordRow {
    /// Name of the model.
    pub shape: String,
    /// Number format of the experts.
    pub format: String,
    /// `T`.
    pub tokens: usize,
    /// Experts in memory; fewer than published when memory is short.
    pub num_experts: usize,
    /// Experts of the model.
    pub num_experts_published: usize,
    /// Median time of a step.
    pub microseconds: f64,
    /// Shortest time of a step.
    pub microseconds_min: f64,
    /// Least time that the ceilings allow: weights read once, or operations at the peak rate.
    pub floor_microseconds: f64,
    /// `floor_microseconds / microseconds`.
    pub share_of_ceiling: f64,
    /// Weights of touched experts, 1e9 bytes a second.
    pub gigabytes_per_second: f64,
    /// Share of the rate at which this machine reads the same weights.
    pub share_of_read_bandwidth: f64,
    /// 1e9 operations a second.
    pub gigaflops: f64,
    /// Times the `gemm` crate on an equal dense product.
    pub times_gemm_crate: f64,
    /// What the `gemm` crate reaches there.
    pub gemm_crate_gigaflops: f64,
    /// What this machine reads.
    pub read_gigabytes_per_second: f64,
}

/// What was measured, where and when.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Processor, threads and kernel.
    pub machine: Machine,
    /// Commit of the program.
    pub commit: String,
    /// Day, UTC, `YYYY-MM-DD`.
    pub date: String,
    /// Best rates of the machine.
    pub ceilings: Ceilings,
    /// One per shape, format and batch size.
    pub rows: Vec<RecordRow>,
}

/// The machine of a record.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name that the processor gives itself.
    pub processor: String,
    /// Threads used.
    pub threads: usize,
    /// Strongest instruction set.
    pub instruction_set: &'static str,
}

impl Report {
    /// An empty report of this machine.
    pub fn new(ceilings: Ceilings) -> Self {
        let machine = Machine {
            processor: processor_name(),
            threads: artel_device::cpu::threads(),
            instruction_set: artel_device::cpu::CpuFeatures::detect().isa().name(),
        };
        Self { machine, commit: commit(), date: today(), ceilings, rows: Vec::new() }
    }

    /// Prints machine, ceilings and the head of the table.
    pub fn print_head(&self) {
        let Machine { processor, threads, instruction_set } = &self.machine;
        println!("{processor}, {threads} threads, {instruction_set}; commit {}", self.commit);
        println!(
            "own peak: {:.0} GFLOP/s bf16, {:.0} GFLOP/s fp8",
            self.ceilings.own_peak_bf16_gigaflops, self.ceilings.own_peak_fp8_gigaflops
        );
        println!(
            "{:>14} {:>12} {:>6} {:>10} {:>10} {:>7} {:>7} {:>8} {:>7} {:>7}",
            "shape",
            "format",
            "tokens",
            "us",
            "floor us",
            "share",
            "GB/s",
            "of read",
            "GFLOP/s",
            "x gemm"
        );
    }

    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let peak = match row.format.as_str() {
            "fp8-block128" => self.ceilings.own_peak_fp8_gigaflops,
            _ => self.ceilings.own_peak_bf16_gigaflops,
        };
        let read = row.read_gigabytes_per_second;
        let ceilings = &mut self.ceilings;
        ceilings.read_gigabytes_per_second = ceilings.read_gigabytes_per_second.max(read);
        let floor_microseconds = (row.weight_bytes / read / 1e3).max(row.operations / peak / 1e3);
        let gigabytes_per_second = row.weight_bytes / row.microseconds / 1e3;
        let gigaflops = row.operations / row.microseconds / 1e3;
        let record = RecordRow {
            shape: row.shape,
            format: row.format,
            tokens: row.tokens,
            num_experts: row.num_experts,
            num_experts_published: row.num_experts_published,
            microseconds: row.microseconds,
            microseconds_min: row.microseconds_min,
            floor_microseconds,
            share_of_ceiling: floor_microseconds / row.microseconds,
            gigabytes_per_second,
            share_of_read_bandwidth: gigabytes_per_second / read,
            gigaflops,
            times_gemm_crate: gigaflops / row.gemm_crate_gigaflops,
            gemm_crate_gigaflops: row.gemm_crate_gigaflops,
            read_gigabytes_per_second: read,
        };
        record.print();
        self.rows.push(record);
    }

    /// Writes the record as JSON.
    ///
    /// # Errors
    /// When the file or its folder cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl RecordRow {
    fn print(&self) {
        println!(
            "{:>14} {:>12} {:>6} {:>10.0} {:>10.0} {:>6.0}% {:>7.1} {:>7.0}% {:>7.0} {:>7.2}",
            self.shape,
            self.format,
            self.tokens,
            self.microseconds,
            self.floor_microseconds,
            100.0 * self.share_of_ceiling,
            self.gigabytes_per_second,
            100.0 * self.share_of_read_bandwidth,
            self.gigaflops,
            self.times_gemm_crate,
        );
    }
}

fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let text = text.and_then(|text| String::from_utf8(text).ok());
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Civil date from days since 1970-01-01 (Howard Hinnant's algorithm).
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
