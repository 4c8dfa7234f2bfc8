//! Counting pairs: exact, whatever the number of layers, pairs and experts.

use artel_gpu_test::Case;
use artel_moe::eplb::count::cuda::CountPairs;
use artel_moe::eplb::count::{CountShape, reference};

pub fn cases() -> Vec<Case> {
    let shapes = [
        CountShape { layers: 1, pairs: 1, stride: 1, experts: 1 },
        CountShape { layers: 3, pairs: 0, stride: 8, experts: 4 },
        CountShape { layers: 48, pairs: 129, stride: 512, experts: 128 },
        CountShape { layers: 2, pairs: 20_000, stride: 20_004, experts: 7 },
    ];
    vec![Case::new("count::all_layers", CountPairs::load, move |gpu, count| {
        for shape in shapes {
            let ids: Vec<i32> = (0..shape.layers * shape.stride)
                .map(|at| (at * 7919 % (shape.experts + 3)) as i32 - 1)
                .collect();
            let mut expected = vec![5; shape.layers * shape.experts];
            let mut counts = gpu.upload(&expected);
            let ids_on_gpu = gpu.upload(&ids);
            for _ in 0..2 {
                reference::count_pairs(&shape, &ids, &mut expected);
                count.launch(&gpu.stream, shape, ids_on_gpu.slice(), &mut counts.slice_mut())?;
            }
            assert_eq!(gpu.download(&counts), expected, "{shape:?}");
        }
        Ok(())
    })]
}
