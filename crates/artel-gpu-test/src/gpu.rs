use artel_device::cuda::{Context, CudaError, DeviceBuffer, Stream};
use bytemuck::Pod;

/// The device that tests run on: GPU 0.
#[derive(Clone)]
pub struct Gpu {
    /// Where kernels are launched.
    pub stream: Stream,
}

impl Gpu {
    /// Opens the device.
    ///
    /// # Errors
    /// [`CudaError`] when there is none.
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
