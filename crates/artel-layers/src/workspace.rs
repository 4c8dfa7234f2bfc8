use std::collections::BTreeMap;

use artel_device::cpu::CpuFeatures;
use artel_moe::grouped_gemm::GemmScratch;
use artel_moe::inputs::InputSquares;

/// What the operations of a step share: the instruction set they run on and the memory of their
/// matrix products, kept from step to step.
#[derive(Debug)]
pub struct Workspace {
    features: CpuFeatures,
    pub(crate) gemm: GemmScratch,
    /// What linear maps have met, by their names, where it is recorded.
    pub(crate) inputs: Option<BTreeMap<String, InputSquares>>,
}

impl Workspace {
    /// A workspace that has not allocated anything yet.
    pub fn new(features: CpuFeatures) -> Self {
        Self { features, gemm: GemmScratch::default(), inputs: None }
    }

    /// Records what linear maps that have names are given from now on.
    pub fn record_inputs(&mut self) {
        self.inputs = Some(BTreeMap::new());
    }

    /// What they have met since the last time, by name; nothing unless it was recorded.
    pub fn take_inputs(&mut self) -> BTreeMap<String, InputSquares> {
        self.inputs.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The instruction set.
    pub fn features(&self) -> CpuFeatures {
        self.features
    }
}
