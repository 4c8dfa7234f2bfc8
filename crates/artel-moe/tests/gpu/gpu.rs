//! What the tests of all operations share.

use artel_device::cuda::{Context, CudaError, DeviceBuffer, Kernels, Stream};
use artel_moe::MoeError;
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
pub type Run = Box<dyn FnOnce(&Gpu) -> Result<(), MoeError> + Send>;

/// The first half: asks for the kernels of the test; also called without a GPU, to list them.
pub type Load = Box<dyn Fn(&mut Kernels) -> Result<Run, MoeError>>;

/// One test.
pub struct Case {
    pub name: String,
    pub load: Load,
}

impl Case {
    pub fn new<L: Clone + Send + 'static>(
        name: impl Into<String>,
        load: impl Fn(&mut Kernels) -> Result<L, MoeError> + 'static,
        run: impl Fn(&Gpu, &L) -> Result<(), MoeError> + Clone + Send + 'static,
    ) -> Self {
        let load = move |kernels: &mut Kernels| -> Result<Run, MoeError> {
            let (loaded, run) = (load(kernels)?, run.clone());
            Ok(Box::new(move |gpu| run(gpu, &loaded)))
        };
        Self { name: name.into(), load: Box::new(load) }
    }
}
