//! Products of large batches: within the rounding of the result of the reference, on every tile.

use artel_device::HostBuffer;
use artel_device::cuda::DeviceSliceMut;
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::assignment::{AlignOptions, Assignment, reference as assignment};
use artel_moe::grouped_gemm::prefill::cuda::{
    Blocks, Fp8Operand, HalfElement, PrefillFp8Gemm, PrefillGemm, RowPairs,
};
use artel_moe::grouped_gemm::prefill::warpgroup::cuda::{WarpgroupFp8Gemm, WarpgroupGemm};
use artel_moe::grouped_gemm::prefill::warpgroup::{self, Assigned, BLOCK_ROWS};
use artel_moe::grouped_gemm::prefill::{PrefillForm, PrefillTile, RowScales};
use artel_moe::grouped_gemm::{GroupedGemm, RowWeights, reference};
use artel_moe::quant::activations::{Granularity, reference as quantization};
use artel_moe::quant::{
    Bf16, DenseMatrix, Element, F16, Fit, Fp8Block128, Fp8BlockMatrix, Fp8Channel,
    Fp8ChannelMatrix, Fp8Tensor, Fp8TensorMatrix, NumberFormat, WeightMatrix,
};
use artel_moe::weights::{ExpertMatrices, StackLayout, Stacked};
use half::bf16;

const EXPERTS: usize = 5;

/// Relative Frobenius norm of what may be lost.
const TOLERANCE: f64 = 5e-3;

/// Sizes `[N, K]`: whole tiles, edges of both, less than a tile, one step.
const SIZES: [[usize; 2]; 5] = [[512, 768], [200, 400], [96, 2880], [1536, 192], [136, 64]];

type Matrices<F> = fn(usize, usize, usize) -> Stacked<<F as NumberFormat>::Matrix>;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [rows, columns] in SIZES {
        plain::<Bf16>(&mut cases, rows, columns);
        let block: Matrices<Fp8Block128> = |rows, columns, expert| {
            stacked(Fp8BlockMatrix::quantize(rows, columns, Fit::Weights, numbers_of(expert)))
        };
        fp8::<Fp8Block128>("fp8_block", &mut cases, rows, columns, block);
        let channel: Matrices<Fp8Channel> = |rows, columns, expert| {
            stacked(Fp8ChannelMatrix::quantize(rows, columns, Fit::Weights, numbers_of(expert)))
        };
        fp8::<Fp8Channel>("fp8_channel", &mut cases, rows, columns, channel);
    }
    for [rows, columns] in [SIZES[0], SIZES[1]] {
        plain::<F16>(&mut cases, rows, columns);
        let tensor: Matrices<Fp8Tensor> = |rows, columns, expert| {
            stacked(Fp8TensorMatrix::quantize(rows, columns, Fit::Weights, numbers_of(expert)))
        };
        fp8::<Fp8Tensor>("fp8_tensor", &mut cases, rows, columns, tensor);
    }
    // Gate over up, each cut inside a block of 128 rows, and columns cut inside one.
    let cut: Matrices<Fp8Block128> = |rows, columns, expert| {
        let half = |start: usize| {
            let whole = Fp8BlockMatrix::quantize(
                3 * rows,
                columns,
                Fit::Weights,
                numbers_of(expert + start),
            );
            whole.and_then(|whole| whole.cut_rows(start..start + rows / 2)).expect("it is cut")
        };
        Stacked::new(vec![half(rows / 2), half(rows)]).expect("parts fit")
    };
    fp8::<Fp8Block128>("fp8_cut_rows", &mut cases, 384, 256, cut);
    let cut: Matrices<Fp8Block128> = |rows, columns, expert| {
        let whole = Fp8BlockMatrix::quantize(rows, 3 * columns, Fit::Weights, numbers_of(expert));
        stacked(whole.and_then(|whole| whole.cut_columns(columns..2 * columns)))
    };
    fp8::<Fp8Block128>("fp8_cut_columns", &mut cases, 256, 192, cut);
    cases
}

fn plain<F>(cases: &mut Vec<Case>, rows: usize, columns: usize)
where
    F: NumberFormat<Matrix = DenseMatrix<<F as NumberFormat>::Activation>>,
    F::Activation: HalfElement,
{
    let matrices: Matrices<F> = |rows, columns, expert| {
        let mut values = vec![0.0; rows * columns];
        for (row, values) in values.chunks_mut(columns).enumerate() {
            numbers_of(expert)(row, values);
        }
        let values: Vec<F::Activation> = values.into_iter().map(Element::from_f32).collect();
        stacked(DenseMatrix::new(HostBuffer::from_vec(values), rows, columns))
    };
    let layout = experts::<F>(matrices, rows, columns).stack_layout();
    for form in [PrefillForm::Sums, PrefillForm::SiluAndMultiply] {
        for (tile, block_size) in tiles(&layout, form) {
            let what = suffix(form);
            let tile_text = text(tile, block_size);
            let name = format!("prefill::{}{what}_{rows}x{columns}_{tile_text}", F::NAME);
            let load =
                move |kernels: &mut _| PrefillGemm::load(kernels, &layout, form, tile, block_size);
            cases.push(Case::new(name, load, move |gpu, gemm: &PrefillGemm<F::Activation>| {
                let weights = experts::<F>(matrices, rows, columns);
                let numbers: Vec<u8> = stack(&weights).0;
                let numbers = gpu.upload(bytemuck::cast_slice::<u8, F::Activation>(&numbers));
                check(
                    gpu,
                    &weights,
                    form,
                    (block_size, Padding::Stored),
                    &ROUTINGS,
                    |rows, blocks, out| {
                        let sorted = gpu.upload(rows);
                        gemm.launch(&gpu.stream, blocks, sorted.slice(), numbers.slice(), out)
                    },
                )
            }));
        }
        warpgroup_cases::<F>(cases, matrices, [rows, columns], form);
    }
}

/// Tiles as high as an expert has rows, also the lowest, the highest and both sides of every change.
fn warpgroup_cases<F>(
    cases: &mut Vec<Case>,
    matrices: Matrices<F>,
    [rows, columns]: [usize; 2],
    form: PrefillForm,
) where
    F: NumberFormat<Matrix = DenseMatrix<<F as NumberFormat>::Activation>>,
    F::Activation: HalfElement,
{
    const HEIGHTS: [Routing; 3] = [
        || pairs([256, 257, 289, 600, 0]),
        || pairs([1, 16, 17, 272, 577]),
        || pairs([288, 273, 0, 145, 144]),
    ];
    let layout = experts::<F>(matrices, rows, columns).stack_layout();
    if warpgroup::check(&layout, form).is_err() {
        return;
    }
    let name = format!("prefill::{}{}_{rows}x{columns}_warpgroup", F::NAME, suffix(form));
    let run = move |gpu: &Gpu, gemm: &WarpgroupGemm<F::Activation>| {
        let weights = experts::<F>(matrices, rows, columns);
        let numbers: Vec<u8> = stack(&weights).0;
        let numbers = gpu.upload(bytemuck::cast_slice::<u8, F::Activation>(&numbers));
        let routings = [&ROUTINGS[..], &HEIGHTS].concat();
        check(gpu, &weights, form, (BLOCK_ROWS, Padding::Left), &routings, |rows, blocks, out| {
            let sorted = gpu.upload(rows);
            gemm.launch(&gpu.stream, blocks, sorted.slice(), numbers.slice(), out)
        })
    };
    // A second product may load weights before it waits.
    let second = (form.parts() == 1).then_some((Assigned::Before, "_ahead"));
    for (assigned, suffix) in [(Assigned::Lately, "")].into_iter().chain(second) {
        let load = move |kernels: &mut _| WarpgroupGemm::load(kernels, &layout, form, assigned);
        cases.push(Case::new(format!("{name}{suffix}"), load, run));
    }
}

fn fp8<F: NumberFormat<Activation = bf16>>(
    what: &str,
    cases: &mut Vec<Case>,
    rows: usize,
    columns: usize,
    matrices: Matrices<F>,
) {
    fp8_warpgroup::<F, bf16>(what, cases, [rows, columns], matrices);
    fp8_warpgroup::<F, f32>(what, cases, [rows, columns], matrices);
    let layout = experts::<F>(matrices, rows, columns).stack_layout();
    let of_form = |form| tiles(&layout, form).into_iter().map(move |tile| (form, tile));
    let sums = of_form(PrefillForm::Sums);
    for (form, (tile, block_size)) in sums.chain(of_form(PrefillForm::SiluAndMultiply)) {
        let what = format!("{what}{}", suffix(form));
        let name = format!("prefill::{what}_{rows}x{columns}_{}", text(tile, block_size));
        let load =
            move |kernels: &mut _| PrefillFp8Gemm::load(kernels, &layout, form, tile, block_size);
        cases.push(Case::new(name, load, move |gpu, gemm: &PrefillFp8Gemm<bf16>| {
            let weights = experts::<F>(matrices, rows, columns);
            let (numbers, scales) = stack(&weights);
            let (numbers, scales) = (gpu.upload(&numbers), gpu.upload(&scales));
            check(
                gpu,
                &weights,
                form,
                (block_size, Padding::Stored),
                &ROUTINGS,
                |sorted, blocks, out| {
                    let (codes, row_scales) = quantized(&layout, sorted);
                    let (codes, row_scales) = (gpu.upload(&codes), gpu.upload(&row_scales));
                    let rows = Fp8Operand { numbers: codes.slice(), scales: row_scales.slice() };
                    let weights = Fp8Operand { numbers: numbers.slice(), scales: scales.slice() };
                    gemm.launch(&gpu.stream, blocks, rows, weights, out)
                },
            )
        }));
    }
}

/// The same in tiles as high as an expert has rows, as 16-bit numbers and as the float32 of which codes
/// are made.
fn fp8_warpgroup<F: NumberFormat<Activation = bf16>, O: Element>(
    what: &str,
    cases: &mut Vec<Case>,
    [rows, columns]: [usize; 2],
    matrices: Matrices<F>,
) {
    const HEIGHTS: [Routing; 3] = [
        || pairs([128, 129, 144, 145, 0]),
        || pairs([1, 16, 17, 288, 289]),
        || pairs([300, 113, 32, 0, 433]),
    ];
    let layout = experts::<F>(matrices, rows, columns).stack_layout();
    for form in [PrefillForm::Sums, PrefillForm::SiluAndMultiply] {
        if warpgroup::check(&layout, form).is_err() {
            continue;
        }
        let out = O::NAME;
        let name = format!("prefill::{what}{}_{rows}x{columns}_warpgroup", suffix(form));
        // Both sides that rows may stand on.
        let short = move |kernels: &mut _| WarpgroupFp8Gemm::load(kernels, &layout, form);
        let long = move |kernels: &mut _| WarpgroupFp8Gemm::load_long(kernels, &layout, form);
        let run = move |gpu: &Gpu, gemm: &WarpgroupFp8Gemm<O>| {
            let weights = experts::<F>(matrices, rows, columns);
            let (numbers, scales) = stack(&weights);
            let (numbers, scales) = (gpu.upload(&numbers), gpu.upload(&scales));
            let routings = [&ROUTINGS[..], &HEIGHTS].concat();
            check(
                gpu,
                &weights,
                form,
                (BLOCK_ROWS, Padding::Left),
                &routings,
                |sorted, blocks, out| {
                    let (codes, row_scales) = quantized(&layout, sorted);
                    let (codes, row_scales) = (gpu.upload(&codes), gpu.upload(&row_scales));
                    let rows = Fp8Operand { numbers: codes.slice(), scales: row_scales.slice() };
                    let weights = Fp8Operand { numbers: numbers.slice(), scales: scales.slice() };
                    gemm.launch(&gpu.stream, blocks, rows, weights, out)
                },
            )
        };
        cases.push(Case::new(format!("{name}_{out}"), short, run));
        if warpgroup::check_long(&layout, form).is_ok() && (form.parts() == 1 || out == f32::NAME) {
            cases.push(Case::new(format!("{name}_long_{out}"), long, run));
        }
    }
}

fn suffix(form: PrefillForm) -> &'static str {
    match form {
        PrefillForm::Sums => "",
        PrefillForm::SiluAndMultiply => "_gated",
    }
}

/// All tiles, the first also with blocks of two row tiles.
fn tiles(layout: &StackLayout, form: PrefillForm) -> Vec<(PrefillTile, usize)> {
    let tiles = PrefillTile::candidates(layout, form);
    let doubled = tiles.first().map(|&tile| (tile, 2 * tile.rows));
    tiles.iter().map(|&tile| (tile, tile.rows)).chain(doubled).collect()
}

fn text(tile: PrefillTile, block_size: usize) -> String {
    let PrefillTile { rows, columns, depth, .. } = tile;
    format!("tile_{rows}x{columns}x{depth}_blocks_of_{block_size}")
}

/// Numbers between -1 and 1 that differ from expert to expert and from block to block.
fn numbers_of(expert: usize) -> impl Fn(usize, &mut [f32]) + Sync {
    move |row, values| {
        for (column, value) in values.iter_mut().enumerate() {
            let mixed = (row * 7919 + column * 104_729 + expert * 1_299_709) as f32;
            *value = (mixed * 0.618).sin() / (1 + (row / 64 + column / 64) % 3) as f32;
        }
    }
}

fn stacked<M: WeightMatrix>(matrix: Result<M, MoeError>) -> Stacked<M> {
    Stacked::new(vec![matrix.expect("a matrix")]).expect("one part")
}

fn experts<F: NumberFormat>(
    matrices: Matrices<F>,
    rows: usize,
    columns: usize,
) -> ExpertMatrices<F> {
    let all = (0..EXPERTS).map(|expert| matrices(rows, columns, expert)).collect();
    ExpertMatrices::new(all).expect("experts of one shape")
}

/// Numbers and scales of all experts.
fn stack<F: NumberFormat>(weights: &ExpertMatrices<F>) -> (Vec<u8>, Vec<f32>) {
    let layout = weights.stack_layout();
    let mut numbers = vec![0; EXPERTS * layout.number_bytes_per_expert()];
    let mut scales = vec![0.0; EXPERTS * layout.scales_per_expert()];
    for expert in 0..EXPERTS {
        let bytes = layout.number_bytes_per_expert();
        let numbers = &mut numbers[expert * bytes..][..bytes];
        weights.write_numbers(expert, numbers).expect("room for an expert");
        let count = layout.scales_per_expert();
        let scales = &mut scales[expert * count..][..count];
        weights.write_scales(expert, &layout, scales).expect("room for an expert");
    }
    (numbers, scales)
}

/// Codes `[M, K]` and scales `[groups, M]`.
fn quantized(layout: &StackLayout, rows: &[bf16]) -> (Vec<u8>, Vec<f32>) {
    let granularity = match RowScales::of(layout) {
        RowScales::Rows => Granularity::Rows,
        _ => Granularity::Groups,
    };
    let (codes, scales) = quantization::quantize(granularity, layout.columns, rows);
    let groups = granularity.groups(layout.columns);
    let transposed = (0..groups).flat_map(|group| scales.iter().skip(group).step_by(groups));
    (codes, transposed.copied().collect())
}

/// The experts of pairs.
type Routing = fn() -> Vec<i32>;

/// 0 pairs, 1 pair, one expert with everything, and experts without pairs, ids that do not exist and
/// more row tiles than blocks of threads.
const ROUTINGS: [Routing; 5] = [Vec::new, || vec![2], || vec![1; 129], || vec![-1; 3], many];

fn many() -> Vec<i32> {
    let odd = [0, 3, -1, 4, 3, EXPERTS as i32, 0, i32::MIN, 0];
    (0..300).map(|pair| odd[pair % odd.len()]).collect()
}

/// So many pairs of each expert.
fn pairs(counts: [usize; EXPERTS]) -> Vec<i32> {
    let of = |(expert, count)| std::iter::repeat_n(expert as i32, count);
    counts.into_iter().enumerate().flat_map(of).collect()
}

/// Each routing, and each once more with a block of no expert.
fn check<F: NumberFormat, O: Element>(
    gpu: &Gpu,
    weights: &ExpertMatrices<F>,
    form: PrefillForm,
    (block_size, padding): (usize, Padding),
    routings: &[Routing],
    launch: impl Fn(&[F::Activation], Blocks<'_>, &mut DeviceSliceMut<'_, O>) -> Result<(), MoeError>,
) -> Result<(), MoeError> {
    for ids in routings {
        let options = AlignOptions::new(EXPERTS, block_size);
        let mut assignment = assignment::align(&ids(), &options)?;
        check_one(gpu, weights, (form, padding), &assignment, &launch)?;
        // The last block of the first expert.
        let first = assignment.expert_ids.first().copied().unwrap_or(-1);
        let used = assignment.num_tokens_post_padded / block_size;
        let last = assignment.expert_ids[..used].iter().rposition(|&expert| expert == first);
        if let Some(last) = last {
            assignment.expert_ids[last] = -1;
            check_one(gpu, weights, (form, padding), &assignment, &launch)?;
        }
    }
    Ok(())
}

/// What becomes of rows that pad a block where a kernel is told which they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    Stored,
    Left,
}

/// `silu(gate) * up` of sums in full precision: the kernel rounds once, at the end.
fn gated(sums: &[f64], features: usize) -> Vec<f64> {
    let (gates, ups) = sums.split_at(features);
    gates.iter().zip(ups).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

fn check_one<F: NumberFormat, O: Element>(
    gpu: &Gpu,
    weights: &ExpertMatrices<F>,
    (form, padding): (PrefillForm, Padding),
    assignment: &Assignment,
    launch: impl Fn(&[F::Activation], Blocks<'_>, &mut DeviceSliceMut<'_, O>) -> Result<(), MoeError>,
) -> Result<(), MoeError> {
    let (features, columns) = (weights.rows() / form.parts(), weights.columns());
    let Assignment { block_size, num_pairs, num_tokens_post_padded: end, .. } = *assignment;
    let mut rows = vec![0.0; num_pairs * columns];
    for (row, values) in rows.chunks_mut(columns).enumerate() {
        numbers_of(EXPERTS + 1)(row, values);
    }
    let rows: Vec<F::Activation> = rows.into_iter().map(Element::from_f32).collect();
    // More blocks than are in use: nothing may touch the rest.
    let positions = assignment.sorted_token_ids.len().next_multiple_of(block_size) + block_size;
    let pair_at = |position: usize| {
        let pair = *assignment.sorted_token_ids.get(position)? as usize;
        (pair < num_pairs && position < end).then_some(pair)
    };
    let mut sorted = vec![F::Activation::from_f32(0.5); positions * columns];
    for (position, row) in sorted.chunks_mut(columns).enumerate() {
        if let Some(pair) = pair_at(position) {
            row.copy_from_slice(&rows[pair * columns..][..columns]);
        }
    }
    let mut expert_ids = assignment.expert_ids.clone();
    expert_ids.resize(positions / block_size, -1);
    let (expert_ids, used) = (gpu.upload(&expert_ids), gpu.upload(&[end as i32]));
    let (expert_ids, num_tokens_post_padded) = (expert_ids.slice(), used.slice());
    let blocks = Blocks { expert_ids, num_tokens_post_padded, pairs: None };
    let mut out = gpu.poisoned::<O>(positions * features);
    launch(&sorted, blocks, &mut out.slice_mut())?;
    let first = gpu.download(&out);
    launch(&sorted, blocks, &mut out.slice_mut())?;
    let bits = |values: &[O]| bytemuck::cast_slice::<_, u16>(values).to_vec();
    assert_eq!(bits(&first), bits(&gpu.download(&out)), "two runs differ");
    check_padding(gpu, assignment, padding, (&first, features), |pairs, out| {
        launch(&sorted, Blocks { pairs, ..blocks }, out)
    })?;

    let gemm = GroupedGemm {
        rows: &rows,
        pairs_per_row: 1,
        weights,
        assignment,
        row_weights: RowWeights::One,
    };
    let mut expected = vec![0.0; num_pairs * weights.rows()];
    reference::grouped_gemm(&gemm, &mut expected);
    if form == PrefillForm::SiluAndMultiply {
        let row = |sums: &[f64]| gated(sums, features);
        expected = expected.chunks(weights.rows()).flat_map(row).collect();
    }
    let (mut lost, mut norm) = (0.0, 0.0);
    for (position, row) in first.chunks(features).enumerate() {
        if position >= end {
            assert!(bits(row).iter().all(|&bits| bits == u16::MAX), "row {position} was written");
        } else if let Some(pair) = pair_at(position) {
            for (value, expected) in row.iter().zip(&expected[pair * features..]) {
                lost += (f64::from(value.to_f32()) - expected).powi(2);
                norm += expected.powi(2);
            }
        }
    }
    let error = (lost / norm.max(f64::MIN_POSITIVE)).sqrt();
    assert!(error <= TOLERANCE, "{num_pairs} pairs: a relative error of {error}");
    Ok(())
}

/// The same rows where the kernel is told which are of pairs, and of others what `padding` says.
fn check_padding<O: Element>(
    gpu: &Gpu,
    assignment: &Assignment,
    padding: Padding,
    (expected, features): (&[O], usize),
    launch: impl Fn(Option<RowPairs<'_>>, &mut DeviceSliceMut<'_, O>) -> Result<(), MoeError>,
) -> Result<(), MoeError> {
    let Assignment { block_size, num_pairs: count, num_tokens_post_padded: end, .. } = *assignment;
    let mut pairs = assignment.sorted_token_ids.clone();
    pairs.resize(expected.len() / features, count as i32);
    let on_gpu = gpu.upload(&pairs);
    let mut out = gpu.poisoned::<O>(expected.len());
    let sorted_token_ids = on_gpu.slice();
    launch(Some(RowPairs { sorted_token_ids, count }), &mut out.slice_mut())?;
    let bits = |values: &[O]| bytemuck::cast_slice::<_, u16>(values).to_vec();
    for (position, row) in gpu.download(&out).chunks(features).enumerate() {
        let expert = assignment.expert_ids.get(position / block_size).copied().unwrap_or(-1);
        let is_padding = position < end && pairs[position] as usize >= count && expert >= 0;
        if is_padding && padding == Padding::Left {
            assert!(
                bits(row).iter().all(|&bits| bits == u16::MAX),
                "padding {position} was written"
            );
        } else {
            assert_eq!(bits(row), bits(&expected[position * features..][..features]), "{position}");
        }
    }
    Ok(())
}
