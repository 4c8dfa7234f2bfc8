//! Embedding: copies, bit by bit; ids without a row give zeros.

use artel_gpu_test::Case;
use artel_layers::embedding::cuda::Embed;
use artel_moe::quant::Element;
use half::{bf16, f16};

use crate::numbers::numbers;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in [1, 7, 1024, 1030, 3072] {
        cases.push(case::<bf16, bf16>(width));
        cases.push(case::<bf16, f32>(width));
    }
    cases.push(case::<f16, f16>(64));
    cases
}

fn case<W: Element, T: Element>(width: usize) -> Case {
    let name = format!("embedding::{}_to_{}_{width}", W::NAME, T::NAME);
    Case::new(
        name,
        move |kernels| Embed::<W, T>::load(kernels, width),
        move |gpu, embed| {
            let vocabulary = 50;
            let weight = numbers::<W>(vocabulary * width, 1);
            let on_device = gpu.upload(&weight);
            for ids in [vec![], vec![0], vec![49, 3, 3, 0], vec![-1, 50, i32::MIN, i32::MAX, 7]] {
                let given = gpu.upload(&ids);
                let mut out = gpu.poisoned::<T>(ids.len() * width);
                embed.launch(
                    &gpu.stream,
                    on_device.slice(),
                    given.slice(),
                    &mut out.slice_mut(),
                )?;
                let row = |id: &i32| match (0..vocabulary as i32).contains(id) {
                    true => weight[*id as usize * width..][..width].to_vec(),
                    false => vec![W::from_f32(0.0); width],
                };
                let expected: Vec<T> =
                    ids.iter().flat_map(row).map(|value| T::from_f32(value.to_f32())).collect();
                assert_eq!(gpu.download(&out), expected, "{ids:?}");
            }
            Ok(())
        },
    )
}
