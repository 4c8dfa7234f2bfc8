//! Ranks against the layer that computes everything itself: the same bits, whatever moves, and clear
//! errors, whatever breaks.

mod accidents;
mod bits;
mod failures;
mod golden;

use std::time::Duration;

use artel_device::HostBuffer;
use artel_device::cpu::CpuFeatures;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::MoeError;
use crate::activation::{Activation, GateLayout};
use crate::config::{MoeConfig, MoeShape, RouterWeight};
use crate::eplb::map_and_record::{ReplicaRule, ReplicaSalt};
use crate::eplb::{Cluster, LayerPlan, Placement};
use crate::layer::{AnyMoeLayer, AnyWorkspace};
use crate::quant::{AnyMatrix, DenseMatrix, Format};
use crate::router::{Gate, Router, RouterConfig, RoutingMethod};
use crate::weights::{AnyExperts, ExpertTensors};

const EXPERTS: usize = 10;
const HIDDEN: usize = 72;

fn floats(rng: &mut ChaCha8Rng, count: usize, limit: f32) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-limit..limit)).collect()
}

fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize, format: Format) -> AnyMatrix {
    let numbers = floats(rng, rows * columns, 2.0 / (columns as f32).sqrt());
    let buffer = HostBuffer::from_vec(numbers);
    let matrix = AnyMatrix::F32(DenseMatrix::new(buffer, rows, columns).unwrap());
    match matrix.convert(format).unwrap() {
        // Every expert has a scale of its own, and the layer uses the largest.
        AnyMatrix::Fp8Tensor(matrix) => {
            let input_scale = rng.random_range(0.004..0.02);
            AnyMatrix::Fp8Tensor(matrix.with_input_scale(input_scale).unwrap())
        }
        matrix => matrix,
    }
}

/// A layer with biases whose kernels treat any number of rows alike.
fn layer(format: Format, features: CpuFeatures, router_weight: RouterWeight) -> AnyMoeLayer {
    let rng = &mut ChaCha8Rng::seed_from_u64(21);
    let activation = Activation::SwigluOai { alpha: 1.702, limit: 7.0, layout: GateLayout::Halves };
    let intermediate = 40;
    let expert = |_| ExpertTensors {
        w13: vec![matrix(rng, 40, HIDDEN, format), matrix(rng, 40, HIDDEN, format)],
        w13_bias: Some(floats(rng, 80, 1.0)),
        w2: matrix(rng, HIDDEN, intermediate, format),
        w2_bias: Some(floats(rng, HIDDEN, 1.0)),
    };
    let experts = AnyExperts::new((0..EXPERTS).map(expert).collect()).unwrap();
    let shape = MoeShape {
        hidden_size: HIDDEN,
        intermediate_size: intermediate,
        num_experts: EXPERTS,
        top_k: 3,
    };
    let config = MoeConfig::new(shape, activation).unwrap().with_router_weight(router_weight);
    let method = RoutingMethod::softmax_renormalize();
    let router = Router::new(RouterConfig::new(method, EXPERTS, 3).unwrap()).unwrap();
    let gate = Gate::new(matrix(rng, EXPERTS, HIDDEN, Format::F32), None).unwrap();
    AnyMoeLayer::new(config, gate, router, experts, features.with_invariant_rows()).unwrap()
}

fn hidden_states(tokens: usize) -> Vec<f32> {
    floats(&mut ChaCha8Rng::seed_from_u64(22), tokens * HIDDEN, 2.0)
}

fn forward(
    layer: &AnyMoeLayer,
    ws: &mut AnyWorkspace,
    hidden: &[f32],
) -> Result<Vec<f32>, MoeError> {
    let mut out = vec![7.0; hidden.len()];
    layer.forward(hidden, ws, &mut out).map(|()| out)
}

fn workspace(features: CpuFeatures) -> AnyWorkspace {
    AnyWorkspace::new(features.with_invariant_rows())
}

/// Every expert somewhere, the other slots random; some stay empty.
fn random_placement(rng: &mut ChaCha8Rng, slots: usize, experts: usize) -> Placement {
    let mut physical_to_logical: Vec<i32> = (0..slots)
        .map(|slot| if slot < experts { slot as i32 } else { rng.random_range(-1..experts as i32) })
        .collect();
    for slot in (1..slots).rev() {
        physical_to_logical.swap(slot, rng.random_range(0..=slot));
    }
    Placement::new(physical_to_logical, experts).unwrap()
}

fn options(features: CpuFeatures, ranks: usize) -> RankOptions {
    RankOptions {
        threads_per_rank: 1,
        compute_timeout: Duration::from_secs(20),
        move_timeout: Duration::from_secs(20),
        ..RankOptions::new(features, ranks)
    }
}

fn salted() -> CopyChoice {
    ReplicaRule::Salted(ReplicaSalt::of_replicated_tokens(0)).into()
}
