use std::time::Duration;

use crate::MoeError;
use crate::config::MoeConfig;
use crate::eplb::map_and_record::ReplicaRule;
use crate::eplb::{Cluster, LayerPlan, Placement};
use crate::weights::AnyExperts;

/// One layer as ranks are given it.
#[derive(Debug, Clone)]
pub struct RankedLayer {
    /// What it computes, on one rank.
    pub config: MoeConfig,
    /// Its experts, each once, as the checkpoint has them.
    pub experts: AnyExperts,
    /// Which slot begins with which expert.
    pub placement: Placement,
    /// Which copy serves a token.
    pub rule: ReplicaRule,
}

/// How ranks run.
#[derive(Debug, Clone)]
pub struct RankOptions {
    /// Threads that one rank computes with.
    pub threads_per_rank: usize,
    /// A rank that takes longer for the rows of one layer is lost.
    pub compute_timeout: Duration,
    /// A move without progress for so long is given up.
    pub move_timeout: Duration,
    /// Slots of a layer that change at a time, which bounds the memory beside the slots. Experts
    /// that can only move together do so even when they are more.
    pub slots_per_switch: usize,
}

/// Which placement of a layer is meant: how many came before, and a hash of layer and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementVersion {
    /// Switches of the layer so far.
    pub number: u64,
    /// Over the layer and the expert in each slot.
    pub hash: u64,
}

/// What became of a move.
#[derive(Debug, Clone, PartialEq)]
pub enum MoveEvent {
    /// All slots hold what the plan wanted, and the plan's shares are in force.
    Moved {
        /// Which layer.
        layer: usize,
        /// Slots that changed.
        slots: usize,
        /// Bytes that went from one rank to another.
        bytes: usize,
        /// From the beginning of the move to the last switch.
        took: Duration,
    },
    /// The move was given up. The placement before it, or one on the way, stays in force.
    Aborted {
        /// Which layer.
        layer: usize,
        /// What went wrong.
        why: MoeError,
    },
}

/// Ranks that are threads of this process, seen from the thread that leads them. Dropping it ends
/// them.
#[derive(Debug)]
pub struct RankGroup {
    cluster: Cluster,
}

/// One layer on the ranks: what [`AnyMoeLayer::on_ranks`](crate::layer::AnyMoeLayer::on_ranks) takes.
#[derive(Debug, Clone)]
pub struct ExpertParallel {
    /// Number of the layer in its group.
    layer: usize,
}

fn later<T>() -> Result<T, MoeError> {
    Err(MoeError::config("ranks", "asked for", "not there yet"))
}

impl RankGroup {
    /// Starts the ranks of `cluster` with the experts of all layers. Slots share the bytes of the
    /// experts that are given; nothing is copied.
    ///
    /// # Errors
    /// [`MoeError`] when placements are not of these ranks, layers are spread already, or threads do
    /// not start.
    pub fn start(
        cluster: Cluster,
        _layers: Vec<RankedLayer>,
        _options: RankOptions,
    ) -> Result<Self, MoeError> {
        later::<()>()?;
        Ok(Self { cluster })
    }

    /// The ranks.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// One layer.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a layer that is not there.
    pub fn layer(&self, layer: usize) -> Result<ExpertParallel, MoeError> {
        Ok(ExpertParallel { layer })
    }

    /// Begins to move the experts of a layer to where `plan` wants them. Ranks go on computing with
    /// the placement that is in force.
    ///
    /// # Errors
    /// [`MoeError`] when the layer is moving already, or the plan is not of these ranks.
    pub fn begin_move(&self, _layer: usize, _plan: LayerPlan) -> Result<(), MoeError> {
        later()
    }

    /// What ranks have reported about moves, and moves that got stuck. Never waits; to be called
    /// between steps.
    pub fn poll(&self) -> Vec<MoveEvent> {
        Vec::new()
    }

    /// Layers whose experts have all arrived, and which [`RankGroup::switch_ready`] would switch.
    pub fn ready(&self) -> usize {
        0
    }

    /// Switches all layers whose experts have arrived to their new placement; to be called between
    /// steps.
    ///
    /// # Errors
    /// [`MoeError::Rank`] when a rank is gone.
    pub fn switch_ready(&self) -> Result<(), MoeError> {
        later()
    }

    /// Whether the layer is moving.
    pub fn is_moving(&self, _layer: usize) -> bool {
        false
    }
}

impl ExpertParallel {
    /// Number of the layer in its group.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The placement in force, and its version.
    pub fn placement(&self) -> Result<(Placement, PlacementVersion), MoeError> {
        later()
    }

    /// Changes how copies share their expert's tokens, from the next step on.
    ///
    /// # Errors
    /// [`MoeError`] for a rule of another placement.
    pub fn set_rule(&self, _rule: ReplicaRule) -> Result<(), MoeError> {
        later()
    }

    /// Switches the counting of pairs by slot on or off.
    pub fn record_load(&self, _recording: bool) {}

    /// Pairs of each slot since the last time, `[P]`, in steps that were recorded.
    pub fn take_load(&self) -> Vec<i32> {
        Vec::new()
    }
}
