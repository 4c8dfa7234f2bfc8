//! One file a command.

pub mod bench;
pub mod eplb;
pub mod eval;
pub mod inspect;
pub mod kernels;
pub mod logits;
pub mod quantize;
pub mod run;
pub mod serve;
pub mod tune;

/// The answer of a command that needs a GPU's kernels in a program without them.
#[cfg(not(feature = "cuda"))]
pub fn without_gpu_support(command: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{command} needs GPU support, which this program was built without: run `cargo xtask \
         toolkit` once, then `cargo build --release --features cuda`"
    )
}
