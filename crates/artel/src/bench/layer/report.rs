//! The table and the record.

use artel_moe::quant::Format;
use serde::Serialize;

use super::ceilings::Ceilings;
use crate::record::{Machine, Provenance};

/// One batch size of one layer in one format, as measured.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the model.
    pub shape: String,
    /// Number format of the experts.
    pub format: Format,
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
    /// Bytes of the experts over their numbers, scales included.
    pub bytes_per_weight: f64,
    /// Operations of a step; a multiply-add is two.
    pub operations: f64,
    /// Of the result, against float64 on the same stored weights.
    pub relative_error: f64,
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
    /// Bytes of the experts over their numbers, scales included.
    pub bytes_per_weight: f64,
    /// Of the result, against float64 on the same stored weights.
    pub relative_error: f64,
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
    /// Machine, commit and day.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Best rates of the machine.
    pub ceilings: Ceilings,
    /// One per shape, format and batch size.
    pub rows: Vec<RecordRow>,
}

impl Report {
    /// An empty report of this machine.
    pub fn new(ceilings: Ceilings) -> Self {
        Self { provenance: Provenance::here(), ceilings, rows: Vec::new() }
    }

    /// Prints machine, ceilings and the head of the table.
    pub fn print_head(&self) {
        let Provenance { machine, commit, .. } = &self.provenance;
        let Machine { processor, threads, instruction_set } = machine;
        println!("{processor}, {threads} threads, {instruction_set}; commit {commit}");
        println!(
            "in registers: {:.0} GFLOP/s on bf16 and fp8, {:.0} on f32 and f16",
            self.ceilings.gigaflops(Format::Bf16),
            self.ceilings.gigaflops(Format::F32)
        );
        println!(
            "{:>14} {:>12} {:>6} {:>10} {:>10} {:>7} {:>7} {:>8} {:>7} {:>7} {:>7}",
            "shape",
            "format",
            "tokens",
            "us",
            "floor us",
            "share",
            "GB/s",
            "of read",
            "GFLOP/s",
            "x gemm",
            "error"
        );
    }

    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let peak = self.ceilings.gigaflops(row.format);
        let read = row.read_gigabytes_per_second;
        let ceilings = &mut self.ceilings;
        ceilings.read_gigabytes_per_second = ceilings.read_gigabytes_per_second.max(read);
        let floor_microseconds = (row.weight_bytes / read / 1e3).max(row.operations / peak / 1e3);
        let gigabytes_per_second = row.weight_bytes / row.microseconds / 1e3;
        let gigaflops = row.operations / row.microseconds / 1e3;
        let record = RecordRow {
            shape: row.shape,
            format: row.format.to_string(),
            tokens: row.tokens,
            num_experts: row.num_experts,
            num_experts_published: row.num_experts_published,
            microseconds: row.microseconds,
            microseconds_min: row.microseconds_min,
            floor_microseconds,
            share_of_ceiling: floor_microseconds / row.microseconds,
            gigabytes_per_second,
            bytes_per_weight: row.bytes_per_weight,
            relative_error: row.relative_error,
            share_of_read_bandwidth: gigabytes_per_second / read,
            gigaflops,
            times_gemm_crate: gigaflops / row.gemm_crate_gigaflops,
            gemm_crate_gigaflops: row.gemm_crate_gigaflops,
            read_gigabytes_per_second: read,
        };
        record.print();
        self.rows.push(record);
    }
}

impl RecordRow {
    fn print(&self) {
        println!(
            "{:>14} {:>12} {:>6} {:>10.0} {:>10.0} {:>6.0}% {:>7.1} {:>7.0}% {:>7.0} {:>7.2} {:>7.1e}",
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
            self.relative_error,
        );
    }
}
