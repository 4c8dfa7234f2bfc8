use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// More than one block either way, and no whole number of groups.
const SHAPE: [usize; 2] = [140, 300];

/// Numbers from a bell with some far out, rows of all sizes, and a row of zeros.
fn values() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut value = |place: usize| {
        let bell = (0..6).map(|_| rng.random_range(-1f32..1.0)).sum::<f32>();
        let far = if rng.random_range(0..50) == 0 { 5.0 } else { 1.0 };
        let row = place / SHAPE[1];
        if row == 7 { 0.0 } else { bell * far * 2f32.powi(row as i32 % 9 - 4) }
    };
    (0..SHAPE[0] * SHAPE[1]).map(&mut value).collect()
}

/// Most columns hardly count, some a thousand times as much, and some not at all.
fn mean_squares() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let mut one = |_| match rng.random_range(0..10) {
        0 => 0.0,
        1 => 30.0,
        _ => rng.random_range(0.01f32..0.1),
    };
    (0..SHAPE[1]).map(&mut one).collect()
}

fn dense(values: &[f32]) -> AnyMatrix {
    let write = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&values[row * SHAPE[1]..(row + 1) * SHAPE[1]]);
    };
    AnyMatrix::F32(DenseMatrix::quantize(SHAPE[0], SHAPE[1], write).unwrap())
}

/// All formats with codes, and the ways to quantise that options choose.
fn quantized(values: &[f32], fit: Fit<'_>) -> Vec<(String, AnyMatrix)> {
    let dense = dense(values);
    let plain = [Format::F32, Format::F16, Format::Bf16];
    let formats = Format::ALL.into_iter().filter(|format| !plain.contains(format));
    let of_format =
        |format: Format| (format.name().to_owned(), dense.convert_fitted(format, fit).unwrap());
    let row = |row: usize, out: &mut [f32]| dense.dequantize_row(row, out);
    let zeros = Int4Matrix::quantize(SHAPE, 32, ZeroPoints::Fitted, fit, row).unwrap();
    let rows = Int4Matrix::quantize(SHAPE, SHAPE[1], ZeroPoints::None, fit, row).unwrap();
    let int8 = Int8GroupMatrix::quantize(SHAPE, 16, fit, row).unwrap();
    let others = [
        ("int4 with zero points".to_owned(), AnyMatrix::Int4W4A16(zeros)),
        ("int4 by row".to_owned(), AnyMatrix::Int4W4A16(rows)),
        ("int8 in groups of 16".to_owned(), AnyMatrix::Int8W8A16(int8)),
    ];
    formats.map(of_format).chain(others).collect()
}

fn dequantized(matrix: &AnyMatrix) -> Vec<f32> {
    let mut values = vec![0.0; SHAPE[0] * SHAPE[1]];
    for (row, out) in values.chunks_exact_mut(SHAPE[1]).enumerate() {
        matrix.dequantize_row(row, out);
    }
    values
}

/// `Σ mean_square[k] (found - exact)^2`, number by number.
fn weighted_error(found: &[f32], exact: &[f32], mean_squares: &[f32]) -> f64 {
    let lost = found.iter().zip(exact).zip(mean_squares.iter().cycle());
    lost.map(|((a, b), m)| f64::from(*m) * (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

#[test]
fn inputs_make_the_error_of_outputs_smaller_in_every_format() {
    let (values, mean_squares) = (values(), mean_squares());
    let usual = quantized(&values, Fit::Weights);
    let fitted = quantized(&values, Fit::Inputs(&mean_squares));
    for ((name, usual), (_, fitted)) in usual.iter().zip(&fitted) {
        let (usual, fitted) = (dequantized(usual), dequantized(fitted));
        let error = |found: &[f32]| weighted_error(found, &values, &mean_squares);
        // Codes of MXFP8 are floating-point numbers: the next power of two moves hardly any.
        let limit = if name == "mxfp8" { 1.0 } else { 0.99 };
        let (found, usual_error) = (error(&fitted), error(&usual));
        assert!(found <= limit * usual_error, "{name}: {found}, not {usual_error}");
        // Row by row as well, where a scale does not reach over rows.
        if !["fp8-tensor", "fp8-block128"].contains(&name.as_str()) {
            for (row, exact) in values.chunks_exact(SHAPE[1]).enumerate() {
                let range = row * SHAPE[1]..(row + 1) * SHAPE[1];
                let error = |all: &[f32]| weighted_error(&all[range.clone()], exact, &mean_squares);
                let (fitted, usual) = (error(&fitted), error(&usual));
                assert!(fitted <= usual * (1.0 + 1e-5), "{name} row {row}: {fitted} {usual}");
            }
        }
    }
}

#[test]
fn what_is_chosen_is_the_best_of_the_candidates() {
    let (values, mean_squares) = (values(), mean_squares());
    let fitted = dense(&values).convert_fitted(Format::Mxfp4, Fit::Inputs(&mean_squares)).unwrap();
    let AnyMatrix::Mxfp4(fitted) = fitted else { panic!("this is a bug: another format") };
    let usual = dense(&values).convert(Format::Mxfp4).unwrap();
    let AnyMatrix::Mxfp4(usual) = usual else { panic!("this is a bug: another format") };
    let groups = SHAPE[1].div_ceil(32);
    let mut moved = 0;
    for place in 0..SHAPE[0] * groups {
        let (row, columns) = (place / groups, place % groups * 32);
        let columns = columns..SHAPE[1].min(columns + 32);
        let error = |code: u8| {
            let scale = reference::e8m0_value(code);
            let lost = |k: usize| {
                let exact = f64::from(values[row * SHAPE[1] + k]);
                let code = reference::e2m1_nearest(exact / scale);
                f64::from(mean_squares[k]) * (reference::e2m1_value(code) * scale - exact).powi(2)
            };
            columns.clone().map(lost).sum::<f64>()
        };
        let codes = [usual.scales().bytes()[place], fitted.scales().bytes()[place]];
        let tried = [codes[0], codes[0].saturating_sub(1), codes[0] + 1];
        assert!(tried.contains(&codes[1]));
        assert!(tried.iter().all(|&code| error(codes[1]) <= error(code) * (1.0 + 1e-5)));
        moved += usize::from(codes[0] != codes[1]);
    }
    assert!(moved > 0);
}

#[test]
fn inputs_that_say_nothing_leave_everything_as_it_was() {
    let values = values();
    let usual = quantized(&values, Fit::Weights);
    let fitted = quantized(&values, Fit::Inputs(&vec![0.0; SHAPE[1]]));
    for ((name, usual), (_, fitted)) in usual.iter().zip(&fitted) {
        assert_eq!(dequantized(usual), dequantized(fitted), "{name}");
    }
}

#[test]
fn numbers_that_are_none_and_the_ends_of_all_numbers_are_quantised_as_usual() {
    let mut values = values();
    (values[3], values[400], values[700]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    values[1200..1500].fill(1e-40);
    values[1500..1800].fill(f32::MAX);
    let usual = quantized(&values, Fit::Weights);
    let fitted = quantized(&values, Fit::Inputs(&mean_squares()));
    for ((name, usual), (_, fitted)) in usual.iter().zip(&fitted) {
        let (usual, fitted) = (dequantized(usual), dequantized(fitted));
        assert!(fitted[1200..1500].iter().all(|number| number.abs() < 1e-30), "{name}");
        for place in [3, 400, 700, 1500] {
            let (a, b) = (usual[place], fitted[place]);
            assert!(a == b || a.is_nan() && b.is_nan() || place == 1500 && b.is_finite(), "{name}");
        }
    }
}

#[test]
fn mean_squares_of_another_matrix_are_refused() {
    let dense = dense(&values());
    for format in Format::ALL.into_iter().filter(|format| dense.format() != *format) {
        let short = dense.convert_fitted(format, Fit::Inputs(&[1.0; 3]));
        let mut unsound = vec![1.0; SHAPE[1]];
        unsound[17] = -1.0;
        let negative = dense.convert_fitted(format, Fit::Inputs(&unsound));
        if [Format::F16, Format::Bf16].contains(&format) {
            assert!(short.is_ok() && negative.is_ok(), "numbers without scales do not ask");
            continue;
        }
        assert!(short.unwrap_err().to_string().contains("mean squares of inputs"), "{format}");
        let why = negative.unwrap_err().to_string();
        assert!(why.contains("17") && why.contains("not negative"), "{format}: {why}");
    }
}
