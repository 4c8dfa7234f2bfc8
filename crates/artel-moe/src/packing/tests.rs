use proptest::prelude::*;

use super::*;

fn packed<I: ExpertId, W: PackWeight>(ids: &[I], weights: &[W]) -> Vec<u32> {
    let (mut fast, mut slow) = (vec![0; ids.len()], vec![0; ids.len()]);
    cpu::pack(ids, weights, &mut fast).unwrap();
    reference::pack(ids, weights, &mut slow).unwrap();
    assert_eq!(fast, slow);
    fast.into_iter().map(|packed| packed as u32).collect()
}

#[test]
fn known_pairs() {
    assert_eq!(packed(&[0, 1, 255, 32767], &[1.0f32; 4])[..2], [0x0000_3f80, 0x0001_3f80]);
    assert_eq!(packed(&[32767], &[0f32]), [0x7fff_0000]);
    assert_eq!(packed(&[-1], &[1f32]), [0xffff_3f80]);
    assert!(packed::<i32, f32>(&[], &[]).is_empty());
}

#[test]
fn the_sign_of_a_weight_stays_out_of_the_id() {
    assert_eq!(packed(&[3, 3], &[-0.0f32, -2.0]), [0x0003_8000, 0x0003_c000]);
    assert_eq!(packed(&[0], &[f32::NEG_INFINITY]), [0x0000_ff80]);
}

#[test]
fn every_integer_type_packs() {
    macro_rules! check {
        ($($type:ty),*) => {$(
            assert_eq!(packed(&[0 as $type, 7, 127], &[1f32; 3])[2], 0x007f_3f80);
        )*};
    }
    check!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);
}

#[test]
fn every_weight_type_packs() {
    assert_eq!(packed(&[1], &[f16::from_f32(0.3333)]), [0x0001_3eab]);
    assert_eq!(packed(&[1], &[bf16::from_f32(0.3333)]), [0x0001_3eab]);
    // bfloat16 is copied, payload and all.
    assert_eq!(packed(&[1], &[bf16::from_bits(0x7f81)]), [0x0001_7f81]);
}

#[test]
fn rounding_is_to_nearest_even_everywhere() {
    for upper in 0..=u16::MAX {
        for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let value = f32::from_bits(u32::from(upper) << 16 | lower);
            let bits = value.bf16_bits();
            assert_eq!(bits, reference::nearest_bf16_bits(value), "{value:e}");
            assert_eq!(bf16::from_bits(bits).is_nan(), value.is_nan());
        }
    }
}

#[test]
fn ids_that_do_not_fit_are_refused_with_their_place() {
    fn refused<I: ExpertId>(ids: &[I]) -> String {
        let mut out = vec![7; ids.len()];
        let weights = vec![1f32; ids.len()];
        let error = cpu::pack(ids, &weights, &mut out).unwrap_err();
        assert!(out.iter().all(|&packed| packed == 7), "nothing is written");
        assert_eq!(error, reference::pack(ids, &weights, &mut out).unwrap_err());
        error.to_string()
    }
    let message = "topk_ids[1] is 32768, but must be -1 to 32767 to fit 16 bits";
    assert_eq!(refused(&[0, 32768]), message);
    assert_eq!(refused(&[0u64, 32768]), message);
    for ids in [[-2i64, 0], [i64::MIN, 0], [65535, 0], [65536, 0], [1 << 32, 0]] {
        assert!(refused(&ids).starts_with("topk_ids[0]"));
    }
    refused(&[u16::MAX]);
    refused(&[usize::MAX]);
    refused(&[i8::MIN]);
}

#[test]
fn mismatched_shapes_are_refused() {
    assert!(cpu::pack(&[1, 2], &[1f32], &mut [0; 2]).is_err());
    assert!(cpu::pack(&[1, 2], &[1f32; 2], &mut [0; 1]).is_err());
    assert!(reference::pack(&[1, 2], &[1f32; 2], &mut [0; 3]).is_err());
    assert!(unpack(&[1, 2], &mut [0; 1], &mut [0.0; 2]).is_err());
    assert!(unpack(&[1, 2], &mut [0; 2], &mut [0.0; 3]).is_err());
}

proptest! {
    #[test]
    fn unpacking_gives_the_ids_back_and_the_rounded_weights(
        pairs in prop::collection::vec((-1..=PACKED_ID_MAX, prop::num::f32::ANY), 0..200),
    ) {
        let (ids, weights): (Vec<i32>, Vec<f32>) = pairs.into_iter().unzip();
        let mut once = vec![0; ids.len()];
        cpu::pack(&ids, &weights, &mut once).unwrap();
        let (mut ids_back, mut weights_back) = (vec![0; ids.len()], vec![0.0; ids.len()]);
        unpack(&once, &mut ids_back, &mut weights_back).unwrap();
        prop_assert_eq!(&ids, &ids_back);
        for (weight, back) in weights.iter().zip(&weights_back) {
            if weight.is_nan() {
                prop_assert!(back.is_nan());
            } else {
                let nearest = reference::nearest_bf16_bits(*weight);
                prop_assert_eq!(bf16::from_bits(nearest).to_f32().to_bits(), back.to_bits());
            }
        }
        let mut twice = vec![0; ids.len()];
        cpu::pack(&ids_back, &weights_back, &mut twice).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn every_bit_pattern_with_a_legal_id_survives(bits in prop::num::i32::ANY) {
        let id = packed_id(bits);
        let mut again = [0];
        let repacked = cpu::pack(&[id], &[packed_weight(bits)], &mut again);
        prop_assert_eq!(repacked.is_ok(), id >= -1);
        if id >= -1 {
            prop_assert_eq!(again[0], bits);
        }
    }
}
