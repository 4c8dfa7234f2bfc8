//! What the tests of all operations share.

use artel_device::cuda::{Context, CudaError, DeviceBuffer, Kernels, Stream};
use artel_layers::LayersError;
use artel_moe::quant::Element;
use bytemuck::Pod;

/// The device that tests run on.
#[derive(Clone)]
pub struct Gpu {
    pub stream: Stream,
}

impl Gpu {
    pub fn open() -> Result<Self, CudaError> {
        Ok(Self { stream: Context::new(0)?.stream()? })
    }

    /// A copy on the device.
    pub fn upload<T: Pod>(&self, elements: &[T]) -> DeviceBuffer<T> {
        DeviceBuffer::from_host(self.stream.context(), elements).expect("device memory")
    }

    /// Memory whose bytes are all 0xff, so that what a kernel leaves out is seen.
    pub fn poisoned<T: Pod>(&self, len: usize) -> DeviceBuffer<T> {
        let mut buffer = DeviceBuffer::new(self.stream.context(), len).expect("device memory");
        buffer.fill_bytes(0xff).expect("device memory");
        buffer
    }

    /// The elements, once the kernels have ended.
    pub fn download<T: Pod>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        buffer.to_host(&self.stream).expect("the kernels end without an error")
    }
}

/// The second half of a test: with its kernels loaded, on the device. Panics when it fails.
pub type Run = Box<dyn FnOnce(&Gpu) -> Result<(), LayersError> + Send>;

/// The first half: asks for the kernels of the test; also called without a GPU, to list them.
pub type Load = Box<dyn Fn(&mut Kernels) -> Result<Run, LayersError>>;

/// One test.
pub struct Case {
    pub name: String,
    pub load: Load,
}

impl Case {
    pub fn new<L: Clone + Send + 'static>(
        name: impl Into<String>,
        load: impl Fn(&mut Kernels) -> Result<L, LayersError> + 'static,
        run: impl Fn(&Gpu, &L) -> Result<(), LayersError> + Clone + Send + 'static,
    ) -> Self {
        let load = move |kernels: &mut Kernels| -> Result<Run, LayersError> {
            let (loaded, run) = (load(kernels)?, run.clone());
            Ok(Box::new(move |gpu| run(gpu, &loaded)))
        };
        Self { name: name.into(), load: Box::new(load) }
    }
}

/// Numbers from -1.5 to 1.5 without a pattern that a row or a head could share.
pub fn numbers<A: Element>(count: usize, seed: usize) -> Vec<A> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            A::from_f32(((state >> 40) as f32 / 8_388_608.0 - 1.0) * 1.5)
        })
        .collect()
}

/// Exact.
pub fn widened<A: Element>(values: &[A]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// Half a unit in the last place of numbers near 1, and a little for the sums before.
pub fn rounding<A: Element>() -> f64 {
    match A::NAME {
        "bf16" => 1.0 / 256.0 + 1e-4,
        "f16" => 1.0 / 2048.0 + 1e-4,
        _ => 1e-5,
    }
}

/// Every number within `tolerance` of what is expected, relative to 1 and to the number.
#[track_caller]
pub fn assert_close<A: Element>(found: &[A], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found.to_f32()) - expected).abs();
        let near = error <= tolerance * (1.0 + expected.abs());
        assert!(near, "{found:?} for {expected} at {index}");
    }
}
