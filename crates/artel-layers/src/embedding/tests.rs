use artel_device::HostBuffer;
use artel_moe::quant::{AnyMatrix, DenseMatrix};
use half::bf16;

use super::Embedding;
use crate::LayersError;

/// Three tokens of two elements: [[0, 1], [2, 3], [4, 5]].
fn embedding() -> Embedding {
    let elements: Vec<bf16> = (0..6).map(|value| bf16::from_f32(value as f32)).collect();
    let matrix = DenseMatrix::new(HostBuffer::from_vec(elements), 3, 2).unwrap();
    Embedding::new(AnyMatrix::Bf16(matrix))
}

#[test]
fn rows_come_in_the_order_of_the_ids() {
    let mut out = [f32::NAN; 6];
    embedding().forward(&[2, 0, 2], &mut out).unwrap();
    assert_eq!(out, [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
    embedding().forward(&[], &mut []).unwrap();
}

#[test]
fn an_unknown_id_is_named_and_nothing_is_written() {
    let mut out = [7.0; 4];
    let error = embedding().forward(&[1, 3], &mut out).unwrap_err();
    assert_eq!(error, LayersError::TokenId { id: 3, position: 1, vocabulary: 3 });
    assert_eq!(out, [7.0; 4]);
    assert!(embedding().forward(&[u32::MAX], &mut [0.0; 2]).is_err());
}

#[test]
fn the_output_must_fit() {
    let error = embedding().forward(&[1], &mut [0.0; 3]).unwrap_err();
    assert!(matches!(error, LayersError::Shape { expected: 2, found: 3, .. }), "{error}");
}
