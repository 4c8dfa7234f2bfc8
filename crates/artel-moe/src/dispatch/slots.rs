//! The experts in the slots of one rank, for one layer.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use artel_device::HostBuffer;
use artel_device::cpu::CpuFeatures;
use artel_device::memory::AlignedBuffer;

use super::{PlacementVersion, Work};
use crate::MoeError;
use crate::activation::activate;
use crate::assignment::{self, AlignOptions, Assignment};
use crate::config::MoeConfig;
use crate::grouped_gemm::grouped_gemm;
use crate::grouped_gemm::{GemmFormat, GemmScratch, GroupedGemm, RowWeights, TILE_ROWS};
use crate::weights::ExpertWeights;

/// What a slot shall hold.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// What another slot of the rank holds.
    CopyOf(usize),
    /// An expert of the model as it was loaded.
    Loaded(usize),
    /// An expert that has arrived as bytes.
    Arrived(HostBuffer),
}

/// The slots of a rank in one layer, of any format. They never change: a move makes others.
pub(super) trait RankSlots: Debug + Send + Sync {
    /// Computes `work.out` `[m, H]` from `work.rows` `[m, H]`. Slots must exist.
    fn compute(&self, work: &mut Work, scratch: &mut Scratch) -> Result<(), MoeError>;

    /// The expert in one slot as bytes.
    fn export(&self, slot: usize) -> Vec<u8>;

    /// These slots with others' content in some of them.
    fn with(&self, contents: &[(usize, Content)]) -> Result<Arc<dyn RankSlots>, MoeError>;
}

/// Memory between the steps of a rank, for layers of any format.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    gemm: GemmScratch,
    align: assignment::Workspace,
    assignment: Assignment,
    gate_up: AlignedBuffer,
    activated: AlignedBuffer,
}

/// Slots on the CPU.
#[derive(Debug, Clone)]
pub(super) struct CpuSlots<F: GemmFormat> {
    pub config: MoeConfig,
    pub features: CpuFeatures,
    /// One expert a slot.
    pub weights: ExpertWeights<F>,
    /// All experts of the model as they were loaded. Shares the bytes of the checkpoint.
    pub loaded: ExpertWeights<F>,
}

impl<F: GemmFormat> RankSlots for CpuSlots<F> {
    fn compute(&self, work: &mut Work, scratch: &mut Scratch) -> Result<(), MoeError> {
        let (w13, w2) = (self.weights.w13(), self.weights.w2());
        let (features, rows) = (self.features, work.slots.len());
        let Scratch { gemm, align, assignment, gate_up, activated } = scratch;
        let options = AlignOptions::new(self.weights.experts(), TILE_ROWS);
        assignment::cpu::align(&work.slots, &options, align, assignment)?;
        let gate_up = gate_up.first_mut::<F::Activation>(rows * w13.rows());
        let activated = activated.first_mut::<F::Activation>(rows * w2.columns());
        let out = work.out.first_mut::<F::Activation>(rows * w2.rows());
        let first = GroupedGemm {
            rows: work.rows.first(rows * w13.columns()),
            pairs_per_row: 1,
            weights: w13,
            assignment,
            row_weights: match work.weights.as_slice() {
                [] => RowWeights::One,
                weights => RowWeights::Routed(weights),
            },
        };
        grouped_gemm(features, first, gate_up, gemm)?; // [m, 2I]
        activate(features, self.config.activation(), w2.columns(), gate_up, activated)?; // [m, I]
        let row_weights = RowWeights::One;
        let second =
            GroupedGemm { rows: activated, pairs_per_row: 1, weights: w2, assignment, row_weights };
        grouped_gemm(features, second, out, gemm) // [m, H]
    }

    fn export(&self, slot: usize) -> Vec<u8> {
        self.weights.expert(slot).to_bytes()
    }

    fn with(&self, contents: &[(usize, Content)]) -> Result<Arc<dyn RankSlots>, MoeError> {
        let mut weights = self.weights.clone();
        for (slot, content) in contents {
            let expert = match content {
                Content::CopyOf(from) => self.weights.expert(*from),
                Content::Loaded(expert) => self.loaded.expert(*expert),
                Content::Arrived(bytes) => self.weights.expert(0).from_bytes(bytes)?,
            };
            weights.replace(*slot, expert)?;
        }
        Ok(Arc::new(Self { weights, ..self.clone() }))
    }
}

/// Slots with the placement that they belong to.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub version: PlacementVersion,
    /// Expert in each of the rank's slots, -1 for an empty one.
    pub experts: Vec<i32>,
    pub slots: Arc<dyn RankSlots>,
}

/// The slots of one layer on one rank: those in force, and those that may follow. The rank and its
/// mover share it.
#[derive(Debug)]
pub(super) struct LayerOfRank {
    content: Mutex<(Arc<Held>, Option<Held>)>,
}

impl LayerOfRank {
    pub fn new(held: Held) -> Self {
        Self { content: Mutex::new((Arc::new(held), None)) }
    }

    /// What is in force.
    pub fn held(&self) -> Arc<Held> {
        Arc::clone(&self.lock().0)
    }

    /// Puts slots aside for a switch.
    pub fn stage(&self, held: Held) {
        self.lock().1 = Some(held);
    }

    /// Forgets what was put aside.
    pub fn drop_staged(&self) {
        let staged = self.lock().1.take();
        drop(staged);
    }

    /// Brings into force what was put aside for `version`.
    pub fn switch(&self, version: PlacementVersion) -> Result<(), MoeError> {
        let mut content = self.lock();
        match content.1.take_if(|staged| staged.version == version) {
            Some(staged) => content.0 = Arc::new(staged),
            None => {
                let allowed = "one that is staged";
                return Err(MoeError::config("placement to switch to", version, allowed));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, (Arc<Held>, Option<Held>)> {
        // Every change is one assignment, so a panic elsewhere leaves it whole.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
