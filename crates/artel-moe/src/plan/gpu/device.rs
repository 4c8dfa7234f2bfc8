//! What a GPU can do at most: the ceilings that times are held against.

/// Rates of one GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuCeilings {
    /// Architecture in the compiler's words, `sm_90`.
    pub architecture: &'static str,
    /// The GPU that the numbers are of.
    pub device: &'static str,
    /// Measured by a program, or taken from a data sheet and scaled by what was measured elsewhere.
    pub measured: bool,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of the second-level cache.
    pub l2_bytes: f64,
    /// Reading device memory, in bytes a second.
    pub read: f64,
    /// Reading the second-level cache, in bytes a second.
    pub l2_read: f64,
    /// bfloat16 products, in operations a second.
    pub bf16: f64,
    /// FP8 products; none where the matrix units have no FP8.
    pub fp8: Option<f64>,
}

/// Sums over 2 GiB and matrix products of 8192 in a cube, measured at their fastest. The cache's rate is what the
/// fastest prefill kernels need at least.
const H200: GpuCeilings = GpuCeilings {
    architecture: "sm_90",
    device: "NVIDIA H200",
    measured: true,
    multiprocessors: 132,
    l2_bytes: 50e6,
    read: 4.35e12,
    l2_read: 6.2e12,
    bf16: 790e12,
    fp8: Some(1362e12),
};

/// Data sheets, times what the H200 reaches of its own (0.9 of reading, 0.7 of arithmetic).
const A100: GpuCeilings = GpuCeilings {
    architecture: "sm_80",
    device: "NVIDIA A100 80GB",
    measured: false,
    multiprocessors: 108,
    l2_bytes: 40e6,
    read: 1.83e12,
    l2_read: 5e12,
    bf16: 218e12,
    fp8: None,
};

const B200: GpuCeilings = GpuCeilings {
    architecture: "sm_100",
    device: "NVIDIA B200",
    measured: false,
    multiprocessors: 148,
    l2_bytes: 126e6,
    read: 7.2e12,
    l2_read: 14e12,
    bf16: 1575e12,
    fp8: Some(3150e12),
};

const RTX_PRO_6000: GpuCeilings = GpuCeilings {
    architecture: "sm_120",
    device: "NVIDIA RTX PRO 6000",
    measured: false,
    multiprocessors: 188,
    l2_bytes: 128e6,
    read: 1.61e12,
    l2_read: 6.0e12,
    bf16: 352e12,
    fp8: Some(705e12),
};

impl GpuCeilings {
    /// One GPU of every architecture.
    pub const ALL: [Self; 4] = [A100, H200, B200, RTX_PRO_6000];

    /// The GPU that stands for an architecture.
    pub fn of_architecture(name: &str) -> Option<&'static Self> {
        const ALL: &[GpuCeilings] = &GpuCeilings::ALL;
        ALL.iter().find(|gpu| gpu.architecture == name)
    }
}
