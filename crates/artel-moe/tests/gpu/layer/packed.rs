//! Packed ids and weights give the bits of plain ones.

use artel_device::cuda::{Graph, Kernels};
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::cuda::shipped;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::layer::cuda::{CudaExperts, DeviceRouting, ExpertsKernels};
use artel_moe::packing::cuda::Pack;
use artel_moe::plan::gpu::GpuPlan;
use artel_moe::quant::{
    Bf16, F16, Format, Fp8Block128, Fp8Channel, Int4W4A16, Mxfp4, Mxfp8, NumberFormat,
};

use super::{SMALL, TOKENS_PER_STEP, config, experts, hidden_states, ids};
use crate::cuda::replay;
use crate::decode::layer::{Layer, TestFormat};

pub fn cases() -> Vec<Case> {
    vec![
        of_format::<Bf16>(),
        of_format::<F16>(),
        of_format::<Fp8Block128>(),
        of_format::<Fp8Channel>(),
        of_format::<Int4W4A16>(),
        of_format::<Mxfp4>(),
        of_format::<Mxfp8>(),
    ]
}

/// One plan, with kernels for plain and for packed pairs.
#[derive(Clone)]
struct Loaded<F: NumberFormat<Activation: HalfElement>> {
    plan: GpuPlan,
    plain: ExpertsKernels<F::Activation>,
    packed: ExpertsKernels<F::Activation>,
    pack: Pack<f32>,
}

fn load<F>(kernels: &mut Kernels) -> Result<Loaded<F>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let (config, format): (_, Format) = (config(SMALL), F::NAME.parse()?);
    let architecture = kernels.architecture();
    let plan = shipped::plan_in_steps(architecture, &config, format, TOKENS_PER_STEP)?;
    let plain = ExpertsKernels::load(kernels, &config, format, &plan)?;
    let packed = ExpertsKernels::load_packed(kernels, &config, format, &plan)?;
    Ok(Loaded { plan, plain, packed, pack: Pack::load(kernels)? })
}

fn of_format<F>() -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    Case::new(format!("layer::{}_packed", F::NAME), load::<F>, |gpu, loaded: &Loaded<F>| {
        let layer = Layer::<F>::new(SMALL);
        let experts = |kernels| experts(gpu, config(SMALL), &loaded.plan, kernels, &layer);
        let (mut plain, mut packed) = (experts(&loaded.plain)?, experts(&loaded.packed)?);
        refuse_each_other(gpu, &mut plain, &mut packed)?;
        let mut compare = |ids: &[i32]| compare(gpu, &loaded.pack, [&mut plain, &mut packed], ids);
        // Both sides of every switch of the plan, and a batch that is cut into steps.
        for tokens in [1, 2, 3, 8, 17, 64, 65, 200, 257] {
            compare(&ids(SMALL, tokens))?;
        }
        let strange = [-1, SMALL.experts as i32, 0, i32::MAX, 1, i32::MIN, -1, 2];
        compare(&strange.repeat(SMALL.top_k))?;
        compare(&[-1; 3 * SMALL.top_k])
    })
}

/// Runs a batch both ways, the packed one behind the kernel that packs and in one graph with it.
fn compare<F>(
    gpu: &Gpu,
    pack: &Pack<f32>,
    [plain, packed]: [&mut CudaExperts<F>; 2],
    ids: &[i32],
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let tokens = ids.len() / SMALL.top_k;
    let hidden = gpu.upload(&hidden_states::<F::Activation>(tokens * SMALL.hidden));
    // Sixteenths are bfloat16 numbers, so that packing rounds nothing; some are negative.
    let weight = |pair: usize| (pair % 31) as f32 / 16.0 - 0.5;
    let weights: Vec<f32> = (0..ids.len()).map(weight).collect();
    let (ids, weights) = (gpu.upload(ids), gpu.upload(&weights));
    let mut expected = gpu.poisoned::<F::Activation>(tokens * SMALL.hidden);
    let routing = DeviceRouting::Pairs { ids: ids.slice(), weights: weights.slice() };
    plain.forward(&gpu.stream, hidden.slice(), routing, tokens, &mut expected.slice_mut())?;
    let expected = gpu.download(&expected);
    let mut words = gpu.poisoned::<i32>(ids.slice().len());
    let mut out = gpu.poisoned::<F::Activation>(tokens * SMALL.hidden);
    let graph = Graph::capture(&gpu.stream, |stream| {
        pack.launch(stream, ids.slice(), weights.slice(), &mut words.slice_mut())?;
        let routing = DeviceRouting::Packed(words.slice());
        packed.forward(stream, hidden.slice(), routing, tokens, &mut out.slice_mut())
    })?;
    replay(gpu, &graph)?;
    let bits = |numbers: &[F::Activation]| -> Vec<u8> { bytemuck::cast_slice(numbers).to_vec() };
    let way = packed.way(tokens);
    assert!(bits(&expected) == bits(&gpu.download(&out)), "{tokens} tokens, {way}: bits differ");
    Ok(())
}

/// Kernels that were loaded for one form do not take the other.
fn refuse_each_other<F>(
    gpu: &Gpu,
    plain: &mut CudaExperts<F>,
    packed: &mut CudaExperts<F>,
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let hidden = gpu.upload(&hidden_states::<F::Activation>(SMALL.hidden));
    let (numbers, weights) = (gpu.upload(&[0; SMALL.top_k]), gpu.upload(&[0.5; SMALL.top_k]));
    let mut out = gpu.poisoned::<F::Activation>(SMALL.hidden);
    let pairs = DeviceRouting::Pairs { ids: numbers.slice(), weights: weights.slice() };
    let words = DeviceRouting::Packed(numbers.slice());
    for (experts, routing) in [(plain, words), (packed, pairs)] {
        let refused =
            experts.forward(&gpu.stream, hidden.slice(), routing, 1, &mut out.slice_mut());
        let text = refused.expect_err("pairs of the other form").to_string();
        assert!(text.contains("ids of experts"), "{text}");
    }
    Ok(())
}
