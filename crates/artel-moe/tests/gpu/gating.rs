//! The experts of layers that are not SiLU without biases, in every way that serves them, against
//! float64.

use artel_device::cuda::Kernels;
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::activation::{Activation, GateLayout, Gating};
use artel_moe::config::RouterWeight;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::layer::cuda::ExpertsKernels;
use artel_moe::plan::gpu::Way;
use artel_moe::quant::{
    Bf16, F16, Fp8Block128, Fp8Channel, Int4W4A16, Int8W8A8, Mxfp4, Mxfp8, NumberFormat, Nvfp4,
};

use crate::decode::layer::{Layer, Sizes, TestFormat};
use crate::layer::{Loaded, SMALL, compare, experts, ids, load, spread, two_ranks};

/// Sizes that no tile divides.
const ODD: Sizes = Sizes { experts: 6, top_k: 4, hidden: 352, inner: 208 };
/// One expert a token.
const ONE: Sizes = Sizes { experts: 8, top_k: 1, hidden: 256, inner: 128 };

/// A limit that some gates and ups are beyond.
const fn clamped(layout: GateLayout) -> Activation {
    Activation::SwigluOai { alpha: 1.702, limit: 0.7, layout }
}

const IN_TURNS: Gating = Gating { activation: clamped(GateLayout::Interleaved), biases: true };
const IN_HALVES: Gating = Gating { activation: clamped(GateLayout::Halves), biases: true };
const SILU_WITH_BIASES: Gating = Gating { biases: true, ..Gating::SILU };

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        every_batch_size::<Bf16>(ODD, IN_TURNS),
        every_batch_size::<Mxfp4>(ODD, IN_TURNS),
        every_batch_size::<Mxfp8>(ODD, IN_TURNS),
        every_batch_size::<Int4W4A16>(SMALL, IN_TURNS),
        every_batch_size::<Fp8Block128>(SMALL, IN_HALVES),
        every_batch_size::<Fp8Channel>(SMALL, IN_TURNS),
        both_forms::<F16>(IN_TURNS),
        both_forms::<Nvfp4>(IN_TURNS),
        both_forms::<Mxfp8>(IN_HALVES),
        both_forms::<Int8W8A8>(IN_HALVES),
        both_forms::<Bf16>(SILU_WITH_BIASES),
        both_forms::<Fp8Block128>(SILU_WITH_BIASES),
        over_ranks::<Bf16>(),
        over_ranks::<Mxfp4>(),
    ];
    cases.extend(ways_of_plain_numbers());
    cases.extend(
        ["aligned/64: prefill 64x64x128 w4 o2 + prefill 64x128x128 w4 o2"]
            .map(|text| way::<Fp8Block128>(SMALL, IN_HALVES, text)),
    );
    cases.extend(
        ["aligned/64: prefill 64x128x128 w4 o2 + prefill 64x128x128 w4 o2"]
            .map(|text| way::<Mxfp4>(ODD, IN_TURNS, text)),
    );
    let others = [
        Activation::SiluClamp { limit: 0.5 },
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::SwigluStep { limit: 0.3 },
        Activation::Situ { beta: 1.0, linear_beta: Some(0.8) },
        Activation::Relu2,
    ];
    for activation in others {
        cases.push(both_forms::<Bf16>(Gating { activation, biases: false }));
    }
    cases.push(both_forms::<Mxfp4>(Gating { activation: Activation::GeluTanh, biases: false }));
    cases.extend([on_input::<Bf16>(), on_input::<Fp8Block128>(), on_input::<Mxfp4>()]);
    cases
}

fn name<F: NumberFormat>(what: &str, gating: Gating) -> String {
    let biases = if gating.biases { "_with_biases" } else { "" };
    format!("gating::{}_{}{biases}_{what}", F::NAME, gating.activation)
}

fn every_batch_size<F>(sizes: Sizes, gating: Gating) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    planned(name::<F>("every_batch_size", gating), move || Layer::<F>::gated(sizes, gating))
}

/// The router's weight multiplies what goes in.
fn on_input<F>() -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let layer =
        || Layer::<F> { router_weight: RouterWeight::OnInput, ..Layer::gated(ONE, Gating::SILU) };
    planned(format!("gating::{}_weights_on_the_input", F::NAME), layer)
}

/// As the plan says.
fn planned<F>(name: String, layer: impl Fn() -> Layer<F> + Clone + Send + Sync + 'static) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let of_kernels = layer.clone();
    let load = move |kernels: &mut Kernels| load::<F>(kernels, &of_kernels().config(), None);
    Case::new(name, load, move |gpu, loaded: &Loaded<F>| {
        let sizes = [0, 1, 2, 3, 8, 16, 64, 65, 200, 256, 600];
        check(gpu, loaded, &layer(), &sizes)
    })
}

/// One way for all batches.
fn way<F>(sizes: Sizes, gating: Gating, text: &'static str) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let load = move |kernels: &mut Kernels| {
        let config = Layer::<F>::gated(sizes, gating).config();
        let (plan, _) = load::<F>(&mut Kernels::list(kernels.architecture()), &config, None)?;
        let plan = plan.with_way(text.parse::<Way>()?);
        let loaded = ExpertsKernels::load(kernels, &config, F::NAME.parse()?, &plan)?;
        Ok::<Loaded<F>, MoeError>((plan, loaded))
    };
    Case::new(name::<F>(text, gating), load, move |gpu, loaded: &Loaded<F>| {
        check(gpu, loaded, &Layer::<F>::gated(sizes, gating), &[0, 1, 7, 64, 200, 256])
    })
}

/// Ways of 16-bit numbers that a plan for small layers does not choose.
fn ways_of_plain_numbers() -> impl Iterator<Item = Case> {
    let ways = [
        "aligned/80: decode 80x128x64 w8 o1 + decode 80x128x64 w4 o2",
        "aligned/64: prefill 64x256x64 w4 o1 + prefill 64x256x64 w4 o1",
    ];
    ways.into_iter().map(|text| way::<Bf16>(ODD, IN_TURNS, text))
}

fn both_forms<F>(gating: Gating) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let both = move |kernels: &mut Kernels| {
        let config = Layer::<F>::gated(SMALL, gating).config();
        let forms = [true, false].map(|form| load::<F>(kernels, &config, Some(form)));
        forms.into_iter().collect::<Result<Vec<_>, _>>()
    };
    Case::new(name::<F>("both_forms", gating), both, move |gpu, loaded: &Vec<Loaded<F>>| {
        let layer = Layer::<F>::gated(SMALL, gating);
        loaded.iter().try_for_each(|loaded| check(gpu, loaded, &layer, &[1, 5, 8]))
    })
}

fn over_ranks<F>() -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let layer = || Layer::<F>::gated(SMALL, IN_TURNS);
    let load = move |kernels: &mut Kernels| two_ranks::<F>(kernels, &layer().config());
    Case::new(name::<F>("spread_over_ranks", IN_TURNS), load, move |gpu, loaded| {
        let layer = layer();
        [1, 40, 200]
            .into_iter()
            .try_for_each(|tokens| spread(gpu, loaded, &layer, &ids(SMALL, tokens)))
    })
}

/// Some batch sizes, all tokens with one expert, and ids of none.
fn check<F>(
    gpu: &Gpu,
    (plan, kernels): &Loaded<F>,
    layer: &Layer<F>,
    batches: &[usize],
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let Sizes { experts: count, top_k, .. } = layer.sizes;
    let mut experts = experts(gpu, layer.config(), plan, kernels, layer)?;
    for &tokens in batches {
        compare(gpu, &mut experts, layer, &ids(layer.sizes, tokens))?;
    }
    compare(gpu, &mut experts, layer, &vec![count as i32 - 1; 7 * top_k])?;
    let strange = [-1, count as i32, 0, i32::MAX, 1, i32::MIN, -1, 2];
    compare(gpu, &mut experts, layer, &strange.repeat(top_k))?;
    compare(gpu, &mut experts, layer, &vec![-1; 3 * top_k])
}
