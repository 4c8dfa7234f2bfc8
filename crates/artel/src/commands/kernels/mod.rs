//! `artel kernels`: packs of machine code for GPUs, made where the toolkit is, used where it is not.

#[cfg(feature = "cuda")]
mod build;
#[cfg(feature = "cuda")]
mod list;

use crate::cli::KernelsCommand;

/// Makes or shows a kernel pack.
///
/// # Errors
/// When a kernel does not compile (the message names it), a file is no pack or cannot be written,
/// or the program was built without GPU support.
#[cfg(feature = "cuda")]
pub fn kernels(command: &KernelsCommand) -> anyhow::Result<()> {
    match command {
        KernelsCommand::Build(args) => build::build(args),
        KernelsCommand::List(args) => list::list(args),
    }
}

/// Says how to get the command.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn kernels(_command: &KernelsCommand) -> anyhow::Result<()> {
    Err(super::without_gpu_support("artel kernels"))
}
