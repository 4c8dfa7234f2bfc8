//! Flags about what computes a model, which all commands share that run an engine.

use std::path::PathBuf;

use clap::Args;

use super::{Device, RankArgs};

/// What computes.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub ranks: RankArgs,
}

/// The device, and how much of it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// What computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: Device,
    /// Kernel packs for a GPU; what they lack is compiled where a toolkit is installed [default:
    /// kernels.pack beside the program, where there is one]
    #[arg(long, value_delimiter = ',', value_name = "FILES", env = "ARTEL_KERNELS")]
    pub kernels: Vec<PathBuf>,
    /// Share of a GPU's memory that may be in use; keys and values get what weights leave of it
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = share)]
    pub gpu_memory_utilization: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "give a share such as 0.9")?;
    match share > 0.0 && share <= 1.0 {
        true => Ok(share),
        false => Err("a share is above 0 and at most 1".to_owned()),
    }
}
