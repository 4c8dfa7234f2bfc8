//! `artel bench layer --device cpu`: one mixture-of-experts layer, batch size by batch size.
//!
//! Experts are random and lie in memory that is larger than the caches: every repetition takes the
//! next of several layers and a new routing, so that weights come from memory. Shares are taken of
//! what the same machine does at best in the same run (`ceilings.rs`).

mod ceilings;
#[cfg(feature = "cuda")]
pub mod gpu;
mod measure;
mod report;
mod simd;
mod weights;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use artel_device::cpu::CpuFeatures;
use artel_moe::quant::Format;
use ceilings::Ceilings;
pub use report::Report;

use crate::record;

/// Sizes of a published layer.
#[derive(Debug, Clone)]
pub struct LayerShape {
    /// Name of the model.
    pub name: &'static str,
    /// `E`.
    pub num_experts: usize,
    /// `K`.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// `I`.
    pub intermediate_size: usize,
}

/// Qwen3-30B-A3B.
pub const QWEN3_30B_A3B: LayerShape = LayerShape {
    name: "Qwen3-30B-A3B",
    num_experts: 128,
    top_k: 8,
    hidden_size: 2048,
    intermediate_size: 768,
};

/// MiniMax-M2.5.
pub const MINIMAX_M2_5: LayerShape = LayerShape {
    name: "MiniMax-M2.5",
    num_experts: 256,
    top_k: 8,
    hidden_size: 3072,
    intermediate_size: 1536,
};

/// Batch sizes that are measured unless others are asked for.
pub const TOKENS: [usize; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Layers.
    pub shapes: Vec<LayerShape>,
    /// Formats of the experts.
    pub formats: Vec<Format>,
    /// Batch sizes.
    pub tokens: Vec<usize>,
    /// Least time spent on each row, in seconds.
    pub seconds_per_row: f64,
    /// Bytes of experts in memory at a time. A layer that is larger has fewer experts, and the
    /// record says so.
    pub weight_bytes_max: usize,
    /// Strongest instruction set used.
    pub features: CpuFeatures,
    /// Where the record is written.
    pub save_result: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shapes: vec![QWEN3_30B_A3B, MINIMAX_M2_5],
            formats: vec![Format::Bf16, Format::Fp8Block128],
            tokens: TOKENS.to_vec(),
            seconds_per_row: 1.0,
            weight_bytes_max: 4 << 30,
            features: CpuFeatures::detect(),
            save_result: None,
        }
    }
}

/// Measures, prints a table as it goes, and writes the record.
///
/// # Errors
/// When an option is out of range or the record cannot be written.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(!options.tokens.contains(&0), "a batch has at least one token");
    let mut report = Report::new(Ceilings::measure());
    report.print_head();
    for shape in &options.shapes {
        for &format in &options.formats {
            measure::layer(options, shape, format, &mut report)?;
        }
    }
    if let Some(path) = &options.save_result {
        record::save(path, &report)?;
    }
    Ok(report)
}
