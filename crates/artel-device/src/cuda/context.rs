//! Devices, streams and events.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytemuck::Pod;

use super::CudaError;
use super::memory::DeviceBuffer;

/// A generation of GPUs that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// Ampere (A100): no FP8, no programmatic dependent launch.
    Sm80,
    /// Hopper (H100, H200).
    Sm90,
    /// Blackwell of the data centre (B200).
    Sm100,
    /// Blackwell of the workstation (RTX PRO 6000, RTX 5090).
    Sm120,
}

impl Architecture {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm90, Self::Sm100, Self::Sm120];

    /// The name that compilers use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90 => "sm_90",
            Self::Sm100 => "sm_100",
            Self::Sm120 => "sm_120",
        }
    }

    /// Whether a kernel may start before the one ahead of it has ended.
    pub fn has_programmatic_launch(self) -> bool {
        self >= Self::Sm90
    }

    /// Whether its matrix units multiply FP8.
    pub fn has_fp8(self) -> bool {
        self >= Self::Sm90
    }

    /// The generation whose kernels run on a device of this compute capability.
    fn of_capability(major: i32, minor: i32) -> Result<Self, CudaError> {
        match major {
            8 => Ok(Self::Sm80),
            9 => Ok(Self::Sm90),
            10 => Ok(Self::Sm100),
            12 => Ok(Self::Sm120),
            _ => Err(CudaError::Architecture { name: format!("sm_{major}{minor}") }),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = CudaError;

    fn from_str(name: &str) -> Result<Self, CudaError> {
        let found = Self::ALL.into_iter().find(|architecture| architecture.name() == name);
        found.ok_or_else(|| CudaError::Architecture { name: name.to_owned() })
    }
}

/// How many GPUs the driver sees.
///
/// # Errors
/// [`CudaError::NoDriver`] without a driver.
pub fn device_count() -> Result<usize, CudaError> {
    if let Some(error) = cuda_bindings::cuda_driver_load_error() {
        return Err(CudaError::NoDriver { why: error.to_string() });
    }
    let count = cuda_core::Context::device_count().map_err(CudaError::driver("counting GPUs"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// One GPU of this process. Cloning is cheap; all clones are the same context.
#[derive(Debug, Clone)]
pub struct Context {
    inner: Arc<cuda_core::Context>,
    architecture: Architecture,
}

impl Context {
    /// Opens GPU number `ordinal` and makes its context current on this thread.
    ///
    /// # Errors
    /// [`CudaError`] without a driver, without such a GPU, or for a GPU without kernels.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let inner =
            cuda_core::Context::new(ordinal).map_err(CudaError::driver("opening the GPU"))?;
        let (major, minor) =
            inner.compute_capability().map_err(CudaError::driver("asking the GPU what it is"))?;
        Ok(Self { inner, architecture: Architecture::of_capability(major, minor)? })
    }

    /// Its generation.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Its marketing name.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn name(&self) -> Result<String, CudaError> {
        self.inner.device_name().map_err(CudaError::driver("asking for the name of the GPU"))
    }

    /// How many multiprocessors it has.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn multiprocessors(&self) -> Result<usize, CudaError> {
        let count = self.inner.multiprocessor_count();
        Ok(count.map_err(CudaError::driver("counting multiprocessors"))? as usize)
    }

    /// The newest CUDA that its driver supports, such as `13.0`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn driver_version(&self) -> Result<String, CudaError> {
        let mut version = 0;
        // SAFETY: the out-pointer is valid for the call.
        check(unsafe { cuda_bindings::cuDriverGetVersion(&mut version) }, "asking the driver")?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// Bytes free and bytes in all.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both out-pointers are valid for the call and the context is current.
        let result = unsafe { cuda_bindings::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, "asking for free memory")?;
        Ok((free, total))
    }

    /// A stream of its own.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn stream(&self) -> Result<Stream, CudaError> {
        let inner = self.inner.new_stream().map_err(CudaError::driver("making a stream"))?;
        Ok(Stream { handle: inner.cu_stream(), _own: Some(inner), context: self.clone() })
    }

    /// A stream that another engine owns.
    ///
    /// # Safety
    /// `handle` is a `CUstream` of this device's primary context and outlives what is made from it.
    pub unsafe fn borrow_stream(&self, handle: *mut std::ffi::c_void) -> Stream {
        Stream { handle: handle.cast(), _own: None, context: self.clone() }
    }

    /// Room for `len` elements, not yet written.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn buffer<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        DeviceBuffer::new(self, len)
    }

    /// Makes this context the current one of the calling thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.inner.bind_to_thread().map_err(CudaError::driver("selecting the GPU"))
    }

    pub(super) fn inner(&self) -> &Arc<cuda_core::Context> {
        &self.inner
    }
}

/// A queue of work on one GPU. What is launched on it runs in order.
#[derive(Debug, Clone)]
pub struct Stream {
    handle: cuda_bindings::CUstream,
    /// Keeps a stream of our own. A borrowed one is a handle and nothing else: whatever asked it
    /// something when dropped would break a recording that its owner is making.
    _own: Option<Arc<cuda_core::Stream>>,
    context: Context,
}

// SAFETY: a handle may be used from any thread; the driver synchronises internally.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Waits until everything launched on it has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for a kernel that failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: the handle is a stream of the current context.
        check(unsafe { cuda_bindings::cuStreamSynchronize(self.handle) }, "waiting for the GPU")
    }

    /// Its GPU.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn handle(&self) -> cuda_bindings::CUstream {
        self.handle
    }
}

/// A point in a stream, for timing.
pub struct Event {
    inner: cuda_core::Event,
}

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(context: &Context) -> Result<Self, CudaError> {
        let inner = context.inner().new_event().map_err(CudaError::driver("making an event"))?;
        Ok(Self { inner })
    }

    /// Happens when everything launched on `stream` so far has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.context.bind()?;
        // SAFETY: the stream is of the current context; an event of another one is refused.
        let status = unsafe { cuda_bindings::cuEventRecord(self.inner.cu_event(), stream.handle) };
        check(status, "recording an event")
    }

    /// Waits until it has happened; one that was never recorded has.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for a kernel before it that failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the event is valid as long as this value.
        let status = unsafe { cuda_bindings::cuEventSynchronize(self.inner.cu_event()) };
        check(status, "waiting for an event")
    }

    /// Milliseconds from this event to `end`, waiting for both.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn elapsed_ms(&self, end: &Self) -> Result<f32, CudaError> {
        self.inner.elapsed_ms(&end.inner).map_err(CudaError::driver("timing"))
    }
}

/// Turns a status of the driver into a result.
pub(super) fn check(status: cuda_bindings::CUresult, what: &'static str) -> Result<(), CudaError> {
    match status {
        0 => Ok(()),
        failed => Err(CudaError::driver(what)(cuda_core::DriverError(failed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_read_as_compilers_write_them() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.to_string().parse(), Ok(architecture));
        }
        let error = "sm_75".parse::<Architecture>().unwrap_err().to_string();
        assert!(error.contains("sm_75") && error.contains("sm_90"), "{error}");
        assert_eq!(Architecture::of_capability(8, 6), Ok(Architecture::Sm80));
        assert!(Architecture::of_capability(7, 5).is_err());
    }
}
