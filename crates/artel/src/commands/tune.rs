//! `artel tune`: measures every way to serve a batch on a GPU, for plans that follow the times.

use crate::cli::TuneArgs;

/// Makes or goes on with the records that are asked for.
///
/// # Errors
/// Without a GPU or its kernels, or when a record is of something else or cannot be written.
#[cfg(feature = "cuda")]
pub fn tune(args: &TuneArgs) -> anyhow::Result<()> {
    use crate::bench::layer::gpu::{TOKENS, tune};
    use crate::cli::Device;

    let Device::Cuda(ordinal) = args.device else {
        anyhow::bail!("--device cpu has nothing to tune; expected cuda or cuda:N");
    };
    let tokens = match args.tokens.as_slice() {
        [] => TOKENS.to_vec(),
        tokens => tokens.iter().map(|tokens| tokens.get()).collect(),
    };
    tune::run(&tune::Options {
        ordinal,
        shapes: args.shapes.iter().map(|name| name.parse()).collect::<anyhow::Result<_>>()?,
        tokens,
        packs: args.kernels.clone(),
        output: args.output.clone(),
    })
}

/// Says how to get the command.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn tune(_args: &TuneArgs) -> anyhow::Result<()> {
    Err(super::without_gpu_support("artel tune"))
}
