//! The shared expert's rows: within a rounding of the reference.

use artel_gpu_test::Case;
use artel_moe::MoeError;
use artel_moe::quant::Element;
use artel_moe::shared::cuda::AddShared;
use artel_moe::shared::reference;
use half::bf16;

pub fn cases() -> Vec<Case> {
    let widths = [1, 64, 100, 2048, 5120];
    let sizes = widths.into_iter().flat_map(|width| [(width, false), (width, true)]);
    sizes.map(|(width, is_gated)| case(width, is_gated)).collect()
}

fn numbers(count: usize, seed: usize) -> Vec<bf16> {
    let number = |at: usize| ((at * 7919 + seed * 131) * (at + 17) % 2003) as f32 / 1001.0 - 1.0;
    (0..count).map(|at| bf16::from_f32(number(at))).collect()
}

fn widened(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|value| Element::to_f32(*value)).collect()
}

fn case(width: usize, is_gated: bool) -> Case {
    let load = move |kernels: &mut _| AddShared::<bf16>::load(kernels, width, is_gated);
    Case::new(format!("shared::{width}_gated_{is_gated}"), load, move |gpu, add| {
        for tokens in [0, 1, 7, 130] {
            let rows = |seed| numbers(tokens * width, seed);
            let (hidden, shared, before) = (rows(1), rows(2), rows(3));
            let gate: Vec<f32> = widened(&numbers(if is_gated { width } else { 0 }, 4));
            let mut expected: Vec<f64> = widened(&before).into_iter().map(f64::from).collect();
            reference::add_shared(&widened(&hidden), &gate, &widened(&shared), &mut expected);
            let mut out = gpu.upload(&before);
            let (hidden, shared, gate) =
                (gpu.upload(&hidden), gpu.upload(&shared), gpu.upload(&gate));
            let gate = is_gated.then(|| (hidden.slice(), gate.slice()));
            add.launch(&gpu.stream, tokens, shared.slice(), gate, &mut out.slice_mut())?;
            for (found, expected) in widened(&gpu.download(&out)).into_iter().zip(expected) {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= expected.abs() / 256.0 + 1e-5, "{found} for {expected}");
            }
        }
        Ok::<(), MoeError>(())
    })
}
