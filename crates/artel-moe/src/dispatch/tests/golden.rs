use super::*;
use crate::quant::each_format;

/// World, layers, slots a rank and experts of vLLM's tests of weight moves.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(2, 1, 2, 3), (2, 2, 3, 4), (2, 4, 8, 16), (4, 1, 2, 6), (4, 2, 2, 5), (4, 8, 8, 16)];

/// Experts of blocks that are whole and partial, with biases and scales of their own.
fn experts(rng: &mut ChaCha8Rng, count: usize, format: Format) -> (MoeConfig, AnyExperts) {
    let expert = |_| ExpertTensors {
        w13: vec![matrix(rng, 17, 130, format), matrix(rng, 17, 130, format)],
        w13_bias: Some(floats(rng, 34, 1.0)),
        w2: matrix(rng, 130, 17, format),
        w2_bias: None,
    };
    let experts = AnyExperts::new((0..count).map(expert).collect()).unwrap();
    let shape = MoeShape { hidden_size: 130, intermediate_size: 17, num_experts: count, top_k: 1 };
    (MoeConfig::new(shape, Activation::Silu).unwrap(), experts)
}

fn exports(experts: &AnyExperts) -> Vec<Vec<u8>> {
    each_format!(AnyExperts, experts, |weights| {
        (0..weights.experts()).map(|expert| weights.expert(expert).to_bytes()).collect()
    })
}

/// Every slot in use of every rank holds its expert, bit for bit.
fn check_slots(group: &RankGroup, originals: &[Vec<Vec<u8>>]) {
    for (layer, originals) in originals.iter().enumerate() {
        let plan = group.layers()[layer].plan();
        let mut placed = plan.placement.physical_to_logical().iter();
        for rank in &group.held {
            let held = rank[layer].held();
            assert_eq!(held.version, group.layers()[layer].version());
            for (slot, &expert) in held.experts.iter().enumerate() {
                assert_eq!(Some(&expert), placed.next());
                if let Ok(expert) = usize::try_from(expert) {
                    assert!(held.slots.export(slot) == originals[expert], "expert {expert}");
                }
            }
        }
    }
}

#[test]
fn every_tensor_of_every_format_moves_through_50_placements() {
    let rng = &mut ChaCha8Rng::seed_from_u64(41);
    for (index, (world, layers, local, logical)) in SHAPES.into_iter().enumerate() {
        let cluster = Cluster::new(world, local).unwrap();
        let slots = cluster.slots();
        let mut ranked = Vec::new();
        let mut originals = Vec::new();
        for layer in 0..layers {
            // Layers of different formats share ranks and movers.
            let format = Format::ALL[(index + layer) % Format::ALL.len()];
            let (config, experts) = experts(rng, logical, format);
            originals.push(exports(&experts));
            let plan = LayerPlan::equal(random_placement(rng, slots, logical));
            ranked.push(RankedLayer { config, experts, plan, choice: salted() });
        }
        let options = options(CpuFeatures::detect(), world);
        let group = RankGroup::start(cluster, ranked, options).unwrap();
        check_slots(&group, &originals);
        for _ in 0..50 {
            for layer in 0..layers {
                let plan = LayerPlan::equal(random_placement(rng, slots, logical));
                group.begin_move(layer, plan).unwrap();
            }
            let events = group.finish_moves(Duration::from_secs(20)).unwrap();
            assert_eq!(events.len(), layers);
            assert!(events.iter().all(|event| matches!(event, MoveEvent::Moved { .. })));
            check_slots(&group, &originals);
        }
        for layer in 0..layers {
            let version = group.layers()[layer].version();
            group.begin_move(layer, group.layers()[layer].plan()).unwrap();
            let events = group.poll();
            let nothing = matches!(events[..], [MoveEvent::Moved { slots: 0, bytes: 0, .. }]);
            assert!(nothing && group.layers()[layer].version() == version, "{events:?}");
        }
        check_slots(&group, &originals);
    }
}

#[test]
fn slots_begin_over_the_bytes_of_the_checkpoint() {
    let rng = &mut ChaCha8Rng::seed_from_u64(42);
    let (config, experts) = experts(rng, 4, Format::Bf16);
    let AnyExperts::Bf16(weights) = &experts else { unreachable!("asked for bfloat16") };
    let address = weights.w2().matrix(3).parts()[0].elements().as_ptr();
    let picked = weights.pick(&[3, 3, 0]).unwrap();
    assert_eq!(picked.w2().matrix(1).parts()[0].elements().as_ptr(), address);
    assert!(weights.pick(&[4]).is_err() && weights.pick(&[]).is_err());
    let plan = LayerPlan::equal(Placement::new(vec![0, 1, 2, 3], 4).unwrap());
    let ranked = RankedLayer { config, experts: experts.clone(), plan, choice: salted() };
    let cluster = Cluster::new(2, 2).unwrap();
    let group = RankGroup::start(cluster, vec![ranked], options(CpuFeatures::detect(), 2)).unwrap();
    assert_eq!(group.layers()[0].expert_bytes(), exports(&experts)[0].len());
}

#[test]
fn an_expert_of_another_shape_is_refused() {
    let rng = &mut ChaCha8Rng::seed_from_u64(43);
    let (_, experts) = experts(rng, 2, Format::Fp8Tensor);
    let AnyExperts::Fp8Tensor(mut weights) = experts else { unreachable!("asked for FP8") };
    let first = weights.expert(0);
    let mut bytes = first.to_bytes();
    assert_eq!(bytes.len(), first.exported_bytes());
    weights.replace(1, first.from_bytes(&HostBuffer::from_vec(bytes.clone())).unwrap()).unwrap();
    assert_eq!(weights.expert(1).to_bytes(), bytes);
    assert!(weights.replace(2, first.clone()).is_err());
    bytes.push(0);
    assert!(first.from_bytes(&HostBuffer::from_vec(bytes)).is_err());
}
