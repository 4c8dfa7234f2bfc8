use artel_device::HostBuffer;
use half::bf16;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::{
    LEAST_MAGNITUDE, dequantize, e4m3_nearest, e4m3_value, quantize, quantized_row,
};
use super::*;
use crate::weights::{ExpertMatrices, Stacked};

proptest! {
    #[test]
    fn bfloat16_rounds_as_the_standard_type_does(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
        prop_assert!(ours.to_bits() == theirs.to_bits());
        let (wide, expected) = (Element::to_f32(ours), ours.to_f32());
        prop_assert!(wide == expected || wide.is_nan() && expected.is_nan());
    }

    #[test]
    fn any_number_becomes_the_nearest_code(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        prop_assert_eq!(e4m3_from_f32(value), e4m3_nearest(f64::from(value)));
    }

    #[test]
    fn numbers_in_range_become_the_nearest_code(value in -600f32..600.0, shift in -20i32..1) {
        let value = value * 2f32.powi(shift);
        prop_assert_eq!(e4m3_from_f32(value), e4m3_nearest(f64::from(value)));
    }
}

#[test]
fn codes_and_ties_are_those_of_the_definition() {
    for code in 0..=255u8 {
        let (found, expected) = (e4m3_to_f32(code), e4m3_value(code));
        assert!(f64::from(found) == expected || found.is_nan() && expected.is_nan());
        assert!(found.is_nan() || found.is_sign_negative() == (code >= 128), "{code:#x}");
        let magnitude = code & 0x7f;
        if magnitude < 0x7e {
            let sign = if code < 128 { 1.0 } else { -1.0 };
            let tie = sign * f32::midpoint(e4m3_to_f32(magnitude), e4m3_to_f32(magnitude + 1));
            for value in [tie, tie.next_up(), tie.next_down()] {
                assert_eq!(e4m3_from_f32(value), e4m3_nearest(f64::from(value)), "{value}");
            }
        }
    }
    let special = [0.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 448.0, 464.0, 480.0];
    for value in special.into_iter().flat_map(|value| [value, -value]) {
        assert_eq!(e4m3_from_f32(value), e4m3_nearest(f64::from(value)), "{value}");
    }
}

/// All codes and scales of every size.
const SCALES: [f32; 6] = [1.0, 0.0123, 3.0e-9, 7.5e4, f32::MIN_POSITIVE, 0.0];

fn all_codes() -> HostBuffer {
    HostBuffer::from_vec((0..=255u8).collect::<Vec<_>>())
}

/// Every row against the definition, bit by bit but for the bits of a NaN.
fn check_dequantized<M: WeightMatrix>(matrix: &M, scale: impl Fn(usize, usize) -> f32) {
    let columns = matrix.columns();
    let mut found = vec![7.0; columns];
    for row in 0..matrix.rows() {
        matrix.dequantize_row(row, &mut found);
        for (column, found) in found.iter().enumerate() {
            let code = matrix.numbers()[row * columns + column];
            let expected = dequantize(code, scale(row, column)) as f32;
            let same = found.to_bits() == expected.to_bits();
            assert!(same || found.is_nan() && expected.is_nan(), "{found}, not {expected}");
        }
    }
}

#[test]
fn all_codes_dequantise_as_defined() {
    for scale in SCALES {
        let matrix = Fp8TensorMatrix::new(all_codes(), scale, 4, 64).unwrap();
        check_dequantized(&matrix, |_, _| scale);
        let matrix =
            Fp8BlockMatrix::new(all_codes(), HostBuffer::from_vec(vec![scale]), 16, 16).unwrap();
        check_dequantized(&matrix, |_, _| scale);
    }
    let scales = HostBuffer::from_vec(SCALES[..4].to_vec());
    let matrix = Fp8ChannelMatrix::new(all_codes(), scales, 4, 64).unwrap();
    check_dequantized(&matrix, |row, _| SCALES[row]);
}

/// Numbers with zeros, ties, NaN and infinities among them.
fn numbers(row: usize, column: usize) -> f32 {
    match (row, column) {
        (0..=127, 128..=255) | (128, _) => 0.0,
        (129, 256) => f32::NAN,
        (2, 3) => 1e-40,
        _ => (row as f32 - 60.0) * (column as f32 - 100.0),
    }
}

fn write_numbers(row: usize, out: &mut [f32]) {
    out.iter_mut().enumerate().for_each(|(column, out)| *out = numbers(row, column));
}

/// The codes are those of the definition for the scales that the matrix has.
fn check_quantized<M: WeightMatrix>(matrix: &M) {
    let (grid, columns) = (matrix.scale_grid(), matrix.columns());
    for (index, &code) in matrix.numbers().iter().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let scale = matrix.scales().get(grid.index(row, column, columns));
        assert_eq!(code, quantize(numbers(row, column), scale), "row {row}, column {column}");
    }
}

fn largest(rows: Range<usize>, columns: Range<usize>) -> f32 {
    let all = rows.flat_map(|row| columns.clone().map(move |column| numbers(row, column)));
    all.fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn weights_quantise_as_defined() {
    let (rows, columns) = (130, 257);
    let matrix = Fp8BlockMatrix::quantize(rows, columns, Fit::Weights, write_numbers).unwrap();
    check_quantized(&matrix);
    assert_eq!(matrix.scales().get(1), 1.0);
    assert_eq!(matrix.scales().get(3), largest(128..130, 0..128) / E4M3_MAX);
    let matrix = Fp8TensorMatrix::quantize(rows, columns, Fit::Weights, write_numbers).unwrap();
    check_quantized(&matrix);
    assert_eq!(matrix.scales(), Scales::F32(&[largest(0..130, 0..257) / E4M3_MAX]));
    let matrix = Fp8ChannelMatrix::quantize(rows, columns, Fit::Weights, write_numbers).unwrap();
    check_quantized(&matrix);
    assert_eq!((matrix.scales().get(60), matrix.scales().get(128)), (1.0, 1.0));
    assert_eq!(matrix.scales().get(129), largest(129..130, 0..257) / E4M3_MAX);
    let infinite = Fp8TensorMatrix::quantize(1, 2, Fit::Weights, |_, out| {
        out.copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY]);
    });
    assert_eq!(infinite.unwrap().numbers(), [0x7e, 0xfe]);
}

#[test]
fn sizes_that_do_not_fit_are_errors_and_empty_ones_are_not() {
    let nothing = |_: usize, _: &mut [f32]| {};
    assert!(Fp8BlockMatrix::quantize(usize::MAX, 2, Fit::Weights, nothing).is_err());
    assert!(Fp8TensorMatrix::quantize(usize::MAX, 2, Fit::Weights, nothing).is_err());
    assert!(Fp8ChannelMatrix::quantize(usize::MAX, 2, Fit::Weights, nothing).is_err());
    assert_eq!(Fp8BlockMatrix::quantize(0, 5, Fit::Weights, nothing).unwrap().bytes(), 0);
    assert_eq!(Fp8TensorMatrix::quantize(0, 5, Fit::Weights, nothing).unwrap().bytes(), 4);
    assert_eq!(Fp8ChannelMatrix::quantize(5, 0, Fit::Weights, nothing).unwrap().bytes(), 20);
    assert!(Fp8TensorMatrix::new(all_codes(), f32::NAN, 16, 16).is_err());
    assert!(Fp8TensorMatrix::new(all_codes(), 1.0, 16, 15).is_err());
    let scales = HostBuffer::from_vec(vec![1f32; 15]);
    assert!(Fp8ChannelMatrix::new(all_codes(), scales, 16, 16).is_err());
    let matrix = Fp8TensorMatrix::new(all_codes(), 1.0, 16, 16).unwrap();
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matrix.clone().with_input_scale(wrong).is_err());
    }
}

#[test]
fn input_scales_are_the_largest_or_missing_in_all() {
    let matrix = Fp8TensorMatrix::new(all_codes(), 1.0, 16, 16).unwrap();
    let scaled = |scale| matrix.clone().with_input_scale(scale).unwrap();
    let experts = |parts: [Fp8TensorMatrix; 2]| {
        let [a, b] = parts.map(|part| Stacked::new(vec![part]).unwrap());
        ExpertMatrices::<Fp8Tensor>::new(vec![a, b])
    };
    assert_eq!(experts([scaled(0.5), scaled(2.0)]).unwrap().input_scale(), Some(2.0));
    assert_eq!(experts([matrix.clone(), matrix.clone()]).unwrap().input_scale(), None);
    assert!(experts([scaled(0.5), matrix.clone()]).is_err());
    assert!(experts([matrix.clone(), scaled(0.5)]).is_err());
}

/// Activations of `row` as kernels quantise them.
fn quantize_activations(
    scales: ActivationScales,
    input_scale: Option<f32>,
    row: &[bf16],
) -> Vec<f32> {
    let row_scale = row_scale(scales, input_scale, || activation_scale(row));
    let quantized = row.chunks(BLOCK).flat_map(|group| {
        let mut out = vec![0.0; group.len()];
        let scale = quantize_group(group, row_scale, &mut out);
        out.into_iter().map(move |out| (f64::from(out) * f64::from(scale)) as f32)
    });
    quantized.collect()
}

#[test]
fn activations_quantise_as_defined() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (columns, limit) in [(0, 1.0), (1, 5.0), (130, 1e-12), (300, 4.0), (256, 1e30)] {
        let mut row: Vec<f32> = (0..columns).map(|_| rng.random_range(-limit..limit)).collect();
        if columns > 200 {
            (row[3], row[150], row[151], row[152]) = (0.0, f32::NAN, -0.0, f32::INFINITY);
        }
        let narrow: Vec<bf16> = row.iter().map(|&x| Element::from_f32(x)).collect();
        let row: Vec<f32> = narrow.iter().map(|&x| Element::to_f32(x)).collect();
        for scales in [ActivationScales::Group, ActivationScales::Row] {
            for input_scale in [None, Some(0.013)] {
                let expected = quantized_row(scales, input_scale, LEAST_MAGNITUDE, &row);
                let found = quantize_activations(scales, input_scale, &narrow);
                for (found, expected) in found.iter().zip(expected) {
                    let same = found.to_bits() == (expected as f32).to_bits();
                    assert!(same || found.is_nan() && expected.is_nan(), "{found}, {expected}");
                }
            }
        }
    }
}

#[test]
fn segments_cover_all_columns_once_and_cross_no_boundary() {
    for offset in [0, 1, 64, 127] {
        for columns in [0, 1, 63, 64, 65, 127, 128, 129, 192, 256, 300] {
            let cut =
                Fp8BlockMatrix::quantize(1, offset + columns, Fit::Weights, |_, out| out.fill(1.0));
            let cut = cut.unwrap().cut_columns(offset..offset + columns).unwrap();
            let segments = Fp8Panel::new(&cut, 0..1).segments;
            let mut next = 0;
            for segment in segments.iter() {
                let Range { start, end } = segment.columns.clone();
                assert!(start == next && end > start && end <= columns);
                assert_eq!([start / BLOCK, (end - 1) / BLOCK], [segment.group; 2]);
                let blocks = [(offset + start) / BLOCK, (offset + end - 1) / BLOCK];
                assert_eq!(blocks, [segment.scale; 2]);
                next = end;
            }
            assert_eq!(next, columns);
        }
    }
}

#[test]
fn formats_have_names_that_parse() {
    for format in Format::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    assert!("fp8".parse::<Format>().is_err());
}
