//! Both products together, direct and aligned.

use artel_device::cuda::{DeviceBuffer, Kernels};
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::assignment::cuda::IdForm;
use artel_moe::assignment::{AlignOptions, Assignment, Workspace, cpu};
use artel_moe::grouped_gemm::decode::cuda::{
    AlignedExperts, AlignedStep, BlockSlices, CodedRows, DecodeWorkspace, DirectExperts,
    DirectForm, DirectOut, DirectStep, ExpertSlices, WeightSlices,
};
use artel_moe::grouped_gemm::decode::{DecodeShape, DecodeTile};
use artel_moe::packing::cuda::DeviceRouting;
use artel_moe::packing::reference::pack;
use artel_moe::packing::unpack;
use artel_moe::plan::gpu::{ExpertsShape, GpuProduct};
use artel_moe::quant::activations::{Granularity, reference as quantized};
use artel_moe::quant::{Bf16, Element, F16, Fp8Block128, Fp8Channel};
use artel_moe::weights::ExpertMatrices;
use artel_moe::weights::words::ExpertWords;

use super::layer::{Layer, Sizes, TestFormat, check_close, hidden_states, shape_of};

const WHOLE: Sizes = Sizes { experts: 8, top_k: 2, hidden: 256, inner: 128 };
/// Up begins inside a block of 128 rows; no tile fits the last columns.
const RAGGED: Sizes = Sizes { experts: 5, top_k: 3, hidden: 320, inner: 192 };
const MINIMAX: Sizes = Sizes { experts: 12, top_k: 8, hidden: 3072, inner: 768 };

pub fn cases() -> Vec<Case> {
    let mut cases = of_format::<Bf16>();
    cases.extend(of_format::<F16>());
    cases.extend(of_format::<Fp8Block128>());
    cases.extend(of_format::<Fp8Channel>());
    cases
}

fn of_format<F: TestFormat>() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, sizes, tokens) in
        [("whole", WHOLE, [1, 8]), ("ragged", RAGGED, [1, 7]), ("minimax", MINIMAX, [1, 3])]
    {
        for (form_name, ids, shared, sum) in [
            ("own", IdForm::Plain, false, true),
            ("shared", IdForm::Plain, true, false),
            ("packed", IdForm::Packed, true, true),
        ] {
            let form = DirectForm { ids, shared, sum };
            let load = move |kernels: &mut Kernels| {
                let tiles = DecodeTile::direct(&shape_of::<F>(sizes), tokens[1]);
                DirectExperts::<F::Activation>::load(kernels, shape_of::<F>(sizes), form, tiles)
            };
            let name = format!("decode::direct_{}_{name}_{form_name}", F::NAME);
            cases.push(Case::new(name, load, move |gpu, experts| {
                let layer = Layer::<F>::new(sizes);
                for tokens in [0, tokens[0], tokens[1]] {
                    for ids in id_patterns(sizes, tokens) {
                        check_direct(gpu, experts, &layer, form, &ids)?;
                    }
                }
                Ok(())
            }));
        }
        for tiles in aligned_tiles(&shape_of::<F>(sizes)) {
            let rows = tiles[0].rows;
            let load = move |kernels: &mut Kernels| {
                AlignedExperts::<F::Activation>::load(kernels, shape_of::<F>(sizes), tiles)
            };
            let name = format!("decode::aligned_{}_{name}_{rows}", F::NAME);
            cases.push(Case::new(name, load, move |gpu, experts| {
                let layer = Layer::<F>::new(sizes);
                // Enough for blocks of one expert; large layers take long in float64.
                for tokens in [0, tokens[0], tokens[1], if sizes.hidden < 1024 { 40 } else { 4 }] {
                    for ids in id_patterns(sizes, tokens) {
                        check_aligned(gpu, experts, &layer, &ids)?;
                    }
                }
                Ok(())
            }));
        }
    }
    cases
}

/// Few rows, and as many as a format has tiles for, one or two powers of two.
fn aligned_tiles(shape: &DecodeShape) -> Vec<[DecodeTile; 2]> {
    let few = DecodeTile::aligned(shape, 1);
    let few = [8, 16].map(|rows| few.map(|tile| DecodeTile { rows, ..tile }));
    let many = [64, 80].map(|rows| {
        let [firsts, seconds] = DecodeTile::candidates(shape, false, rows);
        firsts.first().zip(seconds.first()).map(|(&first, &second)| [first, second])
    });
    few.into_iter().chain(many.into_iter().flatten()).collect()
}

/// Ids of some tokens: spread, all on one expert (every token lists it again and again), and some that do not exist.
pub fn id_patterns(sizes: Sizes, tokens: usize) -> [Vec<i32>; 3] {
    let pairs = tokens * sizes.top_k;
    let spread = |pair: usize| (pair * 7 + pair / sizes.top_k) as i32 % sizes.experts as i32;
    let holes = |pair: usize| match pair % 5 {
        1 => -1,
        3 => sizes.experts as i32,
        _ => spread(pair),
    };
    [(0..pairs).map(spread).collect(), vec![2; pairs], (0..pairs).map(holes).collect()]
}

/// Weights of a layer on the device.
pub struct OnDevice {
    w13: (DeviceBuffer<u8>, DeviceBuffer<f32>),
    w2: (DeviceBuffer<u8>, DeviceBuffer<f32>),
    input_scales: [Option<f32>; 2],
}

impl OnDevice {
    pub fn new<F: TestFormat>(gpu: &Gpu, layer: &Layer<F>) -> Self {
        let upload =
            |(numbers, scales): (Vec<u8>, Vec<f32>)| (gpu.upload(&numbers), gpu.upload(&scales));
        let stack = |product, weights| {
            let words = Self::words(layer, product, weights);
            upload(words.unwrap_or_else(|| Layer::<F>::stack(weights)))
        };
        let input_scales = [layer.w13.input_scale(), layer.w2.input_scale()];
        let (w13, w2) = (GpuProduct::GateUp, GpuProduct::Down);
        Self { w13: stack(w13, &layer.w13), w2: stack(w2, &layer.w2), input_scales }
    }

    /// Words of all experts, their scales, and the scales of matrices, if the format has words.
    fn words<F: TestFormat>(
        layer: &Layer<F>,
        product: GpuProduct,
        weights: &ExpertMatrices<F>,
    ) -> Option<(Vec<u8>, Vec<f32>)> {
        let shape = ExpertsShape::of(&layer.config(), F::NAME.parse().expect("a format's name"));
        let layout = shape.stack_layout(product)?.word_layout()?;
        let mut words = ExpertWords::new(&layout);
        let (mut codes, mut scales, mut globals) = (Vec::new(), Vec::new(), Vec::new());
        for expert in 0..layer.sizes.experts {
            layout.write_words(weights.matrix(expert), &mut words).expect("words of a layer");
            codes.extend_from_slice(bytemuck::cast_slice(&words.codes));
            scales.extend(words.scales.iter().map(|&word| f32::from_bits(word)));
            globals.extend_from_slice(&words.globals);
        }
        scales.extend(globals);
        Some((codes, scales))
    }

    pub fn slices(&self) -> ExpertSlices<'_> {
        let [w13, w2] = self.input_scales;
        ExpertSlices {
            w13: WeightSlices { input_scale: w13, ..weight_slices(&self.w13.0, &self.w13.1) },
            w2: WeightSlices { input_scale: w2, ..weight_slices(&self.w2.0, &self.w2.1) },
        }
    }
}

/// Weights whose activations have no scale that is given.
pub fn weight_slices<'a>(
    numbers: &'a DeviceBuffer<u8>,
    scales: &'a DeviceBuffer<f32>,
) -> WeightSlices<'a> {
    WeightSlices {
        numbers: numbers.slice(),
        scales: scales.slice(),
        input_scale: None,
        biases: None,
    }
}

fn check_direct<F: TestFormat>(
    gpu: &Gpu,
    experts: &DirectExperts<F::Activation>,
    layer: &Layer<F>,
    form: DirectForm,
    ids: &[i32],
) -> Result<(), MoeError> {
    let Sizes { top_k, hidden, .. } = layer.sizes;
    let tokens = ids.len() / top_k;
    let x = hidden_states::<F>(tokens, hidden);
    let mut weights: Vec<f32> = (0..ids.len()).map(|pair| 0.1 + pair as f32 * 0.01).collect();
    let mut given = ids.to_vec();
    if form.ids == IdForm::Packed {
        pack(ids, &weights, &mut given).expect("ids fit 16 bits");
        unpack(&given, &mut ids.to_vec(), &mut weights).expect("as many pairs");
    }
    let (x_device, ids_device) = (gpu.upload(&x), gpu.upload(&given));
    let (weights_device, device) = (gpu.upload(&weights), OnDevice::new(gpu, layer));
    let shape = layer.shape();
    let context = gpu.stream.context();
    let mut workspace =
        DecodeWorkspace::new(context, &shape, tokens, experts.workspace_rows(tokens))?;
    let (ids_slice, weights_slice) = (ids_device.slice(), weights_device.slice());
    let step = DirectStep {
        hidden_states: x_device.slice(),
        routing: match form.ids {
            IdForm::Plain => DeviceRouting::Pairs { ids: ids_slice, weights: weights_slice },
            IdForm::Packed => DeviceRouting::Packed(ids_slice),
        },
        tokens,
        experts: device.slices(),
    };
    let mut run = || -> Result<[Vec<F::Activation>; 2], MoeError> {
        let mut rows = gpu.poisoned::<F::Activation>(ids.len() * hidden);
        let mut sums = gpu.poisoned::<F::Activation>(tokens * hidden);
        let mut out = match form.sum {
            false => DirectOut::Rows(rows.slice_mut()),
            true => DirectOut::Sum { rows: rows.slice_mut(), out: sums.slice_mut() },
        };
        experts.launch(&gpu.stream, &step, &mut workspace, &mut out)?;
        Ok([gpu.download(&rows), gpu.download(&sums)])
    };
    let [rows, sums] = run()?;
    // Bits: what nobody writes is poison, which as a number differs from itself.
    let again = run()?;
    for (name, first, second) in [("rows", &rows, &again[0]), ("sums", &sums, &again[1])] {
        let [first, second] =
            [first, second].map(|numbers| bytemuck::cast_slice::<_, u16>(numbers));
        let different = first.iter().zip(second).position(|(first, second)| first != second);
        assert_eq!(different, None, "two runs' {name} differ from here on, of {tokens} tokens");
    }
    check_pairs(layer, ids, &x, |pair| rows[pair * hidden..(pair + 1) * hidden].to_vec());
    if form.sum {
        let expected = summed(layer.sizes, ids, &weights, &rows);
        check_close(&sums, &expected, F::LIMIT.min(5e-3), "sums of the kernel's own rows");
    }
    Ok(())
}

/// Sums in float64 of the rows of pairs whose expert exists.
fn summed<A: Element>(sizes: Sizes, ids: &[i32], weights: &[f32], rows: &[A]) -> Vec<f64> {
    let tokens = ids.len() / sizes.top_k;
    let mut sums = vec![0.0; tokens * sizes.hidden];
    for (pair, &id) in ids.iter().enumerate() {
        if (0..sizes.experts as i32).contains(&id) {
            let sums = &mut sums[pair / sizes.top_k * sizes.hidden..][..sizes.hidden];
            let row = &rows[pair * sizes.hidden..][..sizes.hidden];
            for (sum, row) in sums.iter_mut().zip(row) {
                *sum += f64::from(weights[pair]) * f64::from(row.to_f32());
            }
        }
    }
    sums
}

fn check_aligned<F: TestFormat>(
    gpu: &Gpu,
    experts: &AlignedExperts<F::Activation>,
    layer: &Layer<F>,
    ids: &[i32],
) -> Result<(), MoeError> {
    let Sizes { top_k, hidden, experts: count, .. } = layer.sizes;
    let (tokens, block_size) = (ids.len() / top_k, experts.block_size());
    let x = hidden_states::<F>(tokens, hidden);
    let (mut scratch, mut assignment) = (Workspace::default(), Assignment::default());
    cpu::align(ids, &AlignOptions::new(count, block_size), &mut scratch, &mut assignment)?;
    let blocks = assignment.sorted_token_ids.len().div_ceil(block_size);
    let mut sorted = assignment.sorted_token_ids.clone();
    sorted.resize(blocks * block_size, assignment.num_pairs as i32);
    let sorted_device = gpu.upload(&sorted);
    let expert_ids = gpu.upload(&assignment.expert_ids);
    let padded = gpu.upload(&[assignment.num_tokens_post_padded as i32]);
    let (x_device, device) = (gpu.upload(&x), OnDevice::new(gpu, layer));
    let positions = blocks * block_size;
    let shape = layer.shape();
    let mut workspace = DecodeWorkspace::new(gpu.stream.context(), &shape, tokens, positions)?;
    let step = AlignedStep {
        hidden_states: x_device.slice(),
        codes: None,
        tokens,
        blocks: BlockSlices {
            sorted_token_ids: sorted_device.slice(),
            expert_ids: expert_ids.slice(),
            num_tokens_post_padded: padded.slice(),
            blocks,
        },
        experts: device.slices(),
    };
    let mut run = |codes| -> Result<Vec<F::Activation>, MoeError> {
        let mut out = gpu.poisoned::<F::Activation>(positions * hidden);
        let step = AlignedStep { codes, ..step };
        experts.launch(&gpu.stream, &step, &mut workspace, &mut out.slice_mut())?;
        Ok(gpu.download(&out))
    };
    let out = run(None)?;
    if experts.reads_codes() && step.experts.w13.input_scale.is_none() {
        let stride = tokens + 5;
        let (codes, scales) = coded(&x, [tokens, hidden], stride);
        let (codes, scales) = (gpu.upload(&codes), gpu.upload(&scales));
        let coded = CodedRows { codes: codes.slice(), scales: scales.slice(), stride };
        let same = run(Some(coded))?.iter().zip(&out).all(|(a, b)| bits(*a) == bits(*b));
        assert!(same, "codes that somebody else made");
    }
    check_pairs(layer, ids, &x, |pair| {
        let position = sorted.iter().position(|&entry| entry == pair as i32);
        let position = position.expect("pairs with an expert have a position");
        out[position * hidden..(position + 1) * hidden].to_vec()
    });
    Ok(())
}

/// Bits of a number; those that nobody has written are no numbers.
fn bits<A: Element>(number: A) -> u32 {
    number.to_f32().to_bits()
}

/// Codes of rows, and their scales `[groups, stride]`.
fn coded<A: Element>(
    rows: &[A],
    [tokens, hidden]: [usize; 2],
    stride: usize,
) -> (Vec<u8>, Vec<f32>) {
    let groups = Granularity::Groups.groups(hidden);
    let (codes, by_row) = quantized::quantize(Granularity::Groups, hidden, rows);
    let mut scales = vec![f32::NAN; groups * stride];
    for (index, scale) in by_row.into_iter().enumerate().take(tokens * groups) {
        scales[index % groups * stride + index / groups] = scale;
    }
    (codes, scales)
}

/// The row of every pair whose expert exists.
fn check_pairs<F: TestFormat>(
    layer: &Layer<F>,
    ids: &[i32],
    x: &[F::Activation],
    row: impl Fn(usize) -> Vec<F::Activation>,
) {
    let Sizes { top_k, hidden, experts, .. } = layer.sizes;
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (pair, &id) in ids.iter().enumerate() {
        if !(0..experts as i32).contains(&id) {
            continue;
        }
        let x: Vec<f32> = x[pair / top_k * hidden..][..hidden].iter().map(|x| x.to_f32()).collect();
        found.extend(row(pair));
        expected.extend(layer.row(&x, id as usize));
    }
    check_close(&found, &expected, F::LIMIT, &format!("{} pairs {ids:?}", F::NAME));
}
