//! Replaying load through policies: what would a placement policy have cost and gained on these
//! tokens? A step's load comes from a [`trace`](super::trace) or a [`SyntheticLoad`]; a policy sees
//! the last steps, as a server's does, and its plans serve the next ones.
//!
//! ```
//! use artel_moe::eplb::{Cluster, policy::Greedy};
//! use artel_moe::eplb::simulate::{CopyRule, ReplayConfig, Strategy, Synthetic, replay};
//! use artel_moe::eplb::trace::TraceShape;
//! let shape = TraceShape { layers: 1, experts: 8, top_k: 2, source_ranks: 2 };
//! let steps = Synthetic::new("zipf:1.0".parse()?, shape, 64, 7)?.take(20).map(Ok);
//! let config = ReplayConfig::new(Cluster::new(2, 4)?);
//! let replay = replay(steps, &Strategy { policy: Some(&Greedy { groups: 1 }), rule: CopyRule::Hash }, &config)?;
//! assert_eq!(replay.steps.len(), 20);
//! assert!(replay.steps.iter().all(|step| step.imbalance() >= 1.0));
//! # Ok::<(), artel_moe::eplb::trace::TraceError>(())
//! ```
//!
//! What it cannot know: who the tokens are. A hash over tokens is simulated by independent draws
//! with a fixed seed, so the same input gives the same numbers.

mod layer;
mod replay;
mod report;
mod rule;
mod sample;
mod steps;
mod synthetic;

#[cfg(test)]
mod tests;

pub use replay::{ReplayConfig, Strategy, replay};
pub use report::{Redundancy, Replay, StepReport, Summary, WindowReport};
pub use rule::CopyRule;
pub use steps::by_step;
pub use synthetic::{Synthetic, SyntheticLoad};
