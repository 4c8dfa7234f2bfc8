//! The table and the record of one shape.

use anyhow::Result;
use artel_device::cuda::Context;
use artel_moe::quant::Format;
use serde::Serialize;

use super::Peer;
use crate::record::Provenance;
use crate::shapes::NamedLayer;

/// Dense products of 8192 rows and columns by the vendor's library on an H200 at their fastest, 1e12
/// operations a second: the arithmetic ceiling of the floors.
const BF16_TERAFLOPS: f64 = 790.0;
/// As above, of FP8.
const FP8_TERAFLOPS: f64 = 1362.0;

/// One batch size, as measured.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `T`.
    pub tokens: usize,
    /// How tokens chose their experts.
    pub routing: &'static str,
    /// Form of assignment and kernels.
    pub path: String,
    /// Median time of a step.
    pub microseconds: f64,
    /// Shortest time of a step.
    pub microseconds_min: f64,
    /// Different experts of a step, mean.
    pub experts_touched: f64,
    /// Bytes of their weights and of the hidden states in and out.
    pub bytes: f64,
    /// Operations of a step; a multiply-add is two.
    pub operations: f64,
    /// Frobenius norm of the error against float64 on sampled tokens, relative.
    pub relative_error: f64,
    /// Least time that the ceilings allow.
    pub floor_microseconds: f64,
    /// `floor_microseconds / microseconds`.
    pub share_of_floor: f64,
    /// 1e12 bytes a second.
    pub terabytes_per_second: f64,
    /// 1e12 operations a second.
    pub teraflops: f64,
}

/// What was measured, where and when.
#[derive(Debug, Clone, Serialize)]
pub struct ShapeReport {
    #[serde(flatten)]
    provenance: Provenance,
    gpu: Gpu,
    method: &'static str,
    /// Name of the shape.
    pub shape: String,
    sizes: Sizes,
    ceilings: Ceilings,
    /// One per routing and batch size.
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
struct Gpu {
    name: String,
    architecture: &'static str,
    multiprocessors: usize,
    driver: String,
}

#[derive(Debug, Clone, Serialize)]
struct Sizes {
    num_experts: usize,
    top_k: usize,
    hidden_size: usize,
    intermediate_size: usize,
    format: String,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Ceilings {
    read_terabytes_per_second: f64,
    teraflops: f64,
}

impl ShapeReport {
    /// An empty report.
    ///
    /// # Errors
    /// When the GPU does not answer.
    pub fn new(context: &Context, shape: &NamedLayer, read_rate: f64) -> Result<Self> {
        let teraflops = match shape.format {
            Format::Fp8Block128 | Format::Fp8Tensor | Format::Fp8Channel | Format::Int8W8A8 => {
                FP8_TERAFLOPS
            }
            _ => BF16_TERAFLOPS,
        };
        let sizes = shape.config.shape();
        Ok(Self {
            provenance: Provenance::here(),
            gpu: Gpu {
                name: context.name()?,
                architecture: context.architecture().name(),
                multiprocessors: context.multiprocessors()?,
                driver: context.driver_version()?,
            },
            method: "CUDA graph of several routings, median of its replays over their number; cold \
                     weights; from bfloat16 hidden states, ids and weights to bfloat16 output",
            shape: shape.name.clone(),
            sizes: Sizes {
                num_experts: sizes.num_experts,
                top_k: sizes.top_k,
                hidden_size: sizes.hidden_size,
                intermediate_size: shape.config.local_intermediate_size(),
                format: shape.format.to_string(),
            },
            ceilings: Ceilings { read_terabytes_per_second: read_rate, teraflops },
            rows: Vec::new(),
        })
    }

    /// Prints machine, ceilings and the head of the table.
    pub fn print_head(&self, peer: Option<&Peer>) {
        let Gpu { name, architecture, driver, .. } = &self.gpu;
        println!("{name} ({architecture}), driver for CUDA {driver}; {}", self.shape);
        println!(
            "ceilings: {:.2} TB/s read, {:.0} TFLOP/s",
            self.ceilings.read_terabytes_per_second, self.ceilings.teraflops
        );
        print!(
            "{:>6} {:>8} {:>9} {:>9} {:>6} {:>6} {:>7} {:>7} {:>8}",
            "tokens", "routing", "us", "floor us", "share", "TB/s", "TFLOP/s", "experts", "error"
        );
        match peer {
            Some(peer) => println!(" {:>9}  path ({})", "peer us", peer.name),
            None => println!("  path"),
        }
    }

    /// Completes a row from the ceilings, adds and prints it.
    pub fn add(&mut self, mut row: Row, peer: Option<&Peer>) {
        let Ceilings { read_terabytes_per_second, teraflops } = self.ceilings;
        let reading = row.bytes / read_terabytes_per_second / 1e6;
        row.floor_microseconds = reading.max(row.operations / teraflops / 1e6);
        row.share_of_floor = row.floor_microseconds / row.microseconds;
        row.terabytes_per_second = row.bytes / row.microseconds / 1e6;
        row.teraflops = row.operations / row.microseconds / 1e6;
        print!(
            "{:>6} {:>8} {:>9.1} {:>9.1} {:>5.0}% {:>6.2} {:>7.0} {:>7.1} {:>8.1e}",
            row.tokens,
            row.routing,
            row.microseconds,
            row.floor_microseconds,
            100.0 * row.share_of_floor,
            row.terabytes_per_second,
            row.teraflops,
            row.experts_touched,
            row.relative_error,
        );
        match peer.and_then(|peer| peer.microseconds(&self.shape, row.routing, row.tokens)) {
            Some(theirs) => println!(" {theirs:>9.1}  {}", row.path),
            None if peer.is_some() => println!(" {:>9}  {}", "", row.path),
            None => println!("  {}", row.path),
        }
        self.rows.push(row);
    }
}
