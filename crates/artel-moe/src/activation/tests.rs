use artel_device::cpu::CpuFeatures;
use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::quant::Element;

/// Runs every instruction set against the reference; `tolerance` is absolute plus relative.
fn check<A: Element>(
    activation: Activation,
    intermediate_size: usize,
    rows: &[f32],
    tolerance: f64,
) {
    let input: Vec<A> = rows.iter().map(|&x| A::from_f32(x)).collect();
    let columns = activation.input_columns(intermediate_size);
    let mut expected = vec![0.0; rows.len() / columns * intermediate_size];
    let exact: Vec<f64> = input.iter().map(|x| f64::from(x.to_f32())).collect();
    for (out, row) in expected.chunks_mut(intermediate_size).zip(exact.chunks(columns)) {
        reference::activate_row(activation, row, out);
    }
    for features in CpuFeatures::every_supported() {
        let mut out = vec![A::from_f32(7.0); expected.len()];
        activate(features, activation, intermediate_size, &input, &mut out).unwrap();
        for (found, expected) in out.iter().zip(&expected) {
            let (found, limit) = (f64::from(found.to_f32()), tolerance * (1.0 + expected.abs()));
            assert!((found - expected).abs() <= limit, "{activation}: {found}, not {expected}");
        }
    }
}

fn sweep(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 2003) as f32 / 2003.0 * 24.0 - 12.0).collect()
}

#[test]
fn every_function_agrees_with_its_definition() {
    let with_linear_beta = Activation::Situ { beta: 0.75, linear_beta: Some(3.0) };
    let named = Activation::NAMED.iter().map(|(_, activation)| *activation);
    for activation in named.chain([with_linear_beta]) {
        for intermediate_size in [1, 2, 127, 128, 129, 768] {
            let rows = sweep(3 * activation.input_columns(intermediate_size));
            check::<f32>(activation, intermediate_size, &rows, 3e-6);
            check::<bf16>(activation, intermediate_size, &rows, 1.0 / 256.0);
        }
    }
}

#[test]
fn no_rows_are_fine_and_wrong_shapes_are_named() {
    let features = CpuFeatures::detect();
    activate::<f32>(features, Activation::Silu, 4, &[], &mut []).unwrap();
    activate::<f32>(features, Activation::Silu, 0, &[], &mut []).unwrap();
    let wrong = activate(features, Activation::Silu, 2, &[0.0; 7], &mut [0.0; 4]);
    let expected = MoeError::Shape { what: "activation input", expected: 8, found: 7 };
    assert_eq!(wrong, Err(expected));
}

#[test]
fn extreme_inputs_neither_overflow_nor_hide_nan() {
    for (_, activation) in Activation::NAMED {
        let columns = activation.input_columns(2);
        let mut row = vec![-1e4; columns];
        row[..2].copy_from_slice(&[-1e4, f32::NAN]);
        for features in CpuFeatures::every_supported() {
            let mut out = [0.0f32; 2];
            activate(features, activation, 2, &row, &mut out).unwrap();
            let nan_feature = usize::from(activation.layout() != GateLayout::Interleaved);
            assert!(out[nan_feature].is_nan(), "{activation} hides NaN: {out:?}");
            assert!(!out[1 - nan_feature].is_nan(), "{activation} makes NaN: {out:?}");
        }
    }
}

#[test]
fn names_parse_and_unknown_names_list_the_known() {
    for (name, activation) in Activation::NAMED {
        assert_eq!(name.parse::<Activation>().unwrap(), activation);
        assert_eq!(activation.name(), name);
        activation.validate().unwrap();
    }
    assert_eq!("gelu_pytorch_tanh".parse::<Activation>().unwrap(), Activation::GeluTanh);
    let error = "silly".parse::<Activation>().unwrap_err().to_string();
    assert!(error.contains("silly") && error.contains("swigluoai_uninterleave"), "{error}");
}

#[test]
fn impossible_parameters_are_refused() {
    let ungated = Activation::SwigluOai { alpha: 1.0, limit: 1.0, layout: GateLayout::Ungated };
    let no_beta = Activation::Situ { beta: 0.0, linear_beta: None };
    let linear = Activation::Situ { beta: 1.0, linear_beta: Some(f32::INFINITY) };
    for bad in [ungated, no_beta, linear, Activation::SwigluStep { limit: f32::NAN }] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn rows_do_not_mix(rows in 1usize..5, features in 1usize..40, kind in 0usize..13) {
        let activation = Activation::NAMED[kind].1;
        let columns = activation.input_columns(features);
        let input = sweep(rows * columns);
        let mut together = vec![0.0; rows * features];
        let cpu = CpuFeatures::detect();
        activate(cpu, activation, features, &input, &mut together).unwrap();
        for (row, expected) in input.chunks(columns).zip(together.chunks(features)) {
            let mut alone = vec![0.0; features];
            activate(cpu, activation, features, row, &mut alone).unwrap();
            prop_assert_eq!(&alone[..], expected);
        }
    }
}
