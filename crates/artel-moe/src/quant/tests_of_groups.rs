use artel_device::HostBuffer;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::{LEAST_MAGNITUDE, quantized_row};
use super::reference::{e2m1_nearest, e2m1_value, e4m3_nearest, e8m0_value, grouped_number};
use super::*;

fn all_bytes() -> HostBuffer {
    HostBuffer::from_vec((0..=255u8).collect::<Vec<_>>())
}

fn rows_of<M: WeightMatrix>(matrix: &M) -> Vec<Vec<f32>> {
    let mut row = vec![7.0; matrix.columns()];
    let read = |index| {
        matrix.dequantize_row(index, &mut row);
        row.clone()
    };
    (0..matrix.rows()).map(read).collect()
}

/// Every number against the definition. A product of up to three float32 numbers of which one at most
/// is not a short one: rounded once or, where the last factor is 1, not at all.
fn check_dequantized<F: GroupedFormat>(matrix: &GroupedMatrix<F>) {
    for (row, found) in rows_of(matrix).iter().enumerate() {
        for (column, &found) in found.iter().enumerate() {
            let expected = grouped_number(matrix, row, column) as f32;
            let same = found.to_bits() == expected.to_bits() || found == 0.0 && expected == 0.0;
            assert!(same || found.is_nan() && expected.is_nan(), "{found}, not {expected}");
        }
    }
}

#[test]
fn all_codes_with_all_scales_dequantise_as_defined() {
    // 256 rows of 32 columns with all pairs of nibbles, a scale a row.
    let pairs: Vec<u8> =
        (0..256).flat_map(|row| (0..16u8).map(move |i| (row as u8) ^ (i * 17))).collect();
    let matrix = Mxfp4Matrix::new(HostBuffer::from_vec(pairs.clone()), all_bytes(), [256, 32]);
    check_dequantized(&matrix.unwrap());
    let scales: Vec<u8> = (0..=255u8).flat_map(|code| [code, code ^ 0x55]).collect();
    for global in [1.0, 3.7e-5] {
        let (codes, scales) = (HostBuffer::from_vec(pairs.clone()), scales.clone());
        let matrix = Nvfp4Matrix::new(codes, HostBuffer::from_vec(scales), global, [256, 32]);
        check_dequantized(&matrix.unwrap());
    }
    let codes: Vec<u8> = (0..256 * 32).map(|i| (i % 251) as u8).collect();
    check_dequantized(
        &Mxfp8Matrix::new(HostBuffer::from_vec(codes), all_bytes(), [256, 32]).unwrap(),
    );
    let scales = HostBuffer::from_vec(vec![0.0123f32, 1.0, 3.0e-9, 7.5e4, 1e-38, 0.0, 0.5, 3.0]);
    for zeros in [None, Some([0, 3, 8, 15, 7, 1, 9, 14])] {
        let plain = Int4Matrix::new(all_bytes(), scales.clone(), [4, 128], 64).unwrap();
        check_dequantized(&zeros.map_or(plain.clone(), |zeros| plain.with_zeros(&zeros).unwrap()));
        let plain = Int8GroupMatrix::new(all_bytes(), scales.clone(), [4, 64], 32).unwrap();
        let zeros = zeros.map(|zeros| zeros.map(|zero| zero * 17));
        check_dequantized(&zeros.map_or(plain.clone(), |zeros| plain.with_zeros(&zeros).unwrap()));
    }
}

#[test]
fn even_columns_are_in_the_low_halves_of_bytes() {
    let codes = HostBuffer::from_vec(vec![0x21u8, 0xf8, 0x07]);
    let matrix =
        Mxfp4Matrix::new(codes.clone(), HostBuffer::from_vec(vec![128u8]), [1, 5]).unwrap();
    assert_eq!(rows_of(&matrix), [[1.0, 2.0, -0.0, -12.0, 12.0]]);
    let scale = HostBuffer::from_vec(vec![2f32]);
    let matrix = Int4Matrix::new(codes, scale, [1, 5], 128).unwrap();
    assert_eq!(rows_of(&matrix), [[-14.0, -12.0, 0.0, 14.0, -2.0]]);
    let matrix = matrix.with_zeros(&[1]).unwrap();
    assert_eq!(rows_of(&matrix), [[0.0, 2.0, 14.0, 28.0, 12.0]]);
    assert_eq!(matrix.zero_points(), Some(&[249u8][..]));
}

proptest! {
    #[test]
    fn any_number_becomes_the_nearest_fp4_code(bits in any::<u32>(), small in -8f32..8.0) {
        for value in [f32::from_bits(bits), small] {
            if !value.is_nan() {
                prop_assert_eq!(e2m1_from_f32(value), e2m1_nearest(f64::from(value)));
            }
        }
    }

    #[test]
    fn int8_rounds_halves_away_from_zero(bits in any::<u32>(), half in -260i32..260, step in -1i32..2) {
        let tie = half as f32 / 2.0;
        let tie = if step < 0 { tie.next_down() } else if step > 0 { tie.next_up() } else { tie };
        for value in [f32::from_bits(bits), tie] {
            let expected = value.clamp(-127.0, 127.0).round() as i8;
            prop_assert_eq!(int8_from_f32(value), expected, "{}", value);
        }
    }
}

/// Numbers of all sizes with zeros, ties, infinities and NaN among them; row 3 is zero, and row 4 has
/// the largest finite numbers.
fn numbers(row: usize, column: usize) -> f32 {
    match (row, column) {
        (0, 5) => f32::NAN,
        (1, 7) => f32::INFINITY,
        (1, 9) => f32::NEG_INFINITY,
        (2, 40) => 1e-40,
        (3, _) | (_, 3) => 0.0,
        (4, _) => f32::MAX / (1.0 + column as f32),
        (5, _) => [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0][column % 8],
        _ => (column as f32 * 1.3 - 30.5) * 2f32.powi(row as i32 * 2 - 20),
    }
}

const SHAPE: [usize; 2] = [20, 75];

fn write_numbers(row: usize, out: &mut [f32]) {
    out.iter_mut().enumerate().for_each(|(column, out)| *out = numbers(row, column));
}

fn largest_of_group(row: usize, columns: Range<usize>) -> f32 {
    columns
        .filter(|&column| column < SHAPE[1])
        .map(|column| numbers(row, column).abs())
        .fold(0.0, f32::max)
}

fn groups(group: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    (0..SHAPE[0]).flat_map(move |row| {
        (0..SHAPE[1].div_ceil(group)).map(move |index| (row, index * group..(index + 1) * group))
    })
}

/// Codes and zero padding as the definition has them for the scales that the matrix has.
fn check_codes<F: GroupedFormat>(matrix: &GroupedMatrix<F>, code: impl Fn(f32, usize) -> u8) {
    let [rows, columns] = SHAPE;
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let place = matrix.scale_grid().index(row, column, columns);
        let expected = code(numbers(row, column), place);
        let found = match F::CODE.bits() {
            4 => matrix.numbers()[row * columns.div_ceil(2) + column / 2] >> (column % 2 * 4) & 15,
            _ => matrix.numbers()[row * columns + column],
        };
        assert_eq!(found, expected, "{} [{row}, {column}] {}", F::NAME, numbers(row, column));
    }
}

#[test]
fn mxfp4_quantises_as_defined() {
    let matrix = Mxfp4Matrix::quantize(SHAPE[0], SHAPE[1], Fit::Weights, write_numbers).unwrap();
    for (place, (row, columns)) in groups(32).enumerate() {
        let bits = (largest_of_group(row, columns).to_bits() + 0x20_0000) & 0x7f80_0000;
        let expected = (i64::from(bits >> 23) - 2).max(0);
        assert_eq!(i64::from(matrix.scales().bytes()[place]), expected, "row {row}");
    }
    check_codes(&matrix, |value, place| match value.is_nan() {
        true => 7,
        false => e2m1_nearest(f64::from(value) / e8m0_value(matrix.scales().bytes()[place])),
    });
}

#[test]
fn mxfp8_quantises_as_defined() {
    let matrix = Mxfp8Matrix::quantize(SHAPE[0], SHAPE[1], Fit::Weights, write_numbers).unwrap();
    for (place, (row, columns)) in groups(32).enumerate() {
        let (code, largest) = (matrix.scales().bytes()[place], largest_of_group(row, columns));
        if largest.is_finite() {
            assert!(f64::from(largest) <= 448.0 * e8m0_value(code), "row {row}: {code}");
            assert!(code == 0 || f64::from(largest) > 448.0 * e8m0_value(code - 1), "row {row}");
        }
    }
    check_codes(&matrix, |value, place| {
        e4m3_nearest(f64::from(value) / e8m0_value(matrix.scales().bytes()[place]))
    });
}

#[test]
fn nvfp4_quantises_as_defined() {
    // Infinities and the largest numbers would leave nothing of the others.
    let tame = |value: f32| if value.abs() > 1e30 { 0.0 } else { value };
    let write = |row: usize, out: &mut [f32]| {
        write_numbers(row, out);
        out.iter_mut().for_each(|out| *out = tame(*out));
    };
    let matrix = Nvfp4Matrix::quantize(SHAPE[0], SHAPE[1], Fit::Weights, write).unwrap();
    let largest = groups(16).map(|(row, columns)| {
        columns.filter(|&c| c < SHAPE[1]).map(|c| tame(numbers(row, c)).abs()).fold(0.0, f32::max)
    });
    let largest: Vec<f32> = largest.collect();
    let encode = 448.0 * 6.0 / largest.iter().fold(0.0, |a: f32, b| a.max(*b));
    assert_eq!(matrix.global_scale(), Some(1.0 / encode));
    for (place, largest) in largest.iter().enumerate() {
        let expected = e4m3_nearest(f64::from(encode * largest / 6.0));
        assert_eq!(matrix.scales().bytes()[place], expected);
    }
    check_codes(&matrix, |value, place| {
        let scale = matrix.scales().get(place);
        match (tame(value), scale) {
            (_, 0.0) => 0,
            (value, _) if value.is_nan() => 7,
            (value, scale) => e2m1_nearest(f64::from(value * encode / scale)),
        }
    });
}

#[test]
fn int8_quantises_as_defined() {
    let code = |value: f32, scale: f32| {
        let exact = f64::from(value / scale);
        if exact.is_nan() { 0 } else { exact.clamp(-127.0, 127.0).round() as i8 as u8 }
    };
    let matrix = Int8GroupMatrix::quantize(SHAPE, 32, Fit::Weights, write_numbers).unwrap();
    for (place, (row, columns)) in groups(32).enumerate() {
        let exact = largest_of_group(row, columns) / 127.0;
        let expected = if exact.is_normal() { exact } else { 1.0 };
        assert_eq!(matrix.scales().get(place), expected, "row {row}");
    }
    check_codes(&matrix, |value, place| code(value, matrix.scales().get(place)));
    let matrix =
        Int8ChannelMatrix::quantize(SHAPE[0], SHAPE[1], Fit::Weights, write_numbers).unwrap();
    for (index, &found) in matrix.numbers().iter().enumerate() {
        let (row, column) = (index / SHAPE[1], index % SHAPE[1]);
        assert_eq!(found, code(numbers(row, column), matrix.scales().get(row)));
    }
}

#[test]
fn int4_quantises_to_the_nearest_codes_and_zero_points_help() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let values: Vec<f32> = (0..64 * 100).map(|_| rng.random_range(-0.2..1.0)).collect();
    let write = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * 100..][..100]);
    let mut errors = Vec::new();
    for zero_points in [ZeroPoints::None, ZeroPoints::Fitted] {
        let matrix = Int4Matrix::quantize([64, 100], 32, zero_points, Fit::Weights, write).unwrap();
        assert_eq!(matrix.zero_points().is_some(), zero_points == ZeroPoints::Fitted);
        let mut error = 0.0;
        for (row, found) in rows_of(&matrix).iter().enumerate() {
            for (column, &found) in found.iter().enumerate() {
                let place = matrix.scale_grid().index(row, column, 100);
                let (scale, exact) = (matrix.scales().get(place), values[row * 100 + column]);
                let zero = matrix.zero_points().map_or(0, |all| all[place] as i8);
                let ends =
                    [-8 - i32::from(zero), 7 - i32::from(zero)].map(|end| end as f32 * scale);
                let inside = (ends[0]..=ends[1]).contains(&exact);
                let nearest = if inside { scale / 2.0 } else { f32::INFINITY };
                assert!((found - exact).abs() <= nearest * 1.0001);
                error += (found - exact).powi(2);
            }
        }
        errors.push(error);
    }
    assert!(errors[1] < 0.6 * errors[0], "{errors:?}");
}

#[test]
fn zeros_and_nan_have_codes() {
    let nothing = |_: usize, out: &mut [f32]| out.fill(0.0);
    for format in Format::ALL {
        let zeros = AnyMatrix::F32(DenseMatrix::quantize(3, 50, nothing).unwrap());
        let found = zeros.convert(format).unwrap();
        let mut row = vec![7.0; 50];
        found.dequantize_row(2, &mut row);
        assert_eq!(row, vec![0.0; 50], "{format}");
        assert_eq!((found.rows(), found.columns(), found.format()), (3, 50, format));
    }
    let nan = |_: usize, out: &mut [f32]| out.copy_from_slice(&[f32::NAN, 1.0, -7.0, 7.0]);
    let matrix = Int4Matrix::quantize([1, 4], 128, ZeroPoints::None, Fit::Weights, nan).unwrap();
    assert_eq!(matrix.numbers()[0] & 15, 8);
}

/// Cut out and dequantised or dequantised and cut out.
fn check_cuts(matrix: &AnyMatrix, rows: Range<usize>, columns: Range<usize>) {
    let cut = matrix.cut_rows(rows.clone()).unwrap().cut_columns(columns.clone()).unwrap();
    assert_eq!((cut.rows(), cut.columns()), (rows.len(), columns.len()));
    let (mut found, mut expected) = (vec![0.0; columns.len()], vec![0.0; matrix.columns()]);
    for (index, row) in rows.enumerate() {
        cut.dequantize_row(index, &mut found);
        matrix.dequantize_row(row, &mut expected);
        assert_eq!(found, expected[columns.clone()], "{} {columns:?}", matrix.format());
    }
}

#[test]
fn parts_have_the_numbers_of_the_whole_or_are_refused_by_name() {
    let write = |row: usize, out: &mut [f32]| {
        out.iter_mut()
            .enumerate()
            .for_each(|(k, out)| *out = ((row * 7 + k * 13) % 31) as f32 - 15.0);
    };
    let dense = AnyMatrix::F32(DenseMatrix::quantize(6, 400, write).unwrap());
    let zeros =
        Int4Matrix::quantize([6, 400], 64, ZeroPoints::Fitted, Fit::Weights, write).unwrap();
    let all = Format::ALL.map(|format| dense.convert(format).unwrap());
    for matrix in all.into_iter().chain([AnyMatrix::Int4W4A16(zeros)]) {
        for columns in [0..400, 16..400, 192..384, 64..65, 128..133, 320..320, 384..400, 32..352] {
            check_cuts(&matrix, 1..4, columns);
        }
        check_cuts(&matrix, 3..3, 0..33);
        assert!(matrix.cut_columns(3..401).is_err() && matrix.cut_rows(3..7).is_err());
    }
    let refused = dense.convert(Format::Nvfp4).unwrap().cut_columns(8..40).unwrap_err();
    assert!(refused.to_string().contains("first column of a shard is 8"), "{refused}");
    let whole_row =
        Int4Matrix::quantize([2, 400], 400, ZeroPoints::None, Fit::Weights, write).unwrap();
    check_cuts(&AnyMatrix::Int4W4A16(whole_row.clone()), 0..2, 6..11);
    assert!(whole_row.cut_columns(7..11).is_err());
}

#[test]
fn bytes_that_do_not_fit_are_errors() {
    let bytes = |count| HostBuffer::from_vec(vec![0u8; count]);
    let floats = |count| HostBuffer::from_vec(vec![1f32; count]);
    assert!(Mxfp4Matrix::new(bytes(32), bytes(2), [2, 32]).is_ok());
    assert!(Mxfp4Matrix::new(bytes(31), bytes(2), [2, 32]).is_err());
    assert!(Mxfp4Matrix::new(bytes(32), bytes(3), [2, 32]).is_err());
    assert!(Mxfp8Matrix::new(bytes(64), bytes(2), [2, 32]).is_ok());
    assert!(Mxfp8Matrix::new(bytes(64), bytes(2), [usize::MAX, usize::MAX]).is_err());
    assert!(Nvfp4Matrix::new(bytes(32), bytes(4), f32::NAN, [2, 32]).is_err());
    assert!(Int8ChannelMatrix::new(bytes(4), floats(2), 2, 2).is_ok());
    assert!(Int8ChannelMatrix::new(bytes(4), floats(1), 2, 2).is_err());
    assert!(Int8ChannelMatrix::new(bytes(0), floats(0), 0, 200_000).is_err());
    let int4 = |group| Int4Matrix::new(bytes(192), floats(1024), [4, 96], group);
    for group in [0, 1, 8, 24, 48, 95] {
        let error = int4(group).unwrap_err().to_string();
        assert!(error.contains("share a scale") && error.contains("power of two"), "{error}");
    }
    let int4 = Int4Matrix::new(bytes(192), floats(12), [4, 96], 32).unwrap();
    assert!(int4.clone().with_zeros(&[3; 11]).is_err());
    assert!(int4.clone().with_zeros(&[16; 12]).unwrap_err().to_string().contains("0 to 15"));
    assert_eq!(int4.bytes(), 192 + 48);
    assert_eq!(int4.with_zeros(&[3; 12]).unwrap().bytes(), 192 + 48 + 12);
}

#[test]
fn int8_activations_quantise_as_defined() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (columns, limit) in [(0, 1.0), (1, 5.0), (130, 1e-12), (300, 4.0), (256, 1e30)] {
        let mut row: Vec<bf16> =
            (0..columns).map(|_| bf16::from_f32(rng.random_range(-limit..limit))).collect();
        if columns > 200 {
            (row[3], row[150], row[151]) = (bf16::ZERO, bf16::NAN, bf16::NEG_ZERO);
        }
        let wide: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
        let expected = quantized_row(ActivationScales::Int8Row, None, LEAST_MAGNITUDE, &wide);
        let mut codes = vec![7i8; columns];
        let scale = quantize_row_to_int8(&row, &mut codes);
        for (code, expected) in codes.iter().zip(expected) {
            assert_eq!(f64::from(*code) * f64::from(scale), expected);
        }
    }
    assert_eq!(e2m1_value(15), -6.0);
}
