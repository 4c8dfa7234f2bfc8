//! Every kernel of one layer: what a pack for it holds.

use artel_device::cuda::Kernels;

use crate::MoeError;
use crate::config::MoeConfig;
use crate::packing::cuda::Pack;
use crate::plan::TOKENS_PER_STEP;
use crate::plan::gpu::{ExpertsShape, GpuCeilings, GpuPlan, TuningRecord};
use crate::quant::Format;
use crate::router::RouterConfig;

/// The plan of a layer on the GPU that `kernels` are made for, from the bundled tuning record if
/// there is one.
///
/// # Errors
/// [`MoeError`] when that GPU has no kernels for the format or the sizes, with what it has.
pub fn plan(kernels: &Kernels, config: &MoeConfig, format: Format) -> Result<GpuPlan, MoeError> {
    let architecture = kernels.architecture().name();
    let gpu = GpuCeilings::of_architecture(architecture);
    let gpu = gpu.expect("this is a bug: an architecture without ceilings");
    let record = TuningRecord::bundled(architecture, &ExpertsShape::of(config, format))?;
    GpuPlan::new(gpu, config, format, record.as_ref(), TOKENS_PER_STEP)
}

/// Asks for every kernel that a layer may launch.
///
/// # Errors
/// [`MoeError`] when the layer cannot run on that GPU, or a kernel is missing and cannot be made.
pub fn load(
    kernels: &mut Kernels,
    config: &MoeConfig,
    _router: &RouterConfig,
    format: Format,
) -> Result<(), MoeError> {
    plan(kernels, config, format)?;
    Pack::load(kernels)?;
    Ok(())
}
