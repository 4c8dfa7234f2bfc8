//! Latent vectors, rotary keys and query latents: within the rounding of the reference; nothing else of
//! the cache is touched.

use artel_device::cuda::DeviceSliceMut;
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::attention::BLOCK_TOKENS;
use artel_layers::attention::latent::LatentProjection;
use artel_layers::attention::latent::project::cuda::{
    LatentInputs, LatentRows, ProjectLatents, QueryLatents,
};
use artel_layers::attention::latent::project::reference;
use artel_layers::linear::cuda::PartSums;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rope::cuda::RopeAngles;
use artel_layers::rope::{Rope, RopeConfig, RopeScaling, RopeStyle};
use artel_moe::quant::Element;
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use artel_moe::quant::activations::{Granularity, ScaleBounds, reference as quantized};
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

pub fn cases() -> Vec<Case> {
    let shape = LatentProjection {
        query_columns: 1536,
        query_epsilon: Some(1e-6),
        rank: 512,
        epsilon: 1e-5,
        rope_dim: 64,
        style: RopeStyle::Interleaved,
        codes: false,
        parts: 4,
    };
    let small = LatentProjection { query_columns: 200, rank: 128, rope_dim: 32, ..shape };
    vec![
        case::<bf16>(shape),
        case::<bf16>(LatentProjection { codes: true, parts: 1, ..shape }),
        case::<bf16>(LatentProjection { query_epsilon: None, query_columns: 768, ..small }),
        case::<bf16>(LatentProjection { codes: true, parts: 8, ..small }),
        case::<bf16>(LatentProjection { style: RopeStyle::NeoX, parts: 2, rope_dim: 10, ..small }),
        case::<f16>(LatentProjection { parts: 1, ..small }),
    ]
}

fn case<A: Element>(shape: LatentProjection) -> Case {
    let LatentProjection { query_columns, rank, rope_dim, style, codes, parts, .. } = shape;
    let name = format!(
        "attention::project::{}_{query_columns}_{rank}_{rope_dim}_{style:?}_codes_{codes}_parts_{parts}",
        A::NAME
    );
    let scaling = RopeScaling::None;
    let config = RopeConfig { rotary_dim: rope_dim, theta: 1e4, scaling, style };
    let load = move |kernels: &mut _| {
        let rope = Rope::new(&config)?;
        let angles = RopeAngles::load(kernels, &rope)?;
        Ok((rope, angles, ProjectLatents::<A>::load(kernels, shape)?))
    };
    Case::new(name, load, move |gpu, (rope, angles, project)| {
        [0, 1, 5, 64].iter().try_for_each(|&tokens| {
            check(gpu, (rope, angles, project), shape, (tokens, false))?;
            match shape.parts {
                1 => Ok(()),
                _ => check(gpu, (rope, angles, project), shape, (tokens, true)),
            }
        })
    })
}

/// Rows of the joint projection, and the parts that add up to them, which have more rows than tokens.
fn rows_in_parts<A: Element>(tokens: usize, shape: &LatentProjection) -> (Vec<A>, Vec<f32>) {
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

fn check<A: Element>(
    gpu: &Gpu,
    (rope, angles, project): (&Rope, &RopeAngles, &ProjectLatents<A>),
    shape: LatentProjection,
    (tokens, in_parts): (usize, bool),
) -> Result<(), LayersError> {
    let LatentProjection { query_columns, rank, rope_dim, .. } = shape;
    let width = rank + rope_dim;
    let positions: Vec<usize> = (0..tokens).map(|token| token * 977 % 40_000).collect();
    let blocks = tokens.div_ceil(BLOCK_TOKENS) + 1;
    let slot = |token: usize| match token % 7 {
        3 => -1,
        5 => (blocks * BLOCK_TOKENS + token) as i32,
        _ => (blocks * BLOCK_TOKENS - 1 - token) as i32,
    };
    let slots: Vec<i32> = (0..tokens).map(slot).collect();
    let (rows, parts) = rows_in_parts::<A>(tokens, &shape);
    let weights = [numbers::<f32>(query_columns, 12), numbers::<f32>(rank, 13)];
    let at: Vec<i32> = positions.iter().map(|&at| at as i32).collect();
    let (at, frequencies) = (gpu.upload(&at), gpu.upload(rope.inverse_frequencies()));
    let mut angle = gpu.poisoned::<f32>(angles.angles_len(tokens));
    let (stream, frequencies) = (&gpu.stream, frequencies.slice());
    angles.launch(stream, tokens, at.slice(), frequencies, &mut angle.slice_mut())?;
    let (input, sums, on_device) = (gpu.upload(&rows), gpu.upload(&parts), gpu.upload(&slots));
    let [query_weight, weight] = weights.each_ref().map(|weight| gpu.upload(weight));
    let inputs = LatentInputs {
        rows: match in_parts {
            false => LatentRows::Whole(input.slice()),
            true => LatentRows::Parts(PartSums { sums: sums.slice(), rows: tokens + 5 }),
        },
        tokens,
        angles: angle.slice(),
        query_weight: shape.query_epsilon.map(|_| query_weight.slice()),
        weight: weight.slice(),
        slots: on_device.slice(),
    };
    let mut keys = gpu.poisoned::<A>(blocks * BLOCK_TOKENS * width);
    let norm = |weight: &[f32], epsilon| RmsNorm::new(weight.to_vec(), epsilon).expect("a norm");
    let query_norm = shape.query_epsilon.map(|epsilon| norm(&weights[0], epsilon));
    let norms = (query_norm.as_ref(), &norm(&weights[1], shape.epsilon));
    let (expected_queries, expected) =
        reference::forward(&shape, norms, (rope, &positions), &widened(&rows));

    let mut keys_out = keys.slice_mut();
    launch(gpu, project, (shape, &inputs), &expected_queries, &mut keys_out)?;
    let keys = gpu.download(&keys);
    let tolerance = rounding::<A>() + 1e-5;
    let mut written = 0;
    for (token, &slot) in slots.iter().enumerate() {
        if (0..(blocks * BLOCK_TOKENS) as i32).contains(&slot) {
            let found = &keys[slot as usize * width..][..width];
            assert_close(found, &expected[token * width..][..width], tolerance);
            written += width;
        }
    }
    let untouched = keys.iter().filter(|value| value.to_f32().is_nan()).count();
    assert_eq!(untouched, keys.len() - written, "nothing else is written");
    Ok(())
}

/// Launches, and checks the query latents.
fn launch<A: Element>(
    gpu: &Gpu,
    project: &ProjectLatents<A>,
    (shape, inputs): (LatentProjection, &LatentInputs<'_, A>),
    expected_queries: &[f64],
    keys: &mut DeviceSliceMut<'_, A>,
) -> Result<(), LayersError> {
    let (query_columns, tokens) = (shape.query_columns, inputs.tokens);
    let mut queries = gpu.poisoned::<A>(expected_queries.len());
    let groups = query_columns.div_ceil(128);
    let mut codes = gpu.poisoned::<u8>(expected_queries.len());
    let mut scales = gpu.poisoned::<f32>(groups * (tokens + 3));
    let mut quantized_rows = QuantizedRows {
        codes: codes.slice_mut(),
        scales: scales.slice_mut(),
        layout: ScaleLayout::ByGroup { rows: tokens + 3 },
        bounds: ScaleBounds::HIDDEN,
    };
    let mut rows_out = queries.slice_mut();
    let to = match (shape.query_epsilon, shape.codes) {
        (None, _) => QueryLatents::None,
        (Some(_), false) => QueryLatents::Rows(&mut rows_out),
        (Some(_), true) => QueryLatents::Codes(&mut quantized_rows),
    };
    project.launch(&gpu.stream, inputs, to, keys)?;

    let tolerance = rounding::<A>() + 1e-5;
    match (shape.query_epsilon, shape.codes) {
        (None, _) => {}
        (Some(_), false) => assert_close(&gpu.download(&queries), expected_queries, tolerance),
        (Some(_), true) => {
            let found = (gpu.download(&codes), gpu.download(&scales));
            check_codes::<A>(query_columns, expected_queries, found, tokens + 3);
        }
    }
    Ok(())
}

/// Codes times scales are the rows, within the rounding of a code.
fn check_codes<A: Element>(
    width: usize,
    expected: &[f64],
    (codes, scales): (Vec<u8>, Vec<f32>),
    scale_rows: usize,
) {
    let rounded: Vec<A> = expected.iter().map(|&value| A::from_f32(value as f32)).collect();
    let (_, expected_scales) = quantized::quantize(Granularity::Groups, width, &rounded);
    let groups = width.div_ceil(128);
    for (at, expected_scale) in expected_scales.iter().enumerate() {
        let found = scales[at % groups * scale_rows + at / groups];
        assert!((found / expected_scale - 1.0).abs() < 0.01, "{found} for {expected_scale}");
    }
    for (at, (&code, &expected)) in codes.iter().zip(expected).enumerate() {
        let (row, column) = (at / width, at % width);
        let scale = scales[column / 128 * scale_rows + row];
        let found = f64::from(artel_moe::quant::e4m3_to_f32(code) * scale);
        let error = (found - expected).abs();
        let step = f64::from(scale) / 512.0 + expected.abs() / 16.0 + 0.01 * expected.abs();
        assert!(error <= step, "{found} for {expected} at {at}");
    }
}
