use artel_device::HostBuffer;
use artel_device::cpu::CpuFeatures;
use artel_moe::quant::{AnyMatrix, DenseMatrix, Element, Format, Fp8BlockMatrix, e4m3_from_f32};
use proptest::prelude::*;

use super::{Linear, reference};
use crate::{LayersError, Workspace};

fn workspace() -> Workspace {
    Workspace::new(CpuFeatures::detect())
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 31 + seed * 17) % 97) as f32 / 48.0 - 1.0).collect()
}

fn dense<T: Element>(rows: usize, columns: usize) -> DenseMatrix<T> {
    let elements: Vec<T> = numbers(rows * columns, 1).into_iter().map(T::from_f32).collect();
    DenseMatrix::new(HostBuffer::from_vec(elements), rows, columns).unwrap()
}

fn fp8(rows: usize, columns: usize) -> Fp8BlockMatrix {
    let codes: Vec<u8> = numbers(rows * columns, 2).into_iter().map(e4m3_from_f32).collect();
    let blocks = rows.div_ceil(128) * columns.div_ceil(128);
    let scales: Vec<f32> = (0..blocks).map(|block| 0.5 + block as f32 * 0.25).collect();
    let (codes, scales) = (HostBuffer::from_vec(codes), HostBuffer::from_vec(scales));
    Fp8BlockMatrix::new(codes, scales, rows, columns).unwrap()
}

fn every_format(rows: usize, columns: usize) -> Vec<AnyMatrix> {
    let dense_f32 = AnyMatrix::F32(dense::<f32>(rows, columns));
    let converted = Format::ALL.into_iter().map(|format| dense_f32.convert(format).unwrap());
    converted.chain([AnyMatrix::Fp8Block128(fp8(rows, columns))]).collect()
}

/// Relative error, of the largest output, that a format's rounding of its input allows.
fn limit(weight: &AnyMatrix) -> f64 {
    match weight {
        AnyMatrix::F32(_) => 1e-5,
        AnyMatrix::F16(_) => 2e-3,
        AnyMatrix::Fp8Block128(_) | AnyMatrix::Fp8Tensor(_) | AnyMatrix::Fp8Channel(_) => 6e-2,
        _ => 1e-2,
    }
}

fn check(linear: &Linear, tokens: usize) {
    let rows = numbers(tokens * linear.inputs(), 3);
    let expected = reference::forward(linear, tokens, &rows);
    let mut out = vec![f32::NAN; expected.len()];
    linear.forward(&mut workspace(), &rows, &mut out).unwrap();
    let size = expected.iter().fold(1.0, |size: f64, value| size.max(value.abs()));
    for (found, expected) in out.iter().zip(&expected) {
        let error = (f64::from(*found) - expected).abs();
        let name = linear.weight().format_name();
        assert!(error <= limit(linear.weight()) * size, "{name}: {found} for {expected}");
    }
}

#[test]
fn every_format_agrees_with_the_definition() {
    for (outputs, inputs) in [(1, 1), (5, 3), (33, 128), (130, 257), (64, 384)] {
        for weight in every_format(outputs, inputs) {
            for tokens in [0, 1, 2, 9, 40] {
                check(&Linear::new(weight.clone()), tokens);
                let bias = numbers(outputs, 4);
                check(&Linear::with_bias(weight.clone(), bias).unwrap(), tokens);
            }
        }
    }
}

#[test]
fn the_example_of_the_documentation() {
    let weight = HostBuffer::from_vec(vec![1f32, 2.0, 0.0, 1.0]);
    let weight = AnyMatrix::F32(DenseMatrix::new(weight, 2, 2).unwrap());
    let linear = Linear::with_bias(weight, vec![10.0, 0.0]).unwrap();
    let mut out = [0.0; 2];
    linear.forward(&mut workspace(), &[3.0, 4.0], &mut out).unwrap();
    assert_eq!(out, [21.0, 4.0]);
}

#[test]
fn wrong_sizes_are_named() {
    let linear = Linear::new(AnyMatrix::F32(dense(3, 2)));
    let error = linear.forward(&mut workspace(), &[0.0; 3], &mut [0.0; 3]).unwrap_err();
    assert!(matches!(error, LayersError::Product(_)), "{error}");
    assert!(linear.forward(&mut workspace(), &[0.0; 2], &mut [0.0; 4]).is_err());
    assert!(Linear::with_bias(AnyMatrix::F32(dense(3, 2)), vec![0.0; 2]).is_err());
}

proptest! {
    #[test]
    fn a_token_does_not_depend_on_its_neighbours(
        (outputs, inputs, tokens) in (1usize..40, 1usize..80, 1usize..12),
    ) {
        for weight in every_format(outputs, inputs) {
            let linear = Linear::new(weight);
            let mut workspace = Workspace::new(CpuFeatures::detect().with_invariant_rows());
            let rows = numbers(tokens * inputs, 5);
            let mut together = vec![0f32; tokens * outputs];
            linear.forward(&mut workspace, &rows, &mut together).unwrap();
            for (row, expected) in rows.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                let mut alone = vec![0f32; outputs];
                linear.forward(&mut workspace, row, &mut alone).unwrap();
                let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&alone), bits(expected));
            }
        }
    }
}
