//! Feed: the same ids as the definition.

use artel_gpu_test::Case;
use artel_layers::LayersError;
use artel_layers::feed::cuda::Feed;
use artel_layers::feed::reference;

pub fn cases() -> Vec<Case> {
    vec![Case::new("feed", Feed::load, |gpu, kernel| {
        for (rows, chosen) in [(0, 3), (1, 1), (3, 3), (255, 64), (256, 300), (1000, 1000)] {
            let mut ids: Vec<i32> = (0..rows).map(|row| 1000 + row).collect();
            // Every third row keeps its id; the sources of some lie beyond the tokens.
            let source = |row: i32| if row % 3 == 0 { -1 - row } else { (row * 7) % (chosen + 1) };
            let sources: Vec<i32> = (0..rows).map(source).collect();
            let tokens: Vec<i32> = (0..chosen).map(|index| index * 11 - 1).collect();
            let mut on_device = gpu.upload(&ids);
            let (from, of) = (gpu.upload(&sources), gpu.upload(&tokens));
            kernel.launch(&gpu.stream, &mut on_device.slice_mut(), from.slice(), of.slice())?;
            reference::feed(&mut ids, &sources, &tokens);
            assert_eq!(gpu.download(&on_device), ids);
        }
        Ok::<(), LayersError>(())
    })]
}
