//! The decoder on an NVIDIA GPU.

pub mod step;

pub use step::{CudaStep, LogitsRows, StepLayout, StepSection};

/// What a model on a GPU is made for: memory and kernels follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaLimits {
    /// Most new tokens of a step; at least `sequences_max`.
    pub tokens_max: usize,
    /// Most sequences of a step.
    pub sequences_max: usize,
    /// Most rows of logits of a step; at least `sequences_max`.
    pub logits_max: usize,
    /// Most tokens of a sequence: what its block table has room for.
    pub context_max: usize,
}
