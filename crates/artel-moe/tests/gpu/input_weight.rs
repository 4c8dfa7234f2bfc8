//! Weights on rows: the reference, rounded once.

use artel_gpu_test::Case;
use artel_moe::MoeError;
use artel_moe::input_weight::cuda::WeighRows;
use artel_moe::input_weight::reference::weigh_rows;
use artel_moe::quant::Element;
use half::bf16;

pub fn cases() -> Vec<Case> {
    [1, 100, 2880, 5120].into_iter().map(case).collect()
}

fn case(hidden_size: usize) -> Case {
    let load = move |kernels: &mut _| WeighRows::<bf16>::load(kernels, hidden_size);
    Case::new(format!("input_weight::{hidden_size}"), load, move |gpu, weigh| {
        for tokens in [0, 1, 7, 130] {
            let number = |at: usize| ((at * 7919) % 2003) as f32 / 1001.0 - 1.0;
            let rows: Vec<bf16> =
                (0..tokens * hidden_size).map(|at| bf16::from_f32(number(at))).collect();
            let weights: Vec<f32> = (0..tokens).map(|token| 0.03 * token as f32).collect();
            let exact: Vec<f64> = rows.iter().map(|&x| f64::from(Element::to_f32(x))).collect();
            let expected = weigh_rows(&exact, &weights, hidden_size);
            let (rows, weights) = (gpu.upload(&rows), gpu.upload(&weights));
            let mut out = gpu.poisoned::<bf16>(tokens * hidden_size);
            let operands = (rows.slice(), weights.slice());
            weigh.launch(&gpu.stream, tokens, operands, &mut out.slice_mut())?;
            for (found, expected) in gpu.download(&out).into_iter().zip(expected) {
                let rounded = bf16::from_f32(expected as f32);
                assert!(found == rounded, "{found}, not {rounded}");
            }
        }
        Ok::<(), MoeError>(())
    })
}
