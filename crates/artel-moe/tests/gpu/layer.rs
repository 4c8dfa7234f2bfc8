//! The experts of a layer as a whole: every way that a plan may choose, against float64.

mod packed;

use artel_device::cuda::{Architecture, DeviceBuffer, Graph, Kernels, compiled_kernels};
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, Parallelism, RouterWeight};
use artel_moe::cuda::shipped;
use artel_moe::eplb::{EpRank, ExpertMap, ExpertPlacement};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::grouped_gemm::prefill::warpgroup::words::{DEPTH, WordsTile};
use artel_moe::grouped_gemm::prefill::warpgroup::{self, BLOCK_ROWS};
use artel_moe::grouped_gemm::words::WordCode;
use artel_moe::layer::cuda::{CudaExperts, DeviceRouting, ExpertsKernels};
use artel_moe::plan::gpu::{GemmFamily, GpuPlan, Way, usual_way};
use artel_moe::quant::{
    Bf16, Element, F16, Format, Fp8Block128, Fp8Channel, Fp8Tensor, Int4W4A16, Int8W8A8, Int8W8A16,
    Mxfp4, Mxfp8, NumberFormat, Nvfp4,
};
use artel_moe::weights::cuda::DeviceExperts;
use artel_moe::weights::{ExpertMatrices, ExpertWeights};

use crate::cuda::replay;
use crate::decode::layer::{Layer, Sizes, TestFormat, config_of};

pub const SMALL: Sizes = Sizes { experts: 16, top_k: 4, hidden: 256, inner: 128 };
/// A shard whose gate and up begin inside a scale block.
const RAGGED: Sizes = Sizes { experts: 8, top_k: 2, hidden: 384, inner: 192 };
/// More than one step of input features in both products.
const DEEP: Sizes = Sizes { inner: 256, ..SMALL };
/// Steps are shorter than the largest batch that is tested.
const TOKENS_PER_STEP: usize = 256;
/// Tokens whose output is compared with float64.
const CHECKED: usize = 6;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![many_weights()];
    cases.extend(of_format::<Bf16>());
    cases.extend(of_format::<F16>());
    cases.extend(of_format::<Fp8Block128>());
    cases.extend(of_format::<Fp8Tensor>());
    cases.extend(of_format::<Fp8Channel>());
    cases.extend(of_format::<Int8W8A8>());
    cases.extend(of_format::<Int8W8A16>());
    cases.extend(of_format::<Int4W4A16>());
    cases.extend(of_format::<Mxfp4>());
    cases.extend(of_format::<Mxfp8>());
    cases.extend(of_format::<Nvfp4>());
    cases.extend([widened::<Int8W8A16>(SMALL), widened::<Int4W4A16>(SMALL)]);
    // INT4 has groups of 128 columns.
    cases.extend(tall::<Int4W4A16>(WordCode::Int4, [384, 640]));
    cases.extend(tall::<Mxfp4>(WordCode::Mxfp4, [192, 200]));
    cases.extend(tall::<Nvfp4>(WordCode::Nvfp4, [192, 200]));
    cases.extend(packed::cases());
    cases.extend([widened::<Mxfp4>(RAGGED), widened::<Nvfp4>(RAGGED), widened::<Mxfp8>(RAGGED)]);
    cases.extend([("deep", DEEP), ("ragged", RAGGED)].map(|(name, sizes)| {
        let ways = [1, 2].map(warpgroup::rows_max).map(|rows| {
            format!("aligned/16: warpgroup {rows}x64x128 w8 o1 + warpgroup {rows}x128x128 w8 o1")
        });
        let name = format!("layer::{}_warpgroup_{name}", Int8W8A8::NAME);
        many_rows::<Int8W8A8>(name, sizes, ways.to_vec())
    }));
    cases
}

fn of_format<F>() -> Vec<Case>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let name = F::NAME;
    vec![
        planned::<F>(format!("layer::{name}_every_batch_size"), SMALL),
        planned::<F>(format!("layer::{name}_a_shard_inside_blocks"), RAGGED),
        Case::new(format!("layer::{name}_both_forms_agree"), both_forms::<F>, |gpu, loaded| {
            let layer = Layer::<F>::new(SMALL);
            let ids = ids(SMALL, 8);
            for (plan, kernels) in loaded {
                let config = config(SMALL);
                let mut experts = experts(gpu, config, plan, kernels, &layer)?;
                compare(gpu, &mut experts, &layer, &ids)?;
            }
            Ok(())
        }),
        Case::new(format!("layer::{name}_spread_over_ranks"), ranks::<F>, |gpu, loaded| {
            let layer = Layer::<F>::new(SMALL);
            for tokens in [1, 40, 200] {
                spread(gpu, loaded, &layer, &ids(SMALL, tokens))?;
            }
            Ok(())
        }),
    ]
}

/// Weights that are widened to bfloat16, in blocks of 64 and of 128 rows.
fn widened<F>(sizes: Sizes) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let ways = [(64, "64x128 w4 o2"), (128, "128x128 w8 o1")].map(|(rows, tile)| {
        let tile = format!("prefill {rows}x{tile}");
        format!("aligned/{rows}: {tile} + {tile}")
    });
    many_rows::<F>(format!("layer::{}_widened", F::NAME), sizes, ways.to_vec())
}

/// Four bits that are widened in registers, in all tiles: whole steps of weights and of columns, and neither.
fn tall<F>(code: WordCode, [ragged, odd]: [usize; 2]) -> [Case; 3]
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let ragged = Sizes { inner: ragged, ..RAGGED };
    let odd = Sizes { experts: 6, top_k: 3, hidden: 1032, inner: odd };
    [("small", SMALL), ("ragged", ragged), ("odd", odd)].map(|(name, sizes)| {
        let ways = warpgroup::words::tiles(code).map(|WordsTile { rows, weights }| {
            let kernel = |parts| {
                format!("warpgroup {rows}x{}x{DEPTH} w{} o1", weights / parts, weights / 16)
            };
            format!("aligned/{BLOCK_ROWS}: {} + {}", kernel(2), kernel(1))
        });
        many_rows::<F>(format!("layer::{}_warpgroup_{name}", F::NAME), sizes, ways.to_vec())
    })
}

/// Ways for many rows an expert.
fn many_rows<F>(name: String, sizes: Sizes, ways: Vec<String>) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let load = move |kernels: &mut Kernels| {
        let loaded = |way: &String| {
            let way: Way = way.parse()?;
            if way.kernels.first.family == GemmFamily::Warpgroup
                && kernels.architecture() != Architecture::Sm90
            {
                return Ok(None);
            }
            let (config, format) = (config(sizes), F::NAME.parse()?);
            let architecture = kernels.architecture();
            let plan = shipped::plan_in_steps(architecture, &config, format, TOKENS_PER_STEP)?;
            let plan = plan.with_way(way);
            let loaded = ExpertsKernels::load(kernels, &config, format, &plan)?;
            Ok(Some((plan, loaded)))
        };
        ways.iter().map(loaded).collect::<Result<Vec<Option<Loaded<F>>>, MoeError>>()
    };
    Case::new(name, load, move |gpu, loaded: &Vec<Option<Loaded<F>>>| {
        let layer = Layer::<F>::new(sizes);
        for (plan, kernels) in loaded.iter().flatten() {
            let mut experts = experts(gpu, config(sizes), plan, kernels, &layer)?;
            for tokens in [0, 1, 7, 64, 200, 256, 600] {
                compare(gpu, &mut experts, &layer, &ids(sizes, tokens))?;
            }
            // One expert has all pairs.
            let last = sizes.experts as i32 - 1;
            for pairs in [64, 144, 260, 288, 292, 520] {
                compare(gpu, &mut experts, &layer, &vec![last; pairs])?;
            }
            let strange = [-1, sizes.experts as i32, 0, i32::MAX, 1, i32::MIN, -1, 2];
            compare(gpu, &mut experts, &layer, &strange.repeat(sizes.top_k))?;
            compare(gpu, &mut experts, &layer, &vec![-1; 3 * sizes.top_k])?;
        }
        Ok(())
    })
}

pub type Loaded<F> = (GpuPlan, ExpertsKernels<<F as NumberFormat>::Activation>);

fn planned<F>(name: String, sizes: Sizes) -> Case
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let load = move |kernels: &mut Kernels| load::<F>(kernels, &config(sizes), None);
    Case::new(name, load, move |gpu, (plan, kernels): &Loaded<F>| {
        let layer = Layer::<F>::new(sizes);
        let mut experts = experts(gpu, config(sizes), plan, kernels, &layer)?;
        let compiled = compiled_kernels();
        for tokens in [0, 1, 2, 3, 5, 8, 16, 64, 65, 200, 256, 257, 600] {
            compare(gpu, &mut experts, &layer, &ids(sizes, tokens))?;
        }
        let last = sizes.experts as i32 - 1;
        compare(gpu, &mut experts, &layer, &vec![last; 30 * sizes.top_k])?;
        let strange = [-1, sizes.experts as i32, 0, i32::MAX, 1, i32::MIN, -1, 2];
        compare(gpu, &mut experts, &layer, &strange.repeat(sizes.top_k))?;
        compare(gpu, &mut experts, &layer, &vec![-1; 3 * sizes.top_k])?;
        assert_eq!(compiled_kernels(), compiled, "nothing is compiled once the plan is made");
        Ok(())
    })
}

fn config(sizes: Sizes) -> MoeConfig {
    config_of(sizes, Activation::Silu)
}

/// The plan, or one form of assignment for 8 tokens, with its kernels.
pub fn load<F>(
    kernels: &mut Kernels,
    config: &MoeConfig,
    form: Option<bool>,
) -> Result<Loaded<F>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let format: Format = F::NAME.parse()?;
    let plan = shipped::plan_in_steps(kernels.architecture(), config, format, TOKENS_PER_STEP)?;
    let plan = match form {
        None => plan,
        Some(is_direct) => plan.with_way(usual_way(config, format, is_direct, 8)?),
    };
    let loaded = ExpertsKernels::load(kernels, config, format, &plan)?;
    Ok((plan, loaded))
}

fn both_forms<F>(kernels: &mut Kernels) -> Result<Vec<Loaded<F>>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    [true, false].map(|form| load::<F>(kernels, &config(SMALL), Some(form))).into_iter().collect()
}

fn ranks<F>(kernels: &mut Kernels) -> Result<Vec<(MoeConfig, Loaded<F>)>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    two_ranks::<F>(kernels, &config(SMALL))
}

/// The kernels of each half of the experts of a small layer.
pub fn two_ranks<F>(
    kernels: &mut Kernels,
    config: &MoeConfig,
) -> Result<Vec<(MoeConfig, Loaded<F>)>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let mut rank = |rank| {
        let map = ExpertMap::new(SMALL.experts, ExpertPlacement::Linear, EpRank::new(rank, 2)?)?;
        let config = config.clone().with_parallelism(Parallelism::Expert(map))?;
        let loaded = load::<F>(kernels, &config, None)?;
        Ok((config, loaded))
    };
    (0..2).map(&mut rank).collect()
}

pub fn experts<F>(
    gpu: &Gpu,
    config: MoeConfig,
    plan: &GpuPlan,
    kernels: &ExpertsKernels<F::Activation>,
    layer: &Layer<F>,
) -> Result<CudaExperts<F>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let weights = ExpertWeights::new(layer.w13.clone(), layer.w2.clone())?;
    let weights = DeviceExperts::upload(gpu.stream.context(), &config, &weights)?;
    CudaExperts::new(gpu.stream.context(), config, plan.clone(), kernels.clone(), weights)
}

/// Experts of some tokens: mostly different ones, with a repetition now and then.
pub fn ids(sizes: Sizes, tokens: usize) -> Vec<i32> {
    let id = |pair: usize| {
        let (token, slot) = (pair / sizes.top_k, pair % sizes.top_k);
        ((token * 7 + slot * (1 + token % 3)) % sizes.experts) as i32
    };
    (0..tokens * sizes.top_k).map(id).collect()
}

fn hidden_states<A: Element>(count: usize) -> Vec<A> {
    (0..count).map(|index| A::from_f32((index as f32 * 0.7310).sin())).collect()
}

fn pair_weights(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|pair| 0.05 + 0.01 * (pair % 31) as f32).collect()
}

/// Output of one batch, run twice: launched, and replayed from a graph.
fn run<F>(gpu: &Gpu, experts: &mut CudaExperts<F>, ids: &[i32]) -> Result<Vec<f32>, MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let MoeShape { hidden_size, top_k, .. } = *experts.config().shape();
    let tokens = ids.len() / top_k;
    let hidden = gpu.upload(&hidden_states::<F::Activation>(tokens * hidden_size));
    let (ids, weights) = (gpu.upload(ids), gpu.upload(&pair_weights(ids.len())));
    let mut launch = |stream: &_, out: &mut DeviceBuffer<F::Activation>| {
        let routing = DeviceRouting::Pairs { ids: ids.slice(), weights: weights.slice() };
        experts.forward(stream, hidden.slice(), routing, tokens, &mut out.slice_mut())
    };
    let mut out = gpu.poisoned(tokens * hidden_size);
    launch(&gpu.stream, &mut out)?;
    let first = gpu.download(&out);
    if tokens > 0 {
        let mut again = gpu.poisoned(tokens * hidden_size);
        let graph = Graph::capture(&gpu.stream, |stream| launch(stream, &mut again))?;
        replay(gpu, &graph)?;
        let bits =
            |numbers: &[F::Activation]| -> Vec<u8> { bytemuck::cast_slice(numbers).to_vec() };
        assert!(bits(&first) == bits(&gpu.download(&again)), "{tokens} tokens: two runs differ");
    }
    Ok(first.iter().map(|number| number.to_f32()).collect())
}

/// The same in float64, for the tokens that are checked.
fn expected<F: TestFormat>(layer: &Layer<F>, ids: &[i32]) -> Vec<(usize, Vec<f64>)> {
    let Sizes { experts, top_k, hidden, .. } = layer.sizes;
    let tokens = ids.len() / top_k;
    let x: Vec<f32> =
        hidden_states::<F::Activation>(tokens * hidden).iter().map(|x| x.to_f32()).collect();
    let on_input = layer.router_weight == RouterWeight::OnInput;
    let weights = pair_weights(ids.len());
    let step = tokens.div_ceil(CHECKED).max(1);
    let of_token = |token: usize| {
        let mut sum = vec![0.0; hidden];
        for pair in token * top_k..(token + 1) * top_k {
            let Ok(expert) = usize::try_from(ids[pair]) else { continue };
            if expert < experts {
                let [before, behind] =
                    if on_input { [weights[pair], 1.0] } else { [1.0, weights[pair]] };
                let x = x[token * hidden..(token + 1) * hidden].iter();
                let x: Vec<f32> = x.map(|x| F::Activation::from_f32(before * x).to_f32()).collect();
                let row = layer.row(&x, expert);
                let weight = f64::from(behind);
                sum.iter_mut().zip(row).for_each(|(sum, row)| *sum += weight * row);
            }
        }
        (token, sum)
    };
    (0..tokens).step_by(step).map(of_token).collect()
}

fn assert_close<F: TestFormat>(out: &[f32], expected: &[(usize, Vec<f64>)], what: &str) {
    let (mut error, mut norm) = (0.0, 0.0);
    for (token, expected) in expected {
        let out = &out[token * expected.len()..(token + 1) * expected.len()];
        for (&out, expected) in out.iter().zip(expected) {
            error += (f64::from(out) - expected).powi(2);
            norm += expected.powi(2);
        }
    }
    let limit = F::LIMIT.powi(2) * norm;
    assert!(error <= limit, "{what}: relative error {:.1e}", (error / norm).sqrt());
}

pub fn compare<F>(
    gpu: &Gpu,
    experts: &mut CudaExperts<F>,
    layer: &Layer<F>,
    ids: &[i32],
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let out = run(gpu, experts, ids)?;
    let tokens = ids.len() / layer.sizes.top_k;
    let what = format!("{tokens} tokens, {}", experts.way(tokens));
    assert_close::<F>(&out, &expected(layer, ids), &what);
    Ok(())
}

/// The sum of what two ranks compute.
pub fn spread<F>(
    gpu: &Gpu,
    loaded: &[(MoeConfig, Loaded<F>)],
    layer: &Layer<F>,
    ids: &[i32],
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let mut sum = vec![0.0; ids.len() / SMALL.top_k * SMALL.hidden];
    let half = SMALL.experts / 2;
    for (rank, (config, (plan, kernels))) in loaded.iter().enumerate() {
        let own = |all: &ExpertMatrices<F>| {
            let own = rank * half..(rank + 1) * half;
            let matrices = own.clone().map(|expert| all.matrix(expert).clone()).collect();
            let matrices = ExpertMatrices::<F>::new(matrices)?;
            let biases: Vec<f32> =
                own.filter_map(|expert| all.bias(expert)).flatten().copied().collect();
            if biases.is_empty() { Ok(matrices) } else { matrices.with_biases(biases) }
        };
        let weights = ExpertWeights::new(own(&layer.w13)?, own(&layer.w2)?)?;
        let context = gpu.stream.context();
        let weights = DeviceExperts::upload(context, config, &weights)?;
        let (config, plan) = (config.clone(), plan.clone());
        let mut experts = CudaExperts::<F>::new(context, config, plan, kernels.clone(), weights)?;
        let part = run(gpu, &mut experts, ids)?;
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    assert_close::<F>(&sum, &expected(layer, ids), "the sum over ranks");
    Ok(())
}

/// Weights beyond 2^31 numbers: w13 of the whole MiniMax-M2.5 has 2.4e9. All experts but the last
/// two share the host's memory.
fn many_weights() -> Case {
    let sizes = Sizes { experts: 256, top_k: 8, hidden: 3072, inner: 1536 };
    let load = move |kernels: &mut Kernels| load::<Fp8Block128>(kernels, &config(sizes), None);
    Case::new("layer::more_than_2_to_the_31_weights", load, move |gpu, (plan, kernels)| {
        let few = Layer::<Fp8Block128>::new(Sizes { experts: 2, ..sizes });
        let repeated = |few: &ExpertMatrices<Fp8Block128>| {
            let of = |expert| few.matrix(usize::from(expert >= sizes.experts - 2)).clone();
            ExpertMatrices::<Fp8Block128>::new((0..sizes.experts).map(of).collect())
        };
        let (w13, w2) = (repeated(&few.w13)?, repeated(&few.w2)?);
        let layer = Layer { sizes, w13, w2, ..few };
        let mut experts = experts(gpu, config(sizes), plan, kernels, &layer)?;
        for tokens in [1, 2, 40] {
            // The first and the last experts, whose weights lie on both sides.
            let ids = (0..tokens * sizes.top_k).map(|pair| match pair % 2 {
                0 => (sizes.experts - 1 - pair % 3) as i32,
                _ => (pair % 5) as i32,
            });
            compare(gpu, &mut experts, &layer, &ids.collect::<Vec<_>>())?;
        }
        Ok(())
    })
}
