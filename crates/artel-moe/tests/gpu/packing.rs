//! Packing: bit for bit what the reference packs.

use artel_device::cuda::Graph;
use artel_gpu_test::{Case, Gpu};
use artel_moe::packing::cuda::Pack;
use artel_moe::packing::reference;

use crate::cuda::replay;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("packing::every_length", Pack::<f32>::load, |gpu, pack| {
            for pairs in [0, 1, 7, 8, 1023, 1024, 1025, 65536] {
                check(gpu, pack, &ids(pairs), &weights(pairs))?;
            }
            Ok(())
        }),
        Case::new("packing::signs_ties_and_missing_experts", Pack::<f32>::load, |gpu, pack| {
            let ties = [0x3f80_8000u32, 0x3f81_8000, 0x3f80_8001, 0xbf80_8000, 0x8000_0000];
            let ties = ties.map(f32::from_bits);
            let rest = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0];
            let weights: Vec<f32> = ties.into_iter().chain(rest).collect();
            check(gpu, pack, &[-1, 0, 1, 255, 32767, -1, 5, 6, 7, 8], &weights)
        }),
        Case::new("packing::ids_that_do_not_fit_are_no_expert", Pack::<f32>::load, |gpu, pack| {
            let packed = run(gpu, pack, &[-2, 32768, i32::MIN, i32::MAX], &[1.0; 4])?;
            assert_eq!(packed, [0xffff_3f80u32 as i32; 4]);
            Ok(())
        }),
        Case::new("packing::a_graph_replays_it", Pack::<f32>::load, |gpu, pack| {
            let (ids, weights) = (gpu.upload(&ids(100)), gpu.upload(&weights(100)));
            let mut packed = gpu.poisoned::<i32>(100);
            let graph = Graph::capture(&gpu.stream, |stream| {
                pack.launch(stream, ids.slice(), weights.slice(), &mut packed.slice_mut())
            })?;
            assert!(gpu.download(&packed).iter().all(|&pair| pair == -1), "recording runs nothing");
            replay(gpu, &graph)?;
            assert_eq!(gpu.download(&packed), expected(&self::ids(100), &self::weights(100)));
            Ok(())
        }),
    ]
}

fn ids(pairs: usize) -> Vec<i32> {
    (0..pairs).map(|pair| (pair * 37 % 257) as i32 - 1).collect()
}

fn weights(pairs: usize) -> Vec<f32> {
    (0..pairs).map(|pair| (pair as f32 * 0.618).sin()).collect()
}

fn expected(ids: &[i32], weights: &[f32]) -> Vec<i32> {
    let mut packed = vec![0; ids.len()];
    reference::pack(ids, weights, &mut packed).expect("ids fit");
    packed
}

fn check(
    gpu: &Gpu,
    pack: &Pack<f32>,
    ids: &[i32],
    weights: &[f32],
) -> Result<(), artel_moe::MoeError> {
    assert_eq!(run(gpu, pack, ids, weights)?, expected(ids, weights), "{} pairs", ids.len());
    Ok(())
}

fn run(
    gpu: &Gpu,
    pack: &Pack<f32>,
    ids: &[i32],
    weights: &[f32],
) -> Result<Vec<i32>, artel_moe::MoeError> {
    let (ids, weights) = (gpu.upload(ids), gpu.upload(weights));
    let mut packed = gpu.poisoned(ids.len());
    pack.launch(&gpu.stream, ids.slice(), weights.slice(), &mut packed.slice_mut())?;
    Ok(gpu.download(&packed))
}
