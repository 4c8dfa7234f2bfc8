use std::time::Duration;

use artel_device::cpu::CpuFeatures;

use crate::MoeError;

/// How ranks run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankOptions {
    /// What kernels may use. Rows are always computed so that they do not depend on each other.
    pub features: CpuFeatures,
    /// Threads that one rank computes with.
    pub threads_per_rank: usize,
    /// A rank that takes longer for the rows of one layer fails the step.
    pub compute_timeout: Duration,
    /// A move without progress for so long is given up.
    pub move_timeout: Duration,
    /// Slots of a layer that change at a time, which bounds the memory beside the slots. Experts
    /// that can only move together do so even when they are more.
    pub slots_per_switch: usize,
    /// Whether experts travel in rounds in which every rank talks to at most one other.
    pub in_rounds: bool,
}

impl RankOptions {
    /// The cores of this machine shared evenly among `ranks`, and generous limits.
    pub fn new(features: CpuFeatures, ranks: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            features,
            threads_per_rank: (cores / ranks.max(1)).max(1),
            compute_timeout: Duration::from_secs(300),
            move_timeout: Duration::from_secs(30),
            slots_per_switch: 16,
            in_rounds: false,
        }
    }

    pub(super) fn check(&self) -> Result<(), MoeError> {
        let at_least_one = [
            ("threads of a rank", self.threads_per_rank),
            ("slots that change at a time", self.slots_per_switch),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(MoeError::config(field, value, "at least 1"));
            }
        }
        Ok(())
    }
}
