//! Both products in one launch, for Hopper alone.

use artel_device::cuda::{Architecture, Graph, Kernels};
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::activation::Activation;
use artel_moe::assignment::cuda::IdForm;
use artel_moe::config::MoeConfig;
use artel_moe::grouped_gemm::decode::cuda::DirectStep;
use artel_moe::grouped_gemm::decode::streamed::cuda::{StreamedExperts, StreamedWorkspace};
use artel_moe::grouped_gemm::decode::streamed::{StreamedShape, TOKENS_MAX};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::packing::cuda::DeviceRouting;
use artel_moe::packing::reference::pack;
use artel_moe::packing::unpack;
use artel_moe::plan::gpu::ExpertsShape;
use artel_moe::quant::{
    Element, Fp8Block128, Fp8Channel, Fp8Tensor, Int4W4A16, Int8W8A8, Int8W8A16, Mxfp4, Mxfp8,
    NumberFormat, Nvfp4,
};

use super::experts::{OnDevice, id_patterns};
use super::layer::{Layer, Sizes, TestFormat, check_close, config_of, hidden_states, shape_of};
use crate::cuda::replay;

/// Sums of codes are exact, so what is left is the rounding of rows and of the result.
const LIMIT: f64 = 5e-3;
/// All warps of the second product have the same input features.
const SMALL: Sizes = Sizes { experts: 16, top_k: 4, hidden: 256, inner: 128 };
/// All warps of the first product have the same weight rows; three groups in the second.
const WIDE: Sizes = Sizes { experts: 12, top_k: 3, hidden: 1024, inner: 384 };
const MINIMAX: Sizes = Sizes { experts: 12, top_k: 8, hidden: 3072, inner: 768 };
/// Words have columns that the matrices have not; groups of 64 and 128.
const RAGGED: Sizes = Sizes { experts: 8, top_k: 2, hidden: 384, inner: 192 };

pub fn cases() -> Vec<Case> {
    // Other architectures have no such kernel.
    let mut cases = of_format::<Fp8Block128>();
    cases.extend(of_format::<Fp8Tensor>());
    cases.extend(of_format::<Fp8Channel>());
    cases.extend(of_format::<Mxfp4>());
    cases.extend(of_format::<Mxfp8>());
    cases.extend(of_format::<Nvfp4>());
    cases.extend(of_format::<Int4W4A16>());
    cases.extend(of_format::<Int8W8A16>());
    cases.extend(of_format::<Int8W8A8>());
    cases
}

/// The experts as their kernel takes them.
fn streamed_shape<F: TestFormat>(config: &MoeConfig, sizes: Sizes) -> StreamedShape {
    let format = F::NAME.parse().expect("a format has a name");
    let of_words = ExpertsShape::of(config, format).word_shape();
    of_words.map_or_else(|| shape_of::<F>(sizes).into(), StreamedShape::from)
}

fn of_format<F>() -> Vec<Case>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let all: [(&str, Sizes, &[usize]); 4] = [
        ("small", SMALL, &[0, 1, 2, 3, 5, TOKENS_MAX]),
        ("wide", WIDE, &[1, 7]),
        ("minimax", MINIMAX, &[1, 2]),
        ("ragged", RAGGED, &[1, 8]),
    ];
    let mut cases = Vec::new();
    // FP8 has whole blocks.
    let is_served =
        |sizes| streamed_shape::<F>(&config_of(sizes, Activation::Silu), sizes).is_served();
    for (name, sizes, batches) in all.into_iter().filter(|(_, sizes, _)| is_served(*sizes)) {
        let shape = streamed_shape::<F>(&config_of(sizes, Activation::Silu), sizes);
        let rows = shape.cuts().into_iter().map(|[[rows, _], _]| rows);
        for (rows, ids) in rows.flat_map(|rows| [(rows, IdForm::Plain), (rows, IdForm::Packed)]) {
            let load = move |kernels: &mut Kernels| {
                if kernels.architecture() != Architecture::Sm90 {
                    return Ok(None);
                }
                StreamedExperts::<F::Activation>::load(kernels, shape, rows, ids).map(Some)
            };
            let name = format!("decode::streamed_{}_{name}_{rows}_{ids:?}", F::NAME);
            cases.push(Case::new(name, load, move |gpu, experts| {
                let Some(experts) = experts else { return Ok(()) };
                let layer = Layer::<F>::new(sizes);
                let on_device = OnDevice::new(gpu, &layer);
                for &tokens in batches {
                    let none = vec![-1; tokens * sizes.top_k];
                    for pattern in id_patterns(sizes, tokens).into_iter().chain([none]) {
                        check(gpu, experts, (&layer, &on_device), ids, &pattern)?;
                    }
                }
                refused(gpu, experts, (&layer, &on_device))
            }));
        }
    }
    cases
}

/// Launched twice and replayed from a graph: the same bits, near float64.
fn check<F>(
    gpu: &Gpu,
    experts: &StreamedExperts<F::Activation>,
    (layer, on_device): (&Layer<F>, &OnDevice),
    form: IdForm,
    ids: &[i32],
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let Sizes { top_k, hidden, .. } = layer.sizes;
    let tokens = ids.len() / top_k;
    let x = hidden_states::<F>(tokens, hidden);
    let mut weights: Vec<f32> = (0..ids.len()).map(|pair| 0.1 + pair as f32 * 0.01).collect();
    let mut given = ids.to_vec();
    if form == IdForm::Packed {
        pack(ids, &weights, &mut given).expect("ids fit 16 bits");
        unpack(&given, &mut ids.to_vec(), &mut weights).expect("as many pairs");
    }
    let (x_device, given, weights_device) =
        (gpu.upload(&x), gpu.upload(&given), gpu.upload(&weights));
    let shape = streamed_shape::<F>(&layer.config(), layer.sizes);
    let mut workspace = StreamedWorkspace::new(gpu.stream.context(), shape, tokens.max(1))?;
    let step = DirectStep {
        hidden_states: x_device.slice(),
        routing: match form {
            IdForm::Plain => {
                DeviceRouting::Pairs { ids: given.slice(), weights: weights_device.slice() }
            }
            IdForm::Packed => DeviceRouting::Packed(given.slice()),
        },
        tokens,
        experts: on_device.slices(),
    };
    let mut launch = |stream: &_, out: &mut artel_device::cuda::DeviceBuffer<F::Activation>| {
        experts.launch(stream, &step, &mut workspace, &mut out.slice_mut())
    };
    let mut out = gpu.poisoned(tokens * hidden);
    launch(&gpu.stream, &mut out)?;
    let out = gpu.download(&out);
    if tokens > 0 {
        let mut again = gpu.poisoned(tokens * hidden);
        let graph = Graph::capture(&gpu.stream, |stream| launch(stream, &mut again))?;
        replay(gpu, &graph)?;
        replay(gpu, &graph)?;
        let again = gpu.download(&again);
        let bits = [&out, &again].map(|numbers| bytemuck::cast_slice::<_, u16>(numbers));
        assert!(bits[0] == bits[1], "two runs differ");
    }
    let mut expected = vec![0.0; tokens * hidden];
    for (pair, &id) in ids.iter().enumerate() {
        if (0..layer.sizes.experts as i32).contains(&id) {
            let own = pair / top_k * hidden..(pair / top_k + 1) * hidden;
            let x: Vec<f32> = x[own.clone()].iter().map(|x| x.to_f32()).collect();
            let row = layer.row(&x, id as usize);
            let weight = f64::from(weights[pair]);
            expected[own].iter_mut().zip(row).for_each(|(sum, row)| *sum += weight * row);
        }
    }
    check_close(&out, &expected, LIMIT, &format!("{} {tokens} tokens {ids:?}", F::NAME));
    Ok(())
}

/// One token more than there is room for.
fn refused<F>(
    gpu: &Gpu,
    experts: &StreamedExperts<F::Activation>,
    (layer, on_device): (&Layer<F>, &OnDevice),
) -> Result<(), MoeError>
where
    F: TestFormat + NumberFormat<Activation: HalfElement>,
{
    let Sizes { top_k, hidden, .. } = layer.sizes;
    for (room, tokens) in [(1, 2), (TOKENS_MAX + 1, TOKENS_MAX + 1)] {
        let shape = streamed_shape::<F>(&layer.config(), layer.sizes);
        let mut workspace = StreamedWorkspace::new(gpu.stream.context(), shape, room)?;
        let x = gpu.upload(&hidden_states::<F>(tokens, hidden));
        let ids = gpu.upload(&vec![0i32; tokens * top_k]);
        let weights = gpu.upload(&vec![0f32; tokens * top_k]);
        let routing = DeviceRouting::Pairs { ids: ids.slice(), weights: weights.slice() };
        let step =
            DirectStep { hidden_states: x.slice(), routing, tokens, experts: on_device.slices() };
        let mut out = gpu.poisoned(tokens * hidden);
        let error = experts.launch(&gpu.stream, &step, &mut workspace, &mut out.slice_mut());
        let error = error.expect_err("there is no room").to_string();
        assert!(error.contains("tokens of a streamed step"), "{error}");
    }
    Ok(())
}
