//! Rotation, norms of heads and the write to the cache: within the rounding of the reference; values
//! are copied bit by bit, and nothing else of the cache is touched.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::BLOCK_TOKENS;
use artel_layers::attention::cuda::CacheSlices;
use artel_layers::linear::cuda::PartSums;
use artel_layers::rms_norm::{RmsNorm, reference as norm_reference};
use artel_layers::rope::cuda::{
    HeadNorm, RopeAngles, RotateAndCache, RotateInputs, RotateRows, RotateShape,
};
use artel_layers::rope::{Rope, RopeConfig, RopeScaling, RopeStyle, RopeTarget, reference};
use artel_moe::quant::Element;
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

const EPSILON: f32 = 1e-6;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for style in [RopeStyle::NeoX, RopeStyle::Interleaved] {
        for norm in [HeadNorm::None, HeadNorm::ByHead { epsilon: EPSILON }] {
            for (query_heads, kv_heads, head_dim, rotary_dim) in [
                (32, 4, 128, 128),
                (48, 8, 128, 64),
                (64, 8, 64, 64),
                (3, 1, 24, 24),
                (6, 2, 24, 10),
                (2, 2, 96, 32),
            ] {
                for parts in [1, 4] {
                    cases.push(case::<bf16>(RotateShape {
                        query_heads,
                        kv_heads,
                        head_dim,
                        rotary_dim,
                        style,
                        norm,
                        parts,
                    }));
                }
            }
        }
    }
    cases.push(case::<f16>(RotateShape {
        query_heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rotary_dim: 64,
        style: RopeStyle::NeoX,
        norm: HeadNorm::None,
        parts: 2,
    }));
    cases
}

fn case<A: Element>(shape: RotateShape) -> Case {
    let RotateShape { query_heads, kv_heads, head_dim, rotary_dim, style, norm, parts } = shape;
    let normed = norm != HeadNorm::None;
    let name = format!(
        "rope::{}_{style:?}_{query_heads}_{kv_heads}_heads_{rotary_dim}_of_{head_dim}_norm_{normed}_parts_{parts}",
        A::NAME
    );
    let config = RopeConfig { rotary_dim, theta: 1e6, scaling: RopeScaling::None, style };
    let load = move |kernels: &mut _| {
        let rope = Rope::new(&config)?;
        let angles = RopeAngles::load(kernels, &rope)?;
        Ok((rope, angles, RotateAndCache::<A>::load(kernels, shape)?))
    };
    Case::new(name, load, move |gpu, (rope, angles, rotate)| {
        [0, 1, 5, 33, 255, 256, 261]
            .iter()
            .try_for_each(|&tokens| check(gpu, (rope, angles, rotate), shape, tokens))
    })
}

/// What the reference makes of the heads of queries or keys.
fn expected<A: Element>(
    rope: &Rope,
    positions: &[usize],
    heads: &[A],
    shape: &RotateShape,
    weight: &[f32],
) -> Vec<f64> {
    let head_dim = shape.head_dim;
    let mut rows = widened(heads);
    if shape.norm != HeadNorm::None {
        let norm = RmsNorm::new(weight.to_vec(), EPSILON).expect("a legal norm");
        rows = norm_reference::forward(&norm, &rows).iter().map(|&value| value as f32).collect();
    }
    let count = heads.len() / (positions.len() * head_dim).max(1);
    reference::apply(rope, positions, &RopeTarget::heads(count, head_dim), &rows)
}

/// Columns of every row.
fn columns<A: Copy>(rows: &[A], width: usize, from: usize, count: usize) -> Vec<A> {
    rows.chunks(width).flat_map(|row| row[from..from + count].to_vec()).collect()
}

/// Rows of the joint projection, and the parts that add up to them, which have more rows than tokens.
fn rows_in_parts<A: Element>(tokens: usize, shape: &RotateShape) -> (Vec<A>, Vec<f32>) {
    let (elements, width) = (tokens * shape.row_width(), shape.row_width());
    // Of few bits, so that every order of them has the same sum.
    let coarse = |number: &f32| (number * 64.0).round() / 64.0;
    let numbers: Vec<f32> = numbers::<f32>(shape.parts * elements, 11).iter().map(coarse).collect();
    let sum = |at| (0..shape.parts).map(|part| numbers[part * elements + at]).sum();
    let rows = (0..elements).map(|at| A::from_f32(sum(at))).collect();
    let mut parts = Vec::new();
    for part in 0..shape.parts {
        parts.extend_from_slice(&numbers[part * elements..][..elements]);
        parts.resize((part + 1) * (tokens + 5) * width, f32::NAN);
    }
    (rows, parts)
}

/// Every seventh token is not kept, one lies behind the cache, the others go backwards.
fn slot(token: usize, blocks: usize) -> i32 {
    match token % 7 {
        3 => -1,
        5 => (blocks * BLOCK_TOKENS + token) as i32,
        _ => (blocks * BLOCK_TOKENS - 1 - token) as i32,
    }
}

fn check<A: Element>(
    gpu: &Gpu,
    (rope, angles, rotate): (&Rope, &RopeAngles, &RotateAndCache<A>),
    shape: RotateShape,
    tokens: usize,
) -> Result<(), LayersError> {
    let RotateShape { query_heads, kv_heads, head_dim, .. } = shape;
    let positions: Vec<usize> = (0..tokens).map(|token| token * 977 % 40_000).collect();
    let (rows, parts) = rows_in_parts::<A>(tokens, &shape);
    let weights = [numbers::<f32>(head_dim, 12), numbers::<f32>(head_dim, 13)];
    let blocks = tokens.div_ceil(BLOCK_TOKENS) + 2;
    let slots: Vec<i32> = (0..tokens).map(|token| slot(token, blocks)).collect();

    let on_device = gpu.upload(&positions.iter().map(|&at| at as i32).collect::<Vec<_>>());
    let frequencies = gpu.upload(rope.inverse_frequencies());
    let mut angle = gpu.poisoned::<f32>(angles.angles_len(tokens));
    let (stream, frequencies) = (&gpu.stream, frequencies.slice());
    angles.launch(stream, tokens, on_device.slice(), frequencies, &mut angle.slice_mut())?;
    let (input, slots_on_device, sums) =
        (gpu.upload(&rows), gpu.upload(&slots), gpu.upload(&parts));
    let [of_queries, of_keys] = weights.each_ref().map(|weight| gpu.upload(weight));
    let mut queries = gpu.poisoned::<A>(tokens * query_heads * head_dim);
    let cache_len = blocks * BLOCK_TOKENS * kv_heads * head_dim;
    let (mut keys, mut values) = (gpu.poisoned::<A>(cache_len), gpu.poisoned::<A>(cache_len));
    let inputs = RotateInputs {
        rows: match shape.parts {
            1 => RotateRows::Whole(input.slice()),
            _ => RotateRows::Parts(PartSums { sums: sums.slice(), rows: tokens + 5 }),
        },
        tokens,
        angles: angle.slice(),
        norm_weights: (shape.norm != HeadNorm::None)
            .then_some([of_queries.slice(), of_keys.slice()]),
        slots: slots_on_device.slice(),
    };
    let mut cache = CacheSlices { keys: keys.slice_mut(), values: values.slice_mut() };
    rotate.launch(stream, &inputs, &mut queries.slice_mut(), &mut cache)?;

    let (query_width, key_width) = (query_heads * head_dim, kv_heads * head_dim);
    let parts = |from, count| columns(&rows, shape.row_width(), from, count);
    let turned = expected(rope, &positions, &parts(0, query_width), &shape, &weights[0]);
    let tolerance = rounding::<A>() + 1e-5;
    assert_close(&gpu.download(&queries), &turned, tolerance);
    let turned = expected(rope, &positions, &parts(query_width, key_width), &shape, &weights[1]);
    let copied = parts(query_width + key_width, key_width);
    let (keys, values) = (gpu.download(&keys), gpu.download(&values));
    let mut written = 0;
    for (token, &slot) in slots.iter().enumerate() {
        if !(0..(blocks * BLOCK_TOKENS) as i32).contains(&slot) {
            continue;
        }
        for head in 0..kv_heads {
            let (block, row) = (slot as usize / BLOCK_TOKENS, slot as usize % BLOCK_TOKENS);
            let at = ((block * kv_heads + head) * BLOCK_TOKENS + row) * head_dim;
            let from = token * key_width + head * head_dim;
            assert_close(&keys[at..at + head_dim], &turned[from..from + head_dim], tolerance);
            assert_eq!(values[at..at + head_dim], copied[from..from + head_dim]);
            written += head_dim;
        }
    }
    for cached in [keys, values] {
        let untouched = cached.iter().filter(|value| value.to_f32().is_nan()).count();
        assert_eq!(untouched, cache_len - written, "nothing else is written");
    }
    Ok(())
}
