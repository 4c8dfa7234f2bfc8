use artel_device::HostBuffer;
use artel_device::cpu::with_threads;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::activation::{Activation, GateLayout};
use crate::assignment::{AlignedBecause, AssignmentPath};
use crate::config::{MoeShape, Parallelism};
use crate::eplb::map_and_record::{PlacementRule, ReplicaRule};
use crate::eplb::{EpRank, ExpertMap, ExpertPlacement, LayerPlan, Placement};
use crate::quant::{AnyMatrix, Bf16, DenseMatrix, Element, F32, Format};
use crate::router::{RouterConfig, RoutingMethod};
use crate::weights::{AnyExperts, ExpertMatrices, ExpertTensors};

#[derive(Clone)]
struct Case {
    shape: MoeShape,
    activation: Activation,
    router_weight: RouterWeight,
    /// Gate and up in one matrix, or in two.
    parts: usize,
    biased: bool,
    ids: Vec<i32>,
}

fn small() -> Case {
    Case {
        shape: MoeShape { hidden_size: 72, intermediate_size: 40, num_experts: 6, top_k: 2 },
        activation: Activation::Silu,
        router_weight: RouterWeight::OnOutput,
        parts: 2,
        biased: false,
        ids: vec![0, 3, 3, 1, 5, 0],
    }
}

fn floats(rng: &mut ChaCha8Rng, count: usize, limit: f32) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-limit..limit)).collect()
}

fn f32_matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> AnyMatrix {
    let limit = 2.0 / (columns as f32).sqrt();
    let buffer = HostBuffer::from_vec(floats(rng, rows * columns, limit));
    AnyMatrix::F32(DenseMatrix::new(buffer, rows, columns).unwrap())
}

/// Random experts in float32, converted to `format`.
fn experts(case: &Case, format: Format) -> AnyExperts {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let MoeShape { hidden_size, intermediate_size, num_experts, .. } = case.shape;
    let rows = case.activation.input_columns(intermediate_size);
    let expert = |_| {
        let part = |rng: &mut ChaCha8Rng| f32_matrix(rng, rows / case.parts, hidden_size);
        ExpertTensors {
            w13: (0..case.parts).map(|_| part(&mut rng)).collect(),
            w13_bias: case.biased.then(|| floats(&mut rng, rows, 1.0)),
            w2: f32_matrix(&mut rng, hidden_size, intermediate_size),
            w2_bias: case.biased.then(|| floats(&mut rng, hidden_size, 1.0)),
        }
    };
    let experts: Vec<_> = (0..num_experts).map(expert).collect();
    let converted = experts.iter().map(|expert| expert.convert(format).unwrap());
    AnyExperts::new(converted.collect()).unwrap()
}

fn config(case: &Case) -> MoeConfig {
    let config = MoeConfig::new(case.shape.clone(), case.activation).unwrap();
    config.with_router_weight(case.router_weight)
}

fn gate_and_router(case: &Case) -> (Gate, Router) {
    let MoeShape { hidden_size, num_experts, top_k, .. } = case.shape;
    let weight = f32_matrix(&mut ChaCha8Rng::seed_from_u64(12), num_experts, hidden_size);
    let method = RoutingMethod::softmax_renormalize();
    let router = Router::new(RouterConfig::new(method, num_experts, top_k).unwrap()).unwrap();
    (Gate::new(weight, None).unwrap(), router)
}

fn layer(case: &Case, format: Format, features: CpuFeatures) -> AnyMoeLayer {
    let (gate, router) = gate_and_router(case);
    AnyMoeLayer::new(config(case), gate, router, experts(case, format), features).unwrap()
}

fn topk(case: &Case) -> TopK {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let weights = (0..case.ids.len()).map(|_| rng.random_range(0.1..1.0)).collect();
    TopK { ids: case.ids.clone(), weights, top_k: case.shape.top_k }
}

fn hidden_states(case: &Case) -> Vec<f32> {
    let tokens = case.ids.len() / case.shape.top_k;
    floats(&mut ChaCha8Rng::seed_from_u64(14), tokens * case.shape.hidden_size, 2.0)
}

/// Every format, instruction set and form of assignment against the definition.
fn check(case: &Case) {
    for features in CpuFeatures::every_supported() {
        for format in Format::ALL {
            check_any(case, layer(case, format, features));
        }
    }
}

/// `|out - reference|` may be so much of `|reference|`.
fn check_any(case: &Case, layer: AnyMoeLayer) {
    match layer {
        AnyMoeLayer::F32(layer) => check_as(case, layer, 1e-5),
        AnyMoeLayer::F16(layer) => check_as(case, layer, 1e-3),
        AnyMoeLayer::Bf16(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Fp8Block128(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Fp8Tensor(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Fp8Channel(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Int8W8A8(layer) => check_as(case, layer, 5e-3),
        // Tiles round scaled integers to bfloat16 as well.
        AnyMoeLayer::Int8W8A16(layer) => check_as(case, layer, 8e-3),
        AnyMoeLayer::Int4W4A16(layer) => check_as(case, layer, 8e-3),
        AnyMoeLayer::Nvfp4(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Mxfp4(layer) => check_as(case, layer, 5e-3),
        AnyMoeLayer::Mxfp8(layer) => check_as(case, layer, 5e-3),
    }
}

fn check_as<F: GemmFormat>(case: &Case, layer: MoeLayer<F>, limit: f64) {
    let (hidden_states, topk) = (hidden_states(case), topk(case));
    let narrowed: Vec<F::Activation> =
        hidden_states.iter().map(|&x| Element::from_f32(x)).collect();
    let expected = layer.experts_reference(&narrowed, &topk).unwrap();
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let plan = layer.plan().clone();
    let direct = plan.clone().with_assignment(AssignmentPath::Direct);
    let aligned = AssignmentPath::Aligned(AlignedBecause::ManyPairs);
    let forced = plan.clone().with_assignment(aligned);
    let spread = matches!(layer.config().parallelism(), Parallelism::Expert(_));
    for plan in if spread { vec![plan] } else { vec![plan, direct, forced] } {
        let features = CpuFeatures::detect().at_most(plan.isa());
        let layer = layer.clone().with_plan(plan);
        let mut ws = Workspace::new(CpuBackend::new(features));
        let mut out = vec![7.0; hidden_states.len()];
        layer.experts_f32(&hidden_states, &topk, &mut ws, &mut out).unwrap();
        let square = |(out, expected): (&f32, &f64)| (f64::from(*out) - expected).powi(2);
        let difference = out.iter().zip(&expected).map(square).sum::<f64>().sqrt();
        assert!(difference <= limit * norm, "{}: {difference} of {norm}", F::NAME);
    }
}

#[test]
fn no_tokens_one_token_and_a_few() {
    for ids in [vec![], vec![4, 1], small().ids] {
        check(&Case { ids, ..small() });
    }
}

#[test]
fn one_expert_gets_all() {
    check(&Case { ids: vec![2; 2 * 33], ..small() });
}

#[test]
fn ids_without_an_expert_and_duplicates() {
    check(&Case { ids: vec![-1, 2, 6, i32::MAX, -1, -1, 3, 3], ..small() });
}

#[test]
fn a_single_matrix_and_biases_of_an_interleaved_gate() {
    let activation =
        Activation::SwigluOai { alpha: 1.702, limit: 7.0, layout: GateLayout::Interleaved };
    check(&Case { activation, parts: 1, biased: true, ..small() });
}

#[test]
fn no_gate() {
    check(&Case { activation: Activation::Relu2NoMul, parts: 1, ..small() });
}

#[test]
fn router_weights_on_the_input() {
    check(&Case { router_weight: RouterWeight::OnInput, ..small() });
}

#[test]
fn odd_sizes() {
    let shape = MoeShape { hidden_size: 131, intermediate_size: 257, num_experts: 3, top_k: 3 };
    check(&Case { shape, ids: (0..60).map(|pair| pair % 3).collect(), ..small() });
}

#[test]
fn ranks_sum_to_the_whole() {
    let case = small();
    let features = CpuFeatures::detect();
    let mut ws = AnyWorkspace::new(features);
    let (hidden_states, topk) = (hidden_states(&case), topk(&case));
    let mut whole = vec![0.0; hidden_states.len()];
    layer(&case, Format::F32, features)
        .experts(&hidden_states, &topk, &mut ws, &mut whole)
        .unwrap();
    let mut sum = vec![0.0; hidden_states.len()];
    for rank in 0..2 {
        let rank = EpRank::new(rank, 2).unwrap();
        let map = ExpertMap::new(6, ExpertPlacement::RoundRobin, rank).unwrap();
        let AnyExperts::F32(all) = experts(&case, Format::F32) else {
            unreachable!("asked for float32")
        };
        let mine: Vec<usize> = (0..6).filter(|&id| map.local(id as i32).is_some()).collect();
        let pick = |matrices: &ExpertMatrices<F32>| {
            let mine = mine.iter().map(|&expert| matrices.matrix(expert).clone());
            ExpertMatrices::<F32>::new(mine.collect()).unwrap()
        };
        let experts = ExpertWeights::new(pick(all.w13()), pick(all.w2())).unwrap();
        let config = config(&case).with_parallelism(Parallelism::Expert(map)).unwrap();
        let (gate, router) = gate_and_router(&case);
        let layer = MoeLayer::new(config, gate, router, experts, features).unwrap();
        check_as(&case, layer.clone(), 1e-5);
        let mut part = vec![0.0; hidden_states.len()];
        let mut ws = Workspace::new(CpuBackend::new(features));
        layer.experts_f32(&hidden_states, &topk, &mut ws, &mut part).unwrap();
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    assert!(sum.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// Every rank against the definition, and their sum against the whole.
fn check_shards(case: &Case, format: Format, ranks: usize, limit: f64) {
    let features = CpuFeatures::detect();
    let mut ws = AnyWorkspace::new(features);
    let (hidden_states, topk) = (hidden_states(case), topk(case));
    let mut whole = vec![0.0; hidden_states.len()];
    layer(case, format, features).experts(&hidden_states, &topk, &mut ws, &mut whole).unwrap();
    let mut sum = vec![0.0; hidden_states.len()];
    for rank in 0..ranks {
        let experts = experts(case, format).shard(case.activation.layout(), rank, ranks).unwrap();
        let config = config(case).with_parallelism(Parallelism::Tensor { size: ranks }).unwrap();
        let (gate, router) = gate_and_router(case);
        let layer = AnyMoeLayer::new(config, gate, router, experts, features).unwrap();
        let mut part = vec![0.0; hidden_states.len()];
        layer.experts(&hidden_states, &topk, &mut ws, &mut part).unwrap();
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        check_any(case, layer);
    }
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    let difference = norm(&mut sum.iter().zip(&whole).map(|(a, b)| a - b));
    let size = norm(&mut whole.iter().copied());
    assert!(difference <= limit * size, "{format} on {ranks}: {difference} of {size}");
}

/// A rank quantises its features in groups of its own, so sums of FP8 differ by its rounding.
const SUM_LIMITS: [(Format, f64); 6] = [
    (Format::F32, 1e-5),
    (Format::F16, 2e-3),
    (Format::Bf16, 1e-2),
    (Format::Fp8Block128, 4e-2),
    (Format::Fp8Tensor, 4e-2),
    (Format::Fp8Channel, 4e-2),
];

#[test]
fn shards_of_every_layout_sum_to_the_whole() {
    let layout = GateLayout::Interleaved;
    let interleaved = Activation::SwigluOai { alpha: 1.702, limit: 7.0, layout };
    for (format, limit) in SUM_LIMITS {
        for ranks in [1, 2, 5] {
            check_shards(&small(), format, ranks, limit);
            check_shards(&Case { parts: 1, biased: true, ..small() }, format, ranks, limit);
            let activation = Activation::Relu2NoMul;
            check_shards(&Case { activation, parts: 1, ..small() }, format, ranks, limit);
            let case = Case { activation: interleaved, parts: 1, biased: true, ..small() };
            check_shards(&case, format, ranks, limit);
        }
    }
}

/// The ranks of MiniMax-M2.5 on 8 GPUs have 192 features: a block and a half.
#[test]
fn shards_that_begin_inside_a_block_sum_to_the_whole() {
    let shape = MoeShape { hidden_size: 160, intermediate_size: 1536, num_experts: 3, top_k: 2 };
    let ids: Vec<i32> = (0..44).map(|pair| [0, 2, 1, 2][pair % 4]).collect();
    for ids in [ids[..2].to_vec(), ids] {
        for parts in [1, 2] {
            let case = Case { shape: shape.clone(), parts, ids: ids.clone(), ..small() };
            check_shards(&case, Format::Fp8Block128, 8, 4e-2);
        }
    }
}

#[test]
fn impossible_shards_are_errors() {
    let experts = experts(&small(), Format::F32);
    let shard = |layout, rank, ranks| experts.shard(layout, rank, ranks).is_err();
    assert!(shard(GateLayout::Halves, 0, 0) && shard(GateLayout::Halves, 0, 3));
    assert!(shard(GateLayout::Halves, 2, 2) && shard(GateLayout::Ungated, 0, 2));
}

#[test]
fn placement_changes_the_slot_and_not_the_result() {
    let case = small();
    let features = CpuFeatures::detect();
    let mut ws = AnyWorkspace::new(features);
    let hidden_states = hidden_states(&case);
    let (mut plain, mut placed) = (vec![0.0; hidden_states.len()], vec![0.0; hidden_states.len()]);
    let layer = layer(&case, Format::Bf16, features);
    layer.forward(&hidden_states, &mut ws, &mut plain).unwrap();
    let AnyMoeLayer::Bf16(layer) = layer else { unreachable!("asked for bfloat16") };
    let slots: Vec<usize> = vec![5, 0, 1, 2, 3, 4];
    let pick = |matrices: &ExpertMatrices<Bf16>| {
        let moved = slots.iter().map(|&expert| matrices.matrix(expert).clone());
        ExpertMatrices::<Bf16>::new(moved.collect()).unwrap()
    };
    let experts =
        ExpertWeights::new(pick(layer.experts().w13()), pick(layer.experts().w2())).unwrap();
    let (gate, router) = gate_and_router(&case);
    let placement = Placement::new(slots.iter().map(|&slot| slot as i32).collect(), 6).unwrap();
    let layer = MoeLayer::new(config(&case), gate, router, experts, features)
        .and_then(|layer| {
            let plan = LayerPlan::equal(placement);
            layer.with_placement(PlacementRule::new(plan, ReplicaRule::TokenHash)?)
        })
        .unwrap();
    let mut ws = Workspace::new(CpuBackend::new(features));
    ws.expert_load.record(true);
    layer.forward_f32(&hidden_states, &mut ws, &mut placed).unwrap();
    assert_eq!(plain, placed);
    assert_eq!(ws.expert_load.take().iter().sum::<i32>(), case.ids.len() as i32);
}

#[test]
fn the_same_bits_whatever_the_threads_and_every_time() {
    let shape = MoeShape { hidden_size: 200, intermediate_size: 136, num_experts: 6, top_k: 2 };
    let case = Case { shape, ids: (0..80).map(|pair| pair % 6).collect(), ..small() };
    for format in Format::ALL {
        for features in CpuFeatures::every_supported() {
            let layer = layer(&case, format, features);
            let hidden_states = hidden_states(&case);
            let run = |threads| {
                let mut ws = AnyWorkspace::new(features);
                let mut out = vec![0.0; hidden_states.len()];
                let work = || layer.forward(&hidden_states, &mut ws, &mut out);
                with_threads(threads, work).unwrap().unwrap();
                out
            };
            let first = run(1);
            assert!([1, 2, 5].iter().all(|&threads| run(threads) == first), "{format}");
        }
    }
}

#[test]
fn a_token_of_float32_or_float16_does_not_see_its_batch() {
    let case = Case { ids: (0..80).map(|pair| pair % 6).collect(), ..small() };
    let hidden_states = hidden_states(&case);
    for format in [Format::F32, Format::F16] {
        for features in CpuFeatures::every_supported() {
            let layer = layer(&case, format, features);
            let mut ws = AnyWorkspace::new(features);
            let mut together = vec![0.0; hidden_states.len()];
            layer.forward(&hidden_states, &mut ws, &mut together).unwrap();
            let size = case.shape.hidden_size;
            for (token, expected) in hidden_states.chunks(size).zip(together.chunks(size)) {
                let mut alone = vec![0.0; size];
                layer.forward(token, &mut ws, &mut alone).unwrap();
                assert_eq!(alone, expected, "{format} {}", features.isa());
            }
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_errors() {
    let case = small();
    let features = CpuFeatures::detect();
    let (gate, router) = gate_and_router(&case);
    let shape = MoeShape { num_experts: 5, ..case.shape.clone() };
    let config = MoeConfig::new(shape, case.activation).unwrap();
    let error = AnyMoeLayer::new(config, gate, router, experts(&case, Format::Bf16), features);
    assert!(error.unwrap_err().to_string().contains("experts of this rank"));
    let layer = layer(&case, Format::Bf16, features);
    let mut ws = AnyWorkspace::new(features);
    assert!(layer.forward(&[0.0; 71], &mut ws, &mut [0.0; 71]).is_err());
    assert!(layer.forward(&[0.0; 72], &mut ws, &mut [0.0; 71]).is_err());
    let short = TopK { ids: vec![0], weights: vec![1.0], top_k: 2 };
    assert!(layer.experts(&[0.0; 72], &short, &mut ws, &mut [0.0; 72]).is_err());
}
