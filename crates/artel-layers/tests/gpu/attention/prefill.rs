//! Many tokens a sequence, over what is cached of it.

use artel_device::cuda::{DeviceBuffer, Kernels};
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::AttentionShape;
use artel_layers::attention::cuda::CacheSlices;
use artel_layers::attention::prefill::cuda::{
    PrefillAttention, PrefillForm, PrefillOut, TileSlices,
};
use artel_layers::attention::prefill::tiles;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::activations::cuda::{
    InputRows, Placement, Quantize, QuantizedRows, ScaleLayout,
};
use artel_moe::quant::activations::{Granularity, ScaleBounds};
use half::{bf16, f16};

use super::{Layer, Paged, Sequence, latent, latent_layers, layer, layers, parameters, sequences};
use crate::numbers::{assert_close, numbers, rounding};

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = layers().into_iter().map(case::<bf16>).collect();
    cases.extend(latent_layers().into_iter().map(case::<bf16>));
    cases.push(case::<f16>(layer(8, 2, 128)));
    cases.push(case::<f16>(latent(16, 512, 64)));
    cases.push(codes_case(layer(32, 4, 128)));
    cases.push(codes_case(Layer { window: Some(70), has_sinks: true, ..layer(6, 1, 128) }));
    cases
}

/// New and cached tokens of each sequence.
fn batches() -> Vec<Vec<[usize; 2]>> {
    vec![
        vec![[1, 0], [15, 0], [16, 1], [17, 63], [0, 40], [128, 0], [129, 16], [64, 65]],
        vec![[300, 0]],
        vec![[40, 1000]],
        vec![],
    ]
}

fn case<A: HalfElement>(layer: Layer) -> Case {
    let name = format!("attention::prefill::{}_{}", A::NAME, layer.name());
    let load =
        move |kernels: &mut _| PrefillAttention::<A>::load(kernels, layer.shape, form_of(&layer));
    Case::new(name, load, move |gpu, attention| {
        let (width, out_width) = (layer.shape.query_width(), layer.shape.output_width());
        for batch in batches() {
            let all: Vec<Sequence<A>> = batch
                .iter()
                .enumerate()
                .map(|(seed, [new, cached])| Sequence::new(&layer.shape, new + cached, seed))
                .collect();
            let new: Vec<usize> = batch.iter().map(|[new, _]| *new).collect();
            let queries = numbers::<A>(new.iter().sum::<usize>() * width, 31);
            let found = run(gpu, attention, &layer, &queries, (&all, &new))?;
            let mut first = 0;
            for (sequence, &count) in all.iter().zip(&new) {
                let queries = &queries[first * width..(first + count) * width];
                let found = &found[first * out_width..(first + count) * out_width];
                // Weights are rounded before they meet values.
                assert_close(found, &layer.expected(queries, sequence), 2.0 * rounding::<A>());
                first += count;
            }
            if let [[new, _]] = batch[..] {
                check_last_alone(gpu, attention, &layer, &queries, (&all, new), &found)?;
            }
        }
        Ok(())
    })
}

/// The last seven tokens in a step of their own have the bits that they have in one step with the others.
fn check_last_alone<A: HalfElement>(
    gpu: &Gpu,
    attention: &PrefillAttention<A>,
    layer: &Layer,
    queries: &[A],
    (all, new): (&[Sequence<A>], usize),
    found: &[A],
) -> Result<(), LayersError> {
    let (from, out_from) =
        ((new - 7) * layer.shape.query_width(), (new - 7) * layer.shape.output_width());
    let alone = run(gpu, attention, layer, &queries[from..], (all, &[7]))?;
    assert_eq!(alone, found[out_from..], "however a prompt is cut");
    Ok(())
}

fn run<A: HalfElement>(
    gpu: &Gpu,
    attention: &PrefillAttention<A>,
    layer: &Layer,
    queries: &[A],
    sequences: (&[Sequence<A>], &[usize]),
) -> Result<Vec<A>, LayersError> {
    let rows = queries.len() / layer.shape.query_width();
    let mut out = gpu.poisoned::<A>(rows * layer.shape.output_width());
    let to = PrefillOut::Rows(&mut out.slice_mut());
    launch(gpu, attention, layer, queries, sequences, to)?;
    Ok(gpu.download(&out))
}

fn launch<A: HalfElement>(
    gpu: &Gpu,
    attention: &PrefillAttention<A>,
    layer: &Layer,
    queries: &[A],
    (all, new): (&[Sequence<A>], &[usize]),
    out: PrefillOut<'_, '_, A>,
) -> Result<(), LayersError> {
    let Paged { mut keys, mut values, tables, lengths, table_stride, sequences: count } =
        Paged::new(gpu, &layer.shape, all);
    let mut first_rows = vec![0];
    for tokens in new {
        first_rows.push(first_rows.last().copied().unwrap_or(0) + *tokens as i32);
    }
    let tiles = tiles(new);
    let mut of_tiles: Vec<i32> = tiles.iter().map(|tile| tile.sequence as i32).collect();
    let mut rows: Vec<i32> = tiles.iter().map(|tile| tile.first_row as i32).collect();
    // A tile that is none, as a recorded launch has them.
    of_tiles.push(-1);
    rows.push(i32::MAX);
    let (first_rows, of_tiles, rows) =
        (gpu.upload(&first_rows), gpu.upload(&of_tiles), gpu.upload(&rows));
    let tiles = TileSlices {
        first_rows: first_rows.slice(),
        sequences: of_tiles.slice(),
        rows: rows.slice(),
    };
    let (on_device, sinks) = (gpu.upload(queries), gpu.upload(&layer.sinks()));
    let cache = CacheSlices { keys: keys.slice_mut(), values: values.slice_mut() };
    attention.launch(
        &gpu.stream,
        (on_device.slice(), &cache),
        (&sequences(&tables, &lengths, [table_stride, count]), &tiles),
        &parameters(layer, &sinks),
        out,
    )?;
    // Before the memory of the inputs is given back.
    gpu.stream.synchronize()?;
    Ok(())
}

fn form_of(layer: &Layer) -> PrefillForm {
    PrefillForm { sinks: layer.has_sinks, window: layer.window.is_some(), codes: false }
}

/// Codes are those of the rows.
fn codes_case(layer: Layer) -> Case {
    let name = format!("attention::prefill::codes_{}", layer.name());
    let width = layer.shape.query_width();
    let load = move |kernels: &mut Kernels| {
        let form = form_of(&layer);
        let rows = PrefillAttention::<bf16>::load(kernels, layer.shape, form)?;
        let form = PrefillForm { codes: true, ..form };
        let codes = PrefillAttention::<bf16>::load(kernels, layer.shape, form)?;
        let (granularity, placement) = (Granularity::Groups, Placement::InPlace);
        let quantize = Quantize::<bf16>::load(kernels, width, granularity, placement)?;
        Ok::<_, LayersError>((rows, codes, quantize))
    };
    Case::new(name, load, move |gpu, (rows, codes, quantize)| {
        for batch in [vec![[1, 0], [63, 2], [64, 0], [65, 40]], vec![[300, 100]]] {
            let new: Vec<usize> = batch.iter().map(|[new, _]| *new).collect();
            let tokens: usize = new.iter().sum();
            let sequence = |(seed, [new, cached]): (usize, &[usize; 2])| {
                Sequence::new(&layer.shape, new + cached, seed)
            };
            let all: Vec<Sequence<bf16>> = batch.iter().enumerate().map(sequence).collect();
            let queries = numbers::<bf16>(tokens * width, 31);
            let plain = run(gpu, rows, &layer, &queries, (&all, &new))?;
            let plain = gpu.upload(&plain);
            let mut expected = Codes::new(gpu, &layer, tokens);
            let input = InputRows { values: plain.slice(), rows: tokens, positions: None };
            quantize.launch(&gpu.stream, input, &mut expected.slices())?;
            let mut found = Codes::new(gpu, &layer, tokens);
            let to = PrefillOut::Codes(&mut found.slices());
            launch(gpu, codes, &layer, &queries, (&all, &new), to)?;
            assert_eq!(found.download(gpu), expected.download(gpu), "{batch:?}");
        }
        Ok(())
    })
}

/// Codes of some rows and their scales, one a head.
struct Codes {
    codes: DeviceBuffer<u8>,
    scales: DeviceBuffer<f32>,
    tokens: usize,
}

impl Codes {
    fn new(gpu: &Gpu, layer: &Layer, tokens: usize) -> Self {
        let AttentionShape { query_heads, .. } = layer.shape;
        let codes = gpu.poisoned(tokens * layer.shape.query_width());
        Self { codes, scales: gpu.poisoned(tokens * query_heads), tokens }
    }

    fn slices(&mut self) -> QuantizedRows<'_> {
        QuantizedRows {
            codes: self.codes.slice_mut(),
            scales: self.scales.slice_mut(),
            layout: ScaleLayout::ByGroup { rows: self.tokens },
            bounds: ScaleBounds::HIDDEN,
        }
    }

    fn download(&self, gpu: &Gpu) -> (Vec<u8>, Vec<f32>) {
        (gpu.download(&self.codes), gpu.download(&self.scales))
    }
}
