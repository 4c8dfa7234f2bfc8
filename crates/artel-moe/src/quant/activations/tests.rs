use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::quant::{E4M3_MAX, Element, e4m3_to_f32, quantize_group};

#[test]
fn the_example() {
    let mut row = [0f32; 128];
    row[..3].copy_from_slice(&[448.0, 224.0, -1.0]);
    let (codes, scales) = reference::quantize(Granularity::Groups, 128, &row);
    assert_eq!(scales, [1.0]);
    let values: Vec<f32> = codes.into_iter().map(e4m3_to_f32).collect();
    assert_eq!(values, row);
}

#[test]
fn narrow_groups_zeros_and_nan() {
    let mut rows = vec![0f32; 2 * 130];
    rows[129] = 7.0;
    rows[130] = f32::NAN;
    rows[131] = -2.0;
    let (codes, scales) = reference::quantize(Granularity::Groups, 130, &rows);
    assert_eq!(scales, [1e-10 / E4M3_MAX, 7.0 / E4M3_MAX, 2.0 / E4M3_MAX, 1e-10 / E4M3_MAX]);
    assert_eq!((codes[128], codes[129]), (0, 0x7e));
    assert!(e4m3_to_f32(codes[130]).is_nan());
    assert_eq!(e4m3_to_f32(codes[131]), -448.0);
    let (codes, scales) = reference::quantize(Granularity::Rows, 130, &rows);
    assert_eq!(scales, [7.0 / E4M3_MAX, 2.0 / E4M3_MAX]);
    assert_eq!((codes[129], codes[131]), (0x7e, 0xfe));
}

#[test]
fn a_given_scale_saturates() {
    let codes = reference::quantize_static(0.5, &[1.0f32, 1000.0, -1000.0]);
    assert_eq!(codes.map_values(), [2.0, 448.0, -448.0]);
}

trait Values {
    fn map_values(&self) -> Vec<f32>;
}

impl Values for Vec<u8> {
    fn map_values(&self) -> Vec<f32> {
        self.iter().copied().map(e4m3_to_f32).collect()
    }
}

proptest! {
    /// The grouped GEMM on the CPU quantises in its own way; the result is the same.
    #[test]
    fn the_cpu_quantises_as_defined(values in prop::collection::vec(-1e3f32..1e3, 1..129)) {
        let group: Vec<bf16> = values.iter().map(|&value| Element::from_f32(value)).collect();
        let mut found = vec![0.0; group.len()];
        let scale = quantize_group(&group, None, &mut found);
        let (codes, scales) = reference::quantize(Granularity::Rows, group.len(), &group);
        prop_assert_eq!(scales, [scale]);
        prop_assert_eq!(codes.map_values(), found);
    }
}
