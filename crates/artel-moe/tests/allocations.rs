//! The layer allocates nothing once it has seen the largest batch.

use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, with_threads};
use artel_device::memory::CountingAllocator;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape, RouterConfig};
use artel_moe::layer::{AnyMoeLayer, AnyWorkspace};
use artel_moe::quant::{AnyMatrix, DenseMatrix, Format};
use artel_moe::router::{Gate, Router, RoutingMethod};
use artel_moe::weights::{AnyExperts, ExpertTensors};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

fn matrix(rows: usize, columns: usize) -> AnyMatrix {
    let numbers = (0..rows * columns).map(|i| (i * 31 % 97) as f32 / 97.0 - 0.5).collect();
    AnyMatrix::F32(DenseMatrix::new(HostBuffer::from_vec::<f32>(numbers), rows, columns).unwrap())
}

fn layer(format: Format) -> AnyMoeLayer {
    let expert = ExpertTensors {
        w13: vec![matrix(256, 384), matrix(256, 384)],
        w13_bias: None,
        w2: matrix(384, 256),
        w2_bias: None,
    };
    let experts = AnyExperts::new(vec![expert.convert(format).unwrap(); 8]).unwrap();
    let shape = MoeShape { hidden_size: 384, intermediate_size: 256, num_experts: 8, top_k: 2 };
    let config = MoeConfig::new(shape, Activation::Silu).unwrap();
    let router = RouterConfig::new(RoutingMethod::softmax_renormalize(), 8, 2).unwrap();
    let gate = Gate::new(matrix(8, 384), None).unwrap();
    let router = Router::new(router).unwrap();
    AnyMoeLayer::new(config, gate, router, experts, CpuFeatures::detect()).unwrap()
}

#[test]
fn forward_allocates_nothing_after_the_largest_batch() {
    let tokens_max = 100;
    let hidden_states: Vec<f32> =
        (0..tokens_max * 384).map(|i| (i * 17 % 101) as f32 / 101.0 - 0.5).collect();
    let mut out = vec![0.0; hidden_states.len()];
    for format in Format::ALL {
        let layer = layer(format);
        let mut workspace = AnyWorkspace::new(CpuFeatures::detect());
        // One thread: with more, the threads' own queues would grow while they get acquainted.
        let allocations = with_threads(1, || {
            let mut run = |tokens: usize| {
                let (input, out) = (&hidden_states[..tokens * 384], &mut out[..tokens * 384]);
                layer.forward(input, &mut workspace, out).unwrap();
            };
            run(tokens_max);
            let before = ALLOCATOR.allocations();
            for tokens in [1, 2, 64, tokens_max, 3] {
                run(tokens);
            }
            ALLOCATOR.allocations() - before
        });
        assert_eq!(allocations.unwrap(), 0, "{format}");
    }
}
