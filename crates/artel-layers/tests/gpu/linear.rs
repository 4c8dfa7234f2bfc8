//! Linear maps: within the rounding of the result of the reference, on both sides of every switch.

use artel_device::HostBuffer;
use artel_device::cuda::PinnedBuffer;
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::linear::cuda::{
    FEW_ROWS_MAX, Linear, LinearNumbers, LinearRows, LinearShape, LinearWeight, LinearWorkspace,
};
use artel_layers::linear::{Linear as HostLinear, reference};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::quant::activations::{Granularity, reference as quantized};
use artel_moe::quant::{
    AnyMatrix, DenseMatrix, Element, Fp8BlockMatrix, e4m3_from_f32, e4m3_to_f32,
};
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for numbers in [LinearNumbers::Plain, LinearNumbers::Fp8Block128] {
        for (outputs, inputs) in [(8, 16), (136, 144), (520, 2048), (2048, 768)] {
            for bias in [false, true] {
                let shape = LinearShape { outputs, inputs, numbers, bias };
                cases.push(case::<bf16>(shape, &[0, 1, 8, 9, 16, 17, 33, 64, 65, 130]));
            }
        }
        // Parts of so many steps that weights are read ahead, of one more, and of other rows.
        for (outputs, inputs) in [(2048, 4096), (1032, 5008)] {
            let shape = LinearShape { outputs, inputs, numbers, bias: false };
            cases.push(case::<bf16>(shape, &[1, 9, 32, 33]));
        }
        // Weights that fit the shared memory of all multiprocessors, some tiles with scales of two blocks.
        for (outputs, inputs) in [(5120, 2048), (3072, 6144), (1024, 1024)] {
            let shape = LinearShape { outputs, inputs, numbers, bias: false };
            cases.push(case::<bf16>(shape, &[1, 7, 16, 17, 33, 63, 64, 65]));
        }
        // Both sides of every switch to larger tiles; one tall matrix as an output layer is.
        let wide = LinearShape { outputs: 5120, inputs: 144, numbers, bias: true };
        cases.push(case::<bf16>(wide, &[1, 64, 65, 128, 129, 256, 257, 1536, 1537]));
        let tall = LinearShape { outputs: 20008, inputs: 256, numbers, bias: false };
        cases.push(case::<bf16>(tall, &[1, 3, 64]));
        cases.push(case::<f16>(LinearShape { outputs: 136, inputs: 144, ..wide }, &[1, 20]));
    }
    cases
}

fn case<A: HalfElement>(shape: LinearShape, tokens: &'static [usize]) -> Case {
    let LinearShape { outputs, inputs, numbers, bias } = shape;
    let name = format!("linear::{}_{numbers:?}_{outputs}_of_{inputs}_bias_{bias}", A::NAME);
    let tokens_max = tokens.iter().copied().max().unwrap_or(0);
    let load = move |kernels: &mut _| Linear::<A>::load(kernels, shape, tokens_max);
    Case::new(name, load, move |gpu, linear| {
        let weight = Weight::new::<A>(shape);
        let mut workspace = LinearWorkspace::new(gpu.stream.context(), tokens_max)?;
        assert!(refuses_more(gpu, (linear, &mut workspace), &weight, shape));
        let mut alone = None;
        for &tokens in tokens {
            let found = check(gpu, (linear, &mut workspace), &weight, shape, tokens)?;
            if (1..=64).contains(&tokens) {
                let first = found[..shape.outputs].to_vec();
                assert_eq!(
                    *alone.get_or_insert(first.clone()),
                    first,
                    "the first of {tokens} rows"
                );
            }
        }
        Ok(())
    })
}

/// A weight as it is stored and as the reference knows it.
pub struct Weight {
    pub bytes: Vec<u8>,
    pub scales: Vec<f32>,
    bias: Vec<f32>,
    pub host: HostLinear,
}

impl Weight {
    pub fn new<A: HalfElement>(shape: LinearShape) -> Self {
        let LinearShape { outputs, inputs, .. } = shape;
        let values: Vec<A> = numbers(outputs * inputs, 5);
        let (bytes, scales, matrix) = match shape.numbers {
            LinearNumbers::Plain => {
                let bytes = bytemuck::cast_slice(&values).to_vec();
                let exact = HostBuffer::from_vec(widened(&values));
                let matrix = DenseMatrix::new(exact, outputs, inputs).expect("a whole matrix");
                (bytes, Vec::new(), AnyMatrix::F32(matrix))
            }
            LinearNumbers::Fp8Block128 => {
                let codes: Vec<u8> = widened(&values).into_iter().map(e4m3_from_f32).collect();
                let blocks = outputs.div_ceil(128) * inputs.div_ceil(128);
                let scales: Vec<f32> = (0..blocks).map(|block| 0.5 + block as f32 / 64.0).collect();
                let (own_codes, own_scales) =
                    (HostBuffer::from_vec(codes.clone()), HostBuffer::from_vec(scales.clone()));
                let matrix = Fp8BlockMatrix::new(own_codes, own_scales, outputs, inputs);
                (codes, scales, AnyMatrix::Fp8Block128(matrix.expect("a whole matrix")))
            }
        };
        let bias = if shape.bias { numbers::<f32>(outputs, 6) } else { Vec::new() };
        let host = match shape.bias {
            true => HostLinear::with_bias(matrix, bias.clone()).expect("a bias for each output"),
            false => HostLinear::new(matrix),
        };
        Self { bytes, scales, bias, host }
    }
}

fn refuses_more<A: HalfElement>(
    gpu: &Gpu,
    (linear, workspace): (&Linear<A>, &mut LinearWorkspace),
    weight: &Weight,
    shape: LinearShape,
) -> bool {
    let (numbers, nothing) = (gpu.upload(&weight.bytes), gpu.upload::<f32>(&[]));
    let (rows, mut out) = (gpu.upload::<A>(&[]), gpu.upload::<A>(&[]));
    let weight = LinearWeight {
        numbers: numbers.slice(),
        scales: nothing.slice(),
        bias: shape.bias.then_some(nothing.slice()),
    };
    let operands = (LinearRows::Plain(rows.slice()), weight);
    let refused = linear.launch(&gpu.stream, workspace, 1 << 20, operands, &mut out.slice_mut());
    matches!(refused, Err(LayersError::Config { field: "tokens of a linear map", .. }))
}

fn check<A: HalfElement>(
    gpu: &Gpu,
    (linear, workspace): (&Linear<A>, &mut LinearWorkspace),
    weight: &Weight,
    shape: LinearShape,
    tokens: usize,
) -> Result<Vec<A>, LayersError> {
    let LinearShape { outputs, inputs, .. } = shape;
    let padded = Linear::<A>::padded(tokens);
    let mut rows = numbers::<A>(tokens * inputs, 7);
    rows.resize(padded * inputs, A::from_f32(f32::NAN));
    let (codes, scales) = quantized::quantize(Granularity::Groups, inputs, &rows);
    let groups = inputs.div_ceil(128);
    let exact: Vec<f32> = match shape.numbers {
        LinearNumbers::Plain => widened(&rows[..tokens * inputs]),
        LinearNumbers::Fp8Block128 => (0..tokens * inputs)
            .map(|at| {
                let group = at % inputs / 128;
                e4m3_to_f32(codes[at]) * scales[at / inputs * groups + group]
            })
            .collect(),
    };
    let expected = reference::forward(&weight.host, tokens, &exact);
    let by_group: Vec<f32> =
        (0..groups * padded).map(|at| scales[at % padded * groups + at / padded]).collect();

    let (rows, codes, by_group) = (gpu.upload(&rows), gpu.upload(&codes), gpu.upload(&by_group));
    let (bytes, scales, bias) =
        (gpu.upload(&weight.bytes), gpu.upload(&weight.scales), gpu.upload(&weight.bias));
    let rows = match shape.numbers {
        LinearNumbers::Plain => LinearRows::Plain(rows.slice()),
        LinearNumbers::Fp8Block128 => {
            LinearRows::Fp8 { codes: codes.slice(), scales: by_group.slice() }
        }
    };
    let weight = LinearWeight {
        numbers: bytes.slice(),
        scales: scales.slice(),
        bias: shape.bias.then_some(bias.slice()),
    };
    let mut out = gpu.poisoned::<A>(padded * outputs);
    linear.launch(&gpu.stream, workspace, tokens, (rows, weight), &mut out.slice_mut())?;
    let found = gpu.download(&out);
    // The sums of 2048 products in float32, and a second rounding where there is a bias.
    let tolerance = 2.0 * rounding::<A>() + 2e-3;
    match shape.numbers {
        LinearNumbers::Plain => assert_close(&found[..tokens * outputs], &expected, tolerance),
        LinearNumbers::Fp8Block128 => {
            assert_near(&found[..tokens * outputs], &expected, (outputs, tolerance));
        }
    }
    if let Some(parts) = linear.parts().filter(|_| (1..=FEW_ROWS_MAX).contains(&tokens)) {
        let part_rows = linear.launch_parts(&gpu.stream, workspace, tokens, (rows, weight))?;
        let numbers = parts * part_rows * outputs;
        let mut sums = PinnedBuffer::zeroed(gpu.stream.context(), numbers)?;
        sums.read_from(&gpu.stream, workspace.parts(part_rows).sums.range(0, numbers)?)?;
        let parts: Vec<&[f32]> = sums.as_slice().chunks(part_rows * outputs).collect();
        for (at, found) in found[..tokens * outputs].iter().enumerate() {
            let sum: f64 = parts.iter().map(|part| f64::from(part[at])).sum();
            let near = (sum - f64::from(found.to_f32())).abs();
            assert!(near <= rounding::<A>() * (1.0 + sum.abs()), "{found:?} for {sum} at {at}");
        }
    }
    linear.launch(&gpu.stream, workspace, tokens, (rows, weight), &mut out.slice_mut())?;
    let again = gpu.download(&out);
    let bytes = |values: &[A]| bytemuck::cast_slice::<A, u8>(&values[..tokens * outputs]).to_vec();
    assert!(bytes(&found) == bytes(&again), "two runs give the same bits");
    Ok(found)
}

/// Every number within `tolerance` of what is expected, relative to itself and to the numbers of the
/// same block of scales: matrix units keep sums of FP8 products to 13 bits of the largest.
#[track_caller]
pub fn assert_near<A: Element>(found: &[A], expected: &[f64], (outputs, tolerance): (usize, f64)) {
    for first in (0..outputs).step_by(128) {
        let block = first..(first + 128).min(outputs);
        let rows = found.chunks_exact(outputs).zip(expected.chunks_exact(outputs));
        let pairs = rows.flat_map(|(found, expected)| {
            found[block.clone()].iter().zip(&expected[block.clone()])
        });
        let pairs: Vec<(f64, f64)> =
            pairs.map(|(found, expected)| (f64::from(found.to_f32()), *expected)).collect();
        let squares: f64 = pairs.iter().map(|(_, expected)| expected * expected).sum();
        let usual = (squares / pairs.len().max(1) as f64).sqrt();
        for (found, expected) in pairs {
            let near = (found - expected).abs() <= tolerance * (usual + expected.abs());
            assert!(near, "{found} for {expected} in the block of outputs from {first}");
        }
    }
}
