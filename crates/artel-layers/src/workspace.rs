use artel_device::cpu::CpuFeatures;
use artel_moe::grouped_gemm::GemmScratch;

/// What the operations of a step share: the instruction set they run on and the memory of their
/// matrix products, kept from step to step.
#[derive(Debug)]
pub struct Workspace {
    features: CpuFeatures,
    pub(crate) gemm: GemmScratch,
}

impl Workspace {
    /// A workspace that has not allocated anything yet.
    pub fn new(features: CpuFeatures) -> Self {
        Self { features, gemm: GemmScratch::default() }
    }

    /// The instruction set.
    pub fn features(&self) -> CpuFeatures {
        self.features
    }
}
