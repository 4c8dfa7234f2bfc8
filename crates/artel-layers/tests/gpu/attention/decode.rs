//! One token a sequence.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::cuda::CacheSlices;
use artel_layers::attention::decode::cuda::{DecodeAttention, DecodeOut, DecodeWorkspace};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use artel_moe::quant::activations::{Granularity, ScaleBounds, reference as quantized};
use half::{bf16, f16};

use super::{Layer, Paged, Sequence, latent, latent_layers, layer, layers, parameters, sequences};
use crate::numbers::{assert_close, numbers, rounding};

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = layers().into_iter().map(case::<bf16>).collect();
    cases.extend(latent_layers().into_iter().map(case::<bf16>));
    cases.push(case::<f16>(layer(8, 2, 128)));
    cases.push(case::<f16>(latent(16, 512, 64)));
    cases
}

/// One batch of everything, one sequence alone, none at all, and more than the GPU holds at a time.
fn batches() -> Vec<Vec<usize>> {
    vec![
        vec![1, 15, 16, 17, 0, 63, 64, 65, 127, 128, 129, 1000, 4097],
        vec![20_000],
        vec![1],
        vec![],
        (0..150).map(|index| index * 7 % 200).collect(),
    ]
}

fn case<A: HalfElement>(layer: Layer) -> Case {
    let name = format!("attention::decode::{}_{}", A::NAME, layer.name());
    let load =
        move |kernels: &mut _| DecodeAttention::<A>::load(kernels, layer.shape, layer.has_sinks);
    Case::new(name, load, move |gpu, attention| {
        for lengths in batches() {
            let all: Vec<Sequence<A>> = lengths
                .iter()
                .enumerate()
                .map(|(seed, &tokens)| Sequence::new(&layer.shape, tokens, seed))
                .collect();
            let queries = numbers::<A>(all.len() * layer.shape.query_width(), 31);
            let found = run(gpu, attention, &layer, &queries, &all)?;
            check(&layer, &queries, &all, &found);
            for index in [0, all.len() / 2].into_iter().filter(|&index| index < all.len()) {
                let own = &queries[index * layer.shape.query_width()..];
                let own = &own[..layer.shape.query_width()];
                let alone = run(gpu, attention, &layer, own, &all[index..index + 1])?;
                let width = layer.shape.output_width();
                assert_eq!(alone, found[index * width..][..width], "{lengths:?}: {index} alone");
            }
        }
        Ok(())
    })
}

fn run<A: HalfElement>(
    gpu: &Gpu,
    attention: &DecodeAttention<A>,
    layer: &Layer,
    queries: &[A],
    all: &[Sequence<A>],
) -> Result<Vec<A>, LayersError> {
    let Paged { mut keys, mut values, tables, lengths, table_stride, sequences: count } =
        Paged::new(gpu, &layer.shape, all);
    let (queries, sinks) = (gpu.upload(queries), gpu.upload(&layer.sinks()));
    let mut out = gpu.poisoned::<A>(count * layer.shape.output_width());
    let mut workspace = DecodeWorkspace::new(gpu.stream.context(), &layer.shape, count)?;
    let cache = CacheSlices { keys: keys.slice_mut(), values: values.slice_mut() };
    let sequences = sequences(&tables, &lengths, [table_stride, count]);
    let (operands, parameters) = ((queries.slice(), &cache), parameters(layer, &sinks));
    let (stream, rows) = (&gpu.stream, &mut out.slice_mut());
    let rows = DecodeOut::Rows(rows);
    attention.launch(stream, operands, &sequences, &parameters, &mut workspace, rows)?;
    let out = gpu.download(&out);
    if attention.makes_codes() {
        let (width, groups) = (layer.shape.output_width(), layer.shape.query_heads);
        let (mut codes, mut scales) =
            (gpu.poisoned::<u8>(count * width), gpu.poisoned::<f32>(count * groups));
        let mut quantized = QuantizedRows {
            codes: codes.slice_mut(),
            scales: scales.slice_mut(),
            layout: ScaleLayout::ByGroup { rows: count },
            bounds: ScaleBounds::HIDDEN,
        };
        let rows = DecodeOut::Codes(&mut quantized);
        attention.launch(stream, operands, &sequences, &parameters, &mut workspace, rows)?;
        let (expected, expected_scales) = quantized::quantize(Granularity::Groups, width, &out);
        assert_eq!(gpu.download(&codes), expected, "codes of the rows");
        let scales = gpu.download(&scales);
        for (index, expected) in expected_scales.iter().enumerate() {
            assert_eq!(scales[index % groups * count + index / groups], *expected, "{index}");
        }
    }
    Ok(out)
}

fn check<A: HalfElement>(layer: &Layer, queries: &[A], all: &[Sequence<A>], found: &[A]) {
    let (query_width, width) = (layer.shape.query_width(), layer.shape.output_width());
    for (index, sequence) in all.iter().enumerate() {
        let found = &found[index * width..][..width];
        if sequence.tokens == 0 {
            assert!(found.iter().all(|value| value.to_f32() == 0.0), "nothing to look at");
            continue;
        }
        let queries = &queries[index * query_width..][..query_width];
        // Weights are rounded before they meet values.
        assert_close(found, &layer.expected(queries, sequence), 2.0 * rounding::<A>());
    }
}
