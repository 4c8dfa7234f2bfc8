//! Every kernel of one layer: what a pack for it holds, and what a tuning record is of.

use std::collections::{BTreeMap, BTreeSet};

use artel_device::cuda::{Architecture, KernelSpec, Kernels};
use half::{bf16, f16};

use crate::MoeError;
use crate::config::{MoeConfig, MoeShape};
use crate::eplb::map_and_record::cuda::MapAndRecord;
use crate::eplb::map_and_record::{ReplicaRule, ReplicaSalt};
use crate::layer::cuda::ExpertsKernels;
use crate::packing::cuda::Pack;
use crate::plan::gpu::record::STEPS;
use crate::plan::gpu::{
    ExpertsShape, GemmFamily, GpuCeilings, GpuPlan, TOKENS_PER_STEP, TuningRecord,
};
use crate::quant::Format;
use crate::router::RouterConfig;
use crate::router::cuda::Route;

/// Digits of a hash that tell sources apart.
const HASH_DIGITS: usize = 16;

/// The plan of a layer, from the bundled tuning record as far as it is of this program's kernels,
/// else from the model of the GPU.
///
/// # Errors
/// [`MoeError`] when that GPU has no kernels for the format or the sizes, with what it has.
pub fn plan(
    architecture: Architecture,
    config: &MoeConfig,
    format: Format,
) -> Result<GpuPlan, MoeError> {
    plan_in_steps(architecture, config, format, TOKENS_PER_STEP)
}

/// As [`plan`] for a workspace of another size. Where `tokens_per_step` is a power of two, the plan
/// is the same up to there, so a pack for the layer holds its kernels.
///
/// # Errors
/// As [`plan`].
pub fn plan_in_steps(
    architecture: Architecture,
    config: &MoeConfig,
    format: Format,
    tokens_per_step: usize,
) -> Result<GpuPlan, MoeError> {
    let shape = ExpertsShape::of(config, format);
    match TuningRecord::bundled(architecture.name(), &shape)? {
        Some(record) => plan_by(architecture, config, format, tokens_per_step, record),
        None => GpuPlan::new(ceilings(architecture), config, format, None, tokens_per_step),
    }
}

/// As [`plan_in_steps`] by a record of one's own, as far as its kernels are still the same.
///
/// # Errors
/// As [`plan`].
pub fn plan_by(
    architecture: Architecture,
    config: &MoeConfig,
    format: Format,
    tokens_per_step: usize,
    mut record: TuningRecord,
) -> Result<GpuPlan, MoeError> {
    let gpu = ceilings(architecture);
    loop {
        let known = Some(&record).filter(|record| !record.is_empty());
        let plan = GpuPlan::new(gpu, config, format, known, tokens_per_step)?;
        let mut kernels = Kernels::list(architecture);
        load_planned(&mut kernels, config, format, &plan)?;
        // A plan without what was forgotten may name kernels that nobody has looked at yet.
        if record.forget_changed(&sources(kernels.specs())).is_empty() {
            return Ok(plan);
        }
    }
}

/// The ceilings of the GPU that stands for an architecture.
pub fn ceilings(architecture: Architecture) -> &'static GpuCeilings {
    let gpu = GpuCeilings::of_architecture(architecture.name());
    gpu.expect("this is a bug: an architecture without ceilings")
}

/// Asks for every kernel that a layer may launch.
///
/// # Errors
/// [`MoeError`] when the layer cannot run on that GPU, or a kernel is missing and cannot be made.
pub fn load(
    kernels: &mut Kernels,
    config: &MoeConfig,
    router: &RouterConfig,
    format: Format,
) -> Result<(), MoeError> {
    let plan = plan(kernels.architecture(), config, format)?;
    load_planned(kernels, config, format, &plan)?;
    match format {
        Format::F16 => ExpertsKernels::<f16>::load_packed(kernels, config, format, &plan).map(drop),
        _ => ExpertsKernels::<bf16>::load_packed(kernels, config, format, &plan).map(drop),
    }?;
    Route::<f32>::load(kernels, router)?;
    let MoeShape { top_k, num_experts, .. } = *config.shape();
    for rule in [ReplicaRule::TokenHash, ReplicaRule::Salted(ReplicaSalt::of_rank(0, 1))] {
        // The number of slots decides little: a few more than experts take the same kernels.
        MapAndRecord::load(kernels, top_k, num_experts, rule)?;
    }
    Pack::<f32>::load(kernels)?;
    Ok(())
}

/// Asks for the kernels of the experts of a layer alone.
///
/// # Errors
/// As [`load`].
pub fn load_experts(
    kernels: &mut Kernels,
    config: &MoeConfig,
    format: Format,
) -> Result<(), MoeError> {
    let plan = plan(kernels.architecture(), config, format)?;
    load_planned(kernels, config, format, &plan)
}

/// Asks for the kernels of the experts that a plan names.
fn load_planned(
    kernels: &mut Kernels,
    config: &MoeConfig,
    format: Format,
    plan: &GpuPlan,
) -> Result<(), MoeError> {
    match format {
        Format::F16 => ExpertsKernels::<f16>::load(kernels, config, format, plan).map(drop),
        _ => ExpertsKernels::<bf16>::load(kernels, config, format, plan).map(drop),
    }
}

/// What the kernels of each family, and all others, are made of: their names in tuning records with
/// the hashes of their sources.
pub fn sources(specs: &[KernelSpec]) -> BTreeMap<String, String> {
    let mut hashes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for spec in specs {
        let name = match spec.operation().strip_prefix("grouped_gemm/") {
            Some(product) if product.starts_with("prefill") => GemmFamily::Prefill.name(),
            Some("warpgroup_fp8_long") => GemmFamily::Long.name(),
            Some(product) if product.starts_with("warpgroup") => GemmFamily::Warpgroup.name(),
            Some(product) if product.starts_with("streamed") => GemmFamily::Streamed.name(),
            Some(_) => GemmFamily::Decode.name(),
            None => STEPS,
        };
        let hash = spec.source_hash();
        let digits = hash.get(..HASH_DIGITS).unwrap_or(&hash);
        hashes.entry(name).or_default().insert(digits.to_owned());
    }
    let joined = |hashes: BTreeSet<String>| hashes.into_iter().collect::<Vec<_>>().join("+");
    hashes.into_iter().map(|(name, hashes)| (name.to_owned(), joined(hashes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::config::MoeShape;
    use crate::plan::gpu::Way;
    use crate::plan::gpu::record::RecordOrigin;

    /// A record is not thrown away because a plan for few tokens names few of its kernels, and packs
    /// for large batches hold what plans for small ones launch.
    #[test]
    fn a_plan_of_fewer_tokens_is_the_beginning_of_a_plan_of_more() {
        let shape =
            MoeShape { hidden_size: 2048, intermediate_size: 768, num_experts: 128, top_k: 8 };
        let config = MoeConfig::new(shape, Activation::Silu).expect("a legal layer");
        let (architecture, format) = (Architecture::Sm90, Format::Bf16);
        let modelled = GpuPlan::new(ceilings(architecture), &config, format, None, 8192)
            .expect("a format with kernels");
        let mut listed = Kernels::list(architecture);
        load_planned(&mut listed, &config, format, &modelled).expect("listing needs no GPU");
        let origin = RecordOrigin {
            architecture: architecture.to_string(),
            device: "a fake".to_owned(),
            compiler: "none".to_owned(),
            date: "2026-01-01".to_owned(),
        };
        let sources = sources(listed.specs());
        let mut record = TuningRecord::new(origin, &ExpertsShape::of(&config, format), sources);
        for tokens in (0..14).map(|power| 1 << power) {
            let entry = modelled.entry(tokens);
            let way = Way { path: entry.path, kernels: entry.kernels };
            record.note(&way, tokens, Some(tokens as f64));
        }
        let plan = |tokens| {
            plan_by(architecture, &config, format, tokens, record.clone()).expect("a plan")
        };
        let whole = plan(8192);
        for tokens in [1, 8, 256] {
            let small = plan(tokens);
            assert!(small.is_tuned(), "{small}");
            let (own, of_whole) = (small.entry(tokens), whole.entry(tokens));
            assert_eq!((own.path, own.kernels), (of_whole.path, of_whole.kernels));
        }
    }
}
