use proptest::prelude::*;

use super::{RmsNorm, reference};
use crate::LayersError;

/// A norm whose weights differ from each other.
fn norm(width: usize) -> RmsNorm {
    let weight = (0..width).map(|index| 0.5 + index as f32 / width as f32).collect();
    RmsNorm::new(weight, 1e-6).unwrap()
}

fn rows(elements: usize) -> Vec<f32> {
    (0..elements).map(|index| ((index * 37 % 101) as f32 - 50.0) / 17.0).collect()
}

/// Every form agrees with the definition.
fn check(norm: &RmsNorm, rows: &[f32]) {
    let expected = reference::forward(norm, rows);
    let mut out = vec![f32::NAN; rows.len()];
    norm.forward(rows, &mut out).unwrap();
    assert_close(&out, &expected);

    let mut in_place = rows.to_vec();
    norm.forward_in_place(&mut in_place).unwrap();
    assert_eq!(in_place, out);

    let mut hidden = vec![0.25; rows.len()];
    let delta: Vec<f32> = rows.iter().map(|value| value - 0.25).collect();
    norm.add_and_forward(&delta, &mut hidden, &mut out).unwrap();
    let sum: Vec<f32> = delta.iter().map(|value| 0.25 + value).collect();
    assert_eq!(hidden, sum);
    assert_close(&out, &reference::forward(norm, &sum));
}

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 2e-6 * expected.abs().max(1e-3), "{found} for {expected}");
    }
}

#[test]
fn no_token_one_token_and_odd_widths() {
    for (tokens, width) in [(0, 4), (1, 1), (1, 3), (1, 3072), (7, 129), (3, 16)] {
        check(&norm(width), &rows(tokens * width));
    }
}

#[test]
fn both_sides_of_the_switch_to_threads() {
    for tokens in [63, 64, 65] {
        check(&norm(1024), &rows(tokens * 1024));
    }
}

#[test]
fn a_row_of_zeros_stays_zero() {
    let mut out = [1.0; 4];
    norm(4).forward(&[0.0; 4], &mut out).unwrap();
    assert_eq!(out, [0.0; 4]);
}

#[test]
fn the_example_of_the_documentation() {
    let norm = RmsNorm::new(vec![1.0; 2], 0.0).unwrap();
    let mut row = [3.0, 4.0];
    norm.forward_in_place(&mut row).unwrap();
    assert!((row[0] - 0.8485).abs() < 1e-4 && (row[1] - 1.1314).abs() < 1e-4, "{row:?}");
}

#[test]
fn columns_leave_their_neighbours_alone() {
    let per_head = norm(4);
    let before = rows(3 * 10);
    let mut after = before.clone();
    per_head.forward_columns(&mut after, 10, 1..9).unwrap();
    for (before, after) in before.chunks_exact(10).zip(after.chunks_exact(10)) {
        assert_eq!((before[0], before[9]), (after[0], after[9]));
        assert_close(&after[1..9], &reference::forward(&per_head, &before[1..9]));
    }
}

#[test]
fn wrong_sizes_are_named() {
    let four = norm(4);
    let error = four.forward(&[0.0; 6], &mut [0.0; 6]).unwrap_err();
    assert_eq!(
        error,
        LayersError::Shape { what: "the input of an RMS norm", expected: 4, found: 6 }
    );
    assert!(four.forward(&[0.0; 8], &mut [0.0; 4]).is_err());
    assert!(four.add_and_forward(&[0.0; 4], &mut [0.0; 8], &mut [0.0; 8]).is_err());
    assert!(four.forward_columns(&mut [0.0; 10], 10, 1..8).is_err());
    assert!(four.forward_columns(&mut [0.0; 10], 10, 8..12).is_err());
    assert!(four.forward_columns(&mut [], 0, 0..0).is_ok());
    assert!(RmsNorm::new(vec![], 1e-6).is_err());
    assert!(RmsNorm::new(vec![1.0], f32::NAN).is_err());
}

proptest! {
    #[test]
    fn agrees_with_the_definition(values in prop::collection::vec(-100f32..100.0, 1..200)) {
        check(&norm(values.len()), &values);
    }

    #[test]
    fn the_scale_of_a_row_does_not_matter(values in prop::collection::vec(0.5f32..2.0, 1..64)) {
        let norm = RmsNorm::new(vec![1.0; values.len()], 0.0).unwrap();
        let mut small = values.clone();
        let mut large: Vec<f32> = values.iter().map(|value| value * 1024.0).collect();
        norm.forward_in_place(&mut small).unwrap();
        norm.forward_in_place(&mut large).unwrap();
        prop_assert_eq!(small, large);
    }
}
