//! Map and record: bit for bit the ids and counters of the reference.

use artel_device::cuda::{Graph, Kernels};
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::eplb::map_and_record::cuda::{DevicePlacement, MapAndRecord, MapBuffers};
use artel_moe::eplb::map_and_record::{LoadRecorder, ReplicaRule, ReplicaSalt, reference};
use artel_moe::eplb::{LayerPlan, Placement};

use crate::cuda::replay;

const TOP_K: usize = 8;

pub fn cases() -> Vec<Case> {
    let rules = [
        ("published", ReplicaRule::TokenHash),
        ("salted", ReplicaRule::Salted(ReplicaSalt::of_rank(3, 5))),
    ];
    let mut cases = Vec::new();
    for (name, rule) in rules {
        for (experts, slots) in [(4, 8), (256, 256), (256, 288), (300, 700), (1000, 2100)] {
            cases.push(batches(
                format!("map_and_record::{name}_{slots}_slots"),
                rule,
                (experts, slots),
            ));
        }
    }
    cases.push(full_counters());
    cases.push(a_graph());
    cases.push(swaps_under_a_graph());
    cases
}

fn load(
    slots: usize,
    rule: ReplicaRule,
) -> impl Fn(&mut Kernels) -> Result<MapAndRecord, MoeError> {
    move |kernels| MapAndRecord::load(kernels, TOP_K, slots, rule)
}

/// Every expert once, the rest of the slots to a few of them; some stay empty.
fn placement(experts: usize, slots: usize) -> Placement {
    let extra = (experts..slots).map(|slot| match slot % 7 {
        0 => -1,
        rest => (slot * 31 % experts.min(3 + rest)) as i32,
    });
    let mut physical_to_logical: Vec<i32> = (0..experts as i32).chain(extra).collect();
    physical_to_logical.reverse();
    Placement::new(physical_to_logical, experts).expect("every expert has a slot")
}

/// Ids from -2 to two beyond the last; every fifth is expert 0.
fn ids(pairs: usize, experts: usize) -> Vec<i32> {
    let id = |pair: usize| match pair % 5 {
        0 => 0,
        _ => (pair.wrapping_mul(2_654_435_761) >> 7) as i32 % (experts as i32 + 4) - 2,
    };
    (0..pairs).map(id).collect()
}

fn batches(name: String, rule: ReplicaRule, (experts, slots): (usize, usize)) -> Case {
    Case::new(name, load(slots, rule), move |gpu, map| {
        let placement = placement(experts, slots);
        // Up to 512 tokens are counted one by one.
        for tokens in [0, 1, 7, 64, 512, 513, 1025, 8192] {
            for (record, unpadded) in
                [(1, tokens), (1, tokens / 3), (1, 0), (0, tokens), (1, usize::MAX)]
            {
                check(
                    gpu,
                    map,
                    (&placement, rule),
                    &ids(tokens * TOP_K, experts),
                    (record, unpadded),
                )?;
            }
        }
        Ok(())
    })
}

fn check(
    gpu: &Gpu,
    map: &MapAndRecord,
    (placement, rule): (&Placement, ReplicaRule),
    ids: &[i32],
    (record, unpadded): (i32, usize),
) -> Result<(), MoeError> {
    let start: Vec<i32> = (0..placement.num_physical() as i32).collect();
    let mut expected = (ids.to_vec(), start.clone());
    let recorder = LoadRecorder {
        expert_load: &mut expected.1,
        enabled: record != 0,
        unpadded_tokens: unpadded,
    };
    let plan = LayerPlan::equal(placement.clone());
    reference::map_and_record(&mut expected.0, TOP_K, &plan, rule, recorder)?;
    assert_eq!(run(gpu, map, placement, (ids, &start), (record, unpadded))?, expected);
    Ok(())
}

fn run(
    gpu: &Gpu,
    map: &MapAndRecord,
    placement: &Placement,
    (ids, load): (&[i32], &[i32]),
    (record, unpadded): (i32, usize),
) -> Result<(Vec<i32>, Vec<i32>), MoeError> {
    let on_device = DevicePlacement::new(gpu.stream.context(), placement)?;
    let (logical_ids, mut expert_load) = (gpu.upload(ids), gpu.upload(load));
    let mut physical_ids = gpu.poisoned(ids.len());
    let record = gpu.upload(&[record]);
    let unpadded = gpu.upload(&[i32::try_from(unpadded).unwrap_or(i32::MAX)]);
    let buffers = MapBuffers {
        logical_ids: logical_ids.slice(),
        physical_ids: physical_ids.slice_mut(),
        expert_load: expert_load.slice_mut(),
        record: record.slice(),
        unpadded_tokens: unpadded.slice(),
    };
    map.launch(&gpu.stream, ids.len() / TOP_K, &on_device, buffers)?;
    Ok((gpu.download(&physical_ids), gpu.download(&expert_load)))
}

/// Counters stay at the largest number, however the blocks race.
fn full_counters() -> Case {
    let rule = ReplicaRule::TokenHash;
    Case::new("map_and_record::full_counters", load(4, rule), move |gpu, map| {
        let placement = Placement::new(vec![0, 1, 2, 3], 4)?;
        for tokens in [64, 4096] {
            let ids = vec![1; tokens * TOP_K];
            for missing in [0, 1, tokens as i32, tokens as i32 * TOP_K as i32, i32::MAX] {
                let load = [5, i32::MAX - missing, 0, i32::MAX];
                let (_, counted) = run(gpu, map, &placement, (&ids, &load), (1, tokens))?;
                let full = load[1].saturating_add(ids.len() as i32);
                assert_eq!(counted, [5, full, 0, i32::MAX], "{missing} missing");
            }
        }
        Ok(())
    })
}

/// A recorded graph obeys the flag and the number of tokens that are on the device when it runs,
/// and a placement that was overwritten.
fn a_graph() -> Case {
    let rule = ReplicaRule::TokenHash;
    Case::new("map_and_record::a_graph_obeys_the_device", load(3, rule), move |gpu, map| {
        let mut placement =
            DevicePlacement::new(gpu.stream.context(), &Placement::new(vec![0, 1, 0], 2)?)?;
        let logical_ids = gpu.upload(&[0; 16]);
        let (mut physical_ids, mut expert_load) = (gpu.poisoned(16), gpu.upload(&[0; 3]));
        let (mut record, mut unpadded) = (gpu.upload(&[0]), gpu.upload(&[2]));
        let graph = Graph::capture(&gpu.stream, |stream| {
            let buffers = MapBuffers {
                logical_ids: logical_ids.slice(),
                physical_ids: physical_ids.slice_mut(),
                expert_load: expert_load.slice_mut(),
                record: record.slice(),
                unpadded_tokens: unpadded.slice(),
            };
            map.launch(stream, 2, &placement, buffers)
        })?;
        let step = || -> Result<(Vec<i32>, Vec<i32>), MoeError> {
            replay(gpu, &graph)?;
            Ok((gpu.download(&physical_ids), gpu.download(&expert_load)))
        };
        let token_copies = |first: i32, second: i32| [[first; 8], [second; 8]].concat();
        assert_eq!(step()?, (token_copies(0, 2), vec![0; 3]));
        record.write(0, &[1])?;
        assert_eq!(step()?, (token_copies(0, 2), vec![8, 0, 8]));
        unpadded.write(0, &[1])?;
        placement.update(&Placement::new(vec![1, 0, 0], 2)?)?;
        assert_eq!(step()?, (token_copies(1, 2), vec![8, 8, 8]));
        assert!(placement.update(&Placement::new(vec![0, 1], 2)?).is_err());
        Ok(())
    })
}

/// Two hundred placements, one after the other, under one recorded graph: no pair goes to a slot of
/// the placement before, and the counters miss nothing.
fn swaps_under_a_graph() -> Case {
    const TOKENS: usize = 9;
    let (experts, slots) = (16, 24);
    let rule = ReplicaRule::Salted(ReplicaSalt::of_replicated_tokens(2));
    Case::new("map_and_record::swaps_under_a_graph", load(slots, rule), move |gpu, map| {
        let shuffled = |seed: usize| {
            let mut slots = placement(experts, slots).physical_to_logical().to_vec();
            for at in (1..slots.len()).rev() {
                slots.swap(at, (seed.wrapping_mul(2_654_435_761) ^ (at * 40_503)) % (at + 1));
            }
            Placement::new(slots, experts).expect("every expert has a slot")
        };
        let mut on_device = DevicePlacement::new(gpu.stream.context(), &shuffled(0))?;
        let ids = ids(TOKENS * TOP_K, experts);
        let logical_ids = gpu.upload(&ids);
        let mut physical_ids = gpu.poisoned(ids.len());
        let mut expert_load = gpu.upload(&vec![0; slots]);
        let (record, unpadded) = (gpu.upload(&[1]), gpu.upload(&[TOKENS as i32]));
        let graph = Graph::capture(&gpu.stream, |stream| {
            let buffers = MapBuffers {
                logical_ids: logical_ids.slice(),
                physical_ids: physical_ids.slice_mut(),
                expert_load: expert_load.slice_mut(),
                record: record.slice(),
                unpadded_tokens: unpadded.slice(),
            };
            map.launch(stream, TOKENS, &on_device, buffers)
        })?;
        let mut counted = vec![0; slots];
        for seed in 0..200 {
            let placement = shuffled(seed);
            on_device.update(&placement)?;
            replay(gpu, &graph)?;
            let mut mapped = ids.clone();
            let recorder =
                LoadRecorder { expert_load: &mut counted, enabled: true, unpadded_tokens: TOKENS };
            let plan = LayerPlan::equal(placement);
            reference::map_and_record(&mut mapped, TOP_K, &plan, rule, recorder)?;
            assert_eq!(gpu.download(&physical_ids), mapped, "placement {seed}");
            assert_eq!(gpu.download(&expert_load), counted, "placement {seed}");
        }
        Ok(())
    })
}
