//! A matrix of its own for each head.

use artel_gpu_test::Case;
use artel_layers::LayersError;
use artel_layers::attention::latent::heads::cuda::{HeadProduct, HeadRotation};
use artel_layers::attention::latent::heads::{HeadProductShape, reference};
use artel_layers::rope::cuda::RopeAngles;
use artel_layers::rope::{
    Rope, RopeConfig, RopeScaling, RopeStyle, RopeTarget, reference as rope_reference,
};
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

pub fn cases() -> Vec<Case> {
    let into = |heads, inputs, rope_dim, outputs, beside| HeadProductShape {
        heads,
        inputs,
        input_stride: inputs + rope_dim,
        input_row: heads * (inputs + rope_dim) + beside,
        outputs,
        output_stride: outputs + rope_dim,
    };
    let (plain, other) = (RopeStyle::Interleaved, RopeStyle::NeoX);
    vec![
        // DeepSeek-V3's, both ways.
        case::<bf16>(into(128, 128, 64, 512, 0), Some(plain)),
        case::<bf16>(into(128, 512, 0, 128, 0), None),
        // Queries beside other columns, and sizes that no power of two is.
        case::<bf16>(into(3, 96, 16, 128, 144), Some(other)),
        case::<bf16>(into(5, 32, 10, 256, 8), Some(plain)),
        case::<bf16>(into(4, 128, 0, 160, 0), None),
        case::<f16>(into(4, 64, 32, 128, 0), Some(plain)),
    ]
}

fn case<A: HalfElement>(shape: HeadProductShape, style: Option<RopeStyle>) -> Case {
    let HeadProductShape { heads, inputs, input_stride, outputs, .. } = shape;
    let name = format!("attention::heads::{}_{heads}_of_{inputs}_to_{outputs}_{style:?}", A::NAME);
    let rope_dim = input_stride - inputs;
    let rope = style.map(|style| {
        let scaling = RopeScaling::None;
        let config = RopeConfig { rotary_dim: rope_dim, theta: 1e4, scaling, style };
        Rope::new(&config).expect("a legal embedding")
    });
    let of_load = rope.clone();
    let load = move |kernels: &mut _| {
        let angles = of_load.as_ref().map(|rope| RopeAngles::load(kernels, rope)).transpose()?;
        let rotation = style.map(|style| HeadRotation { rope_dim, style });
        Ok::<_, LayersError>((HeadProduct::<A>::load(kernels, shape, rotation)?, angles))
    };
    Case::new(name, load, move |gpu, (product, angles)| {
        for tokens in [0, 1, 7, 8, 9, 31, 32, 33, 128, 131] {
            let rows: Vec<A> = numbers(tokens * shape.input_row, 3);
            let weights: Vec<A> = numbers(shape.weights(), 4);
            let positions: Vec<usize> = (0..tokens).map(|token| token * 977 % 40_000).collect();
            let (input, weight) = (gpu.upload(&rows), gpu.upload(&weights));
            let mut out = gpu.poisoned::<A>(tokens * heads * shape.output_stride);
            let mut angle = gpu.poisoned::<f32>(tokens * rope_dim);
            if let (Some(angles), Some(rope)) = (angles, &rope) {
                let at: Vec<i32> = positions.iter().map(|&at| at as i32).collect();
                let (at, frequencies) = (gpu.upload(&at), gpu.upload(rope.inverse_frequencies()));
                let to = &mut angle.slice_mut();
                angles.launch(&gpu.stream, tokens, at.slice(), frequencies.slice(), to)?;
                gpu.stream.synchronize()?;
            }
            let operands = (input.slice(), weight.slice());
            let of_turned = angles.as_ref().map(|_| angle.slice());
            product.launch(&gpu.stream, tokens, operands, of_turned, &mut out.slice_mut())?;
            let found = gpu.download(&out);
            let products = reference::forward(&shape, &widened(&weights), &widened(&rows));
            for (at, found) in found.chunks(shape.output_stride).enumerate() {
                let (token, head) = (at / heads, at % heads);
                let expected = &products[at * outputs..][..outputs];
                // Sums of as many products of numbers up to 1.5.
                assert_close(&found[..outputs], expected, 2.0 * rounding::<A>());
                let Some(rope) = &rope else { continue };
                let from = token * shape.input_row + head * input_stride + inputs;
                let turned = widened(&rows[from..from + rope_dim]);
                let target = RopeTarget::heads(1, rope_dim);
                let expected = rope_reference::apply(rope, &[positions[token]], &target, &turned);
                assert_close(&found[outputs..], &expected, rounding::<A>() + 1e-5);
            }
        }
        Ok(())
    })
}
