//! Replays of recorded graphs.

use artel_device::cuda::{CudaError, Graph};
use artel_gpu_test::Gpu;

/// Replays `graph`, whose buffers the calling test holds.
pub fn replay(gpu: &Gpu, graph: &Graph) -> Result<(), CudaError> {
    // SAFETY: a test keeps what it recorded until it ends, and launches nothing beside it.
    unsafe { graph.launch(&gpu.stream) }
}
