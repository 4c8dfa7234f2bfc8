//! Many tokens a sequence, over what is cached of it.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::cuda::CacheSlices;
use artel_layers::attention::prefill::cuda::{PrefillAttention, PrefillForm, TileSlices};
use artel_layers::attention::prefill::tiles;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use half::{bf16, f16};

use super::{Layer, Paged, Sequence, layer, layers, parameters, sequences};
use crate::numbers::{assert_close, numbers, rounding};

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = layers().into_iter().map(case::<bf16>).collect();
    cases.push(case::<f16>(layer(8, 2, 128)));
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
    let form = PrefillForm { sinks: layer.has_sinks, window: layer.window.is_some() };
    let load = move |kernels: &mut _| PrefillAttention::<A>::load(kernels, layer.shape, form);
    Case::new(name, load, move |gpu, attention| {
        let width = layer.shape.query_width();
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
                let rows = first * width..(first + count) * width;
                let expected = layer.expected(&queries[rows.clone()], sequence);
                // Weights are rounded before they meet values.
                assert_close(&found[rows], &expected, 2.0 * rounding::<A>());
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
    let from = (new - 7) * layer.shape.query_width();
    let alone = run(gpu, attention, layer, &queries[from..], (all, &[7]))?;
    assert_eq!(alone, found[from..], "however a prompt is cut");
    Ok(())
}

fn run<A: HalfElement>(
    gpu: &Gpu,
    attention: &PrefillAttention<A>,
    layer: &Layer,
    queries: &[A],
    (all, new): (&[Sequence<A>], &[usize]),
) -> Result<Vec<A>, LayersError> {
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
    let mut out = gpu.poisoned::<A>(queries.len());
    let cache = CacheSlices { keys: keys.slice_mut(), values: values.slice_mut() };
    attention.launch(
        &gpu.stream,
        (on_device.slice(), &cache),
        (&sequences(&tables, &lengths, [table_stride, count]), &tiles),
        &parameters(layer, &sinks),
        &mut out.slice_mut(),
    )?;
    Ok(gpu.download(&out))
}
