use std::sync::Arc;

use artel_device::memory::AlignedBuffer;

use super::checksum::checksum;
use crate::MoeError;

/// Which placement of a layer is meant. Ranks compare it with their own before they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementVersion {
    /// Grows with every placement that is tried, so that what is left of one that was given up fits
    /// none that follows.
    pub number: u64,
    /// [`Placement::hash`](crate::eplb::Placement::hash).
    pub hash: u64,
}

impl std::fmt::Display for PlacementVersion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} ({:016x})", self.number, self.hash)
    }
}

/// What leader, ranks and movers tell each other.
#[derive(Debug)]
#[non_exhaustive]
pub enum Message {
    /// Leader to rank: compute these rows.
    Compute(Box<Work>),
    /// Leader to rank: the staged slots are in force from here on.
    Switch {
        /// Which layer.
        layer: usize,
        /// The placement that they are staged for.
        version: PlacementVersion,
    },
    /// Rank to leader: the rows, or why there are none.
    Computed(Box<Work>, Result<(), MoeError>),
    /// Rank to leader: the staged slots are in force, or why not.
    Switched {
        /// Which layer.
        layer: usize,
        /// The placement in force.
        version: PlacementVersion,
        /// What went wrong.
        result: Result<(), MoeError>,
    },
    /// Leader to mover: what the slots of this rank shall be.
    Stage(Box<StageOrder>),
    /// Leader to mover: send these experts.
    Send {
        /// Which layer.
        layer: usize,
        /// The placement that they are sent for.
        version: PlacementVersion,
        /// Each with its slot on this rank and the rank that gets it.
        experts: Vec<Outgoing>,
    },
    /// Leader to mover: forget what was staged.
    Abort {
        /// Which layer.
        layer: usize,
        /// The placement that is not to be.
        version: PlacementVersion,
    },
    /// Mover to mover: one expert.
    Expert(Parcel),
    /// Mover to leader: how a move goes on.
    Report {
        /// Which layer.
        layer: usize,
        /// The placement that is being staged.
        version: PlacementVersion,
        /// What happened.
        report: Report,
    },
}

/// Rows of one layer for one rank. It goes there and comes back; its memory is used again.
#[derive(Debug, Default)]
pub struct Work {
    /// Number of the step, by which late answers are told from current ones.
    pub step: u64,
    /// Which layer.
    pub layer: usize,
    /// The placement that slots were chosen by.
    pub version: Option<PlacementVersion>,
    /// Slot of each row, counted from the rank's first, `[m]`.
    pub slots: Vec<i32>,
    /// Router's weight of each row where it is applied to the first product, else empty.
    pub weights: Vec<f32>,
    /// Hidden states `[m, H]` in the precision of the layer's format.
    pub rows: AlignedBuffer,
    /// What the experts made of them, `[m, H]`.
    pub out: AlignedBuffer,
    /// The leader's own: pair of each row, `[m]`.
    pub pairs: Vec<u32>,
}

/// What the slots of one rank shall be.
#[derive(Debug, Clone)]
pub struct StageOrder {
    /// Which layer.
    pub layer: usize,
    /// The placement in force.
    pub from: PlacementVersion,
    /// The placement that is being staged.
    pub to: PlacementVersion,
    /// Expert in each slot of all ranks under the new placement, -1 for an empty slot.
    pub physical_to_logical: Arc<[i32]>,
    /// Number of experts of the model.
    pub num_logical: usize,
    /// Slots to copy inside of this rank: from, to.
    pub copies: Vec<(usize, usize)>,
    /// Experts that no living rank has, and the slots of this rank that get them.
    pub reloads: Vec<(usize, usize)>,
    /// Experts that will arrive, with the slots of this rank that get them.
    pub receives: Vec<(usize, Vec<usize>)>,
}

/// An expert that a mover shall send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// Expert of the model.
    pub expert: usize,
    /// Slot of the sending rank that holds it.
    pub slot: usize,
    /// Receiving rank.
    pub to: usize,
}

/// One expert on its way, all of its tensors.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Which layer.
    pub layer: usize,
    /// The placement that it is sent for.
    pub version: PlacementVersion,
    /// Expert of the model.
    pub expert: usize,
    /// Sending rank.
    pub from: usize,
    /// [`Expert::to_bytes`](crate::weights::Expert::to_bytes).
    pub bytes: Vec<u8>,
    /// Over the bytes and whose they are.
    pub checksum: u64,
}

impl Parcel {
    /// What [`Parcel::checksum`] must be.
    pub fn expected_checksum(&self) -> u64 {
        let whose = [self.layer as u64, self.expert as u64, self.version.number, self.version.hash];
        checksum(checksum(0, bytemuck::cast_slice(&whose)), &self.bytes)
    }
}

/// How a move goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// An expert has arrived whole.
    Received {
        /// Expert of the model.
        expert: usize,
    },
    /// All slots of the rank are staged.
    Staged,
    /// The rank cannot stage.
    Failed(MoeError),
}
