//! `artel tune`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::Device;

/// `artel tune`.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The GPU: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    pub device: Device,
    /// Layers by name, MODEL[-tpN]-FORMAT
    #[arg(long, value_delimiter = ',', required = true, value_name = "NAMES")]
    pub shapes: Vec<String>,
    /// Batch sizes [default: powers of two to 8192]
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub tokens: Vec<NonZeroUsize>,
    /// Kernel packs; what they lack is compiled where a toolkit is installed
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    pub kernels: Vec<PathBuf>,
    /// Folder of the records, NAME.json for each layer; a record that is there is gone on with
    #[arg(long, short, value_name = "FOLDER")]
    pub output: PathBuf,
}
