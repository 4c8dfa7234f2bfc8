//! Memory on the GPU and page-locked memory of the host.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::context::check;
use super::{Context, CudaError, Stream};

/// Elements on one GPU, freed when dropped (which waits for the kernels that use them).
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    address: u64,
    len: usize,
    context: Context,
    element: PhantomData<T>,
}

// SAFETY: an address on the device is a number; the driver may be called from any thread.
unsafe impl<T: Pod + Send> Send for DeviceBuffer<T> {}
// SAFETY: shared use only reads the address and the length.
unsafe impl<T: Pod + Sync> Sync for DeviceBuffer<T> {}

impl<T: Pod> DeviceBuffer<T> {
    /// Room for `len` elements whose contents are whatever was there.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(context: &Context, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // The driver refuses empty allocations; an empty buffer still needs an address.
        let bytes = (len * size_of::<T>()).max(16);
        // SAFETY: the context is current; the allocation is freed exactly once, in `drop`.
        match unsafe { cuda_core::memory::malloc_sync(bytes) } {
            Ok(address) => {
                Ok(Self { address, len, context: context.clone(), element: PhantomData })
            }
            Err(_) => {
                let (free, total) = context.memory()?;
                Err(CudaError::OutOfMemory { bytes, free, total })
            }
        }
    }

    /// A copy of `elements`.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn from_host(context: &Context, elements: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::new(context, elements.len())?;
        buffer.write(0, elements)?;
        Ok(buffer)
    }

    /// `len` elements whose bytes are all zero.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn zeroed(context: &Context, len: usize) -> Result<Self, CudaError> {
        let mut buffer = Self::new(context, len)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// Overwrites every byte and waits.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), CudaError> {
        self.context.bind()?;
        let bytes = self.len * size_of::<T>();
        // SAFETY: the range is this buffer's.
        let status = unsafe { cuda_bindings::cuMemsetD8_v2(self.address, byte, bytes) };
        check(status, "filling memory")?;
        // SAFETY: the context is current.
        check(unsafe { cuda_bindings::cuCtxSynchronize() }, "waiting for the GPU")
    }

    /// Copies `elements` to position `start` and waits.
    ///
    /// # Errors
    /// [`CudaError::Length`] when they do not fit.
    pub fn write(&mut self, start: usize, elements: &[T]) -> Result<(), CudaError> {
        let expected = start.saturating_add(elements.len());
        if expected > self.len {
            let what = "the device buffer that is written";
            return Err(CudaError::Length { what, expected, actual: self.len });
        }
        self.context.bind()?;
        let address = self.address + (start * size_of::<T>()) as u64;
        // SAFETY: source and destination hold `elements.len()` elements, checked above.
        unsafe {
            cuda_core::memory::memcpy_htod_sync(address, elements.as_ptr(), size_of_val(elements))
        }
        .map_err(CudaError::driver("copying to the GPU"))?;
        // A copy from pageable memory returns when the driver has a copy of its own; other streams
        // would not wait for the rest of the way.
        // SAFETY: the context is current; null is its default stream, which copied.
        let status = unsafe { cuda_bindings::cuStreamSynchronize(std::ptr::null_mut()) };
        check(status, "waiting for a copy to the GPU")
    }

    /// All elements, once everything on `stream` has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for a kernel that failed.
    pub fn to_host(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        let mut elements = vec![T::zeroed(); self.len];
        stream.synchronize()?;
        // SAFETY: both sides hold `len` elements; nothing on the stream writes any more.
        let status = unsafe {
            let target = elements.as_mut_ptr().cast();
            cuda_bindings::cuMemcpyDtoH_v2(target, self.address, self.len * size_of::<T>())
        };
        check(status, "copying from the GPU")?;
        Ok(elements)
    }

    /// All elements, to be read by a kernel.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// All elements, to be written by a kernel.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies on the device.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // An error here means that the context is gone, and the memory with it.
        let _ = self.context.bind();
        // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
        let _ = unsafe { cuda_core::memory::free_sync(self.address) };
    }
}

macro_rules! device_slice {
    ($(#[$docs:meta])* $name:ident, $reference:ty) => {
        $(#[$docs])*
        #[derive(Debug)]
        pub struct $name<'a, T: Pod> {
            address: u64,
            len: usize,
            lifetime: PhantomData<$reference>,
        }

        impl<'a, T: Pod> $name<'a, T> {
            /// Memory of another engine.
            ///
            /// # Safety
            /// `address` holds `len` elements on the GPU of every stream that it is used on, for
            /// as long as kernels use it.
            pub unsafe fn from_raw(address: u64, len: usize) -> Self {
                Self { address, len, lifetime: PhantomData }
            }

            /// Where it begins on the device.
            pub fn address(&self) -> u64 {
                self.address
            }

            /// How many elements it has.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether it has none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// Checks that it has at least `expected` elements; `what` names it in the error.
            ///
            /// # Errors
            /// [`CudaError::Length`].
            pub fn expect_len(&self, what: &'static str, expected: usize) -> Result<(), CudaError> {
                match self.len >= expected {
                    true => Ok(()),
                    false => Err(CudaError::Length { what, expected, actual: self.len }),
                }
            }
        }
    };
}

device_slice!(
    /// Elements on the device that kernels read.
    DeviceSlice, &'a T
);
device_slice!(
    /// Elements on the device that a kernel writes.
    DeviceSliceMut, &'a mut T
);

impl<T: Pod> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Pod> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Pod> DeviceSlice<'a, T> {
    /// The same bytes as elements of another type; what does not make up a whole one is left out.
    pub fn cast<U: Pod>(self) -> DeviceSlice<'a, U> {
        let len = self.len * size_of::<T>() / size_of::<U>();
        DeviceSlice { address: self.address, len, lifetime: PhantomData }
    }

    /// The elements from `start` on, `len` of them.
    ///
    /// # Errors
    /// [`CudaError::Length`] when there are fewer.
    pub fn range(self, start: usize, len: usize) -> Result<Self, CudaError> {
        self.expect_len("the device slice that is cut", start.saturating_add(len))?;
        let address = self.address + (start * size_of::<T>()) as u64;
        Ok(Self { address, len, lifetime: PhantomData })
    }
}

impl<T: Pod> DeviceSliceMut<'_, T> {
    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// The elements from `start` on, `len` of them.
    ///
    /// # Errors
    /// [`CudaError::Length`] when there are fewer.
    pub fn range_mut(
        &mut self,
        start: usize,
        len: usize,
    ) -> Result<DeviceSliceMut<'_, T>, CudaError> {
        self.expect_len("the device slice that is cut", start.saturating_add(len))?;
        let address = self.address + (start * size_of::<T>()) as u64;
        Ok(DeviceSliceMut { address, len, lifetime: PhantomData })
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, lifetime: PhantomData }
    }
}

impl Context {
    /// Number of the GPU whose memory `address` lies in; `None` for what the driver does not know,
    /// such as plain host memory.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn device_of(&self, address: u64) -> Result<Option<usize>, CudaError> {
        self.bind()?;
        let attribute = cuda_bindings::CUpointer_attribute_enum_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        let mut ordinal = 0i32;
        // SAFETY: the attribute is one `i32`, and the driver does not follow the address.
        let status = unsafe {
            let target = std::ptr::from_mut(&mut ordinal).cast();
            cuda_bindings::cuPointerGetAttribute(target, attribute, address)
        };
        if status == cuda_bindings::cudaError_enum_CUDA_ERROR_INVALID_VALUE {
            return Ok(None);
        }
        check(status, "asking where memory lies")?;
        Ok(usize::try_from(ordinal).ok())
    }
}

/// The first columns of all rows of a table that is a part of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableColumns {
    /// Where the table begins.
    pub start: usize,
    /// Its rows.
    pub rows: usize,
    /// Elements of a row.
    pub stride: usize,
    /// Those of them that are copied.
    pub columns: usize,
}

/// Page-locked host memory, which the GPU copies from and to without a detour.
pub struct PinnedBuffer<T: Pod> {
    elements: *mut T,
    /// Where the device sees them.
    address: u64,
    len: usize,
    context: Context,
}

// SAFETY: the buffer owns its memory; elements are plain data.
unsafe impl<T: Pod + Send> Send for PinnedBuffer<T> {}
// SAFETY: shared use only reads the elements.
unsafe impl<T: Pod + Sync> Sync for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// `len` elements of zero bytes.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the system has no such memory left.
    pub fn zeroed(context: &Context, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        let bytes = (len * size_of::<T>()).max(16);
        // SAFETY: freed once, in `drop`.
        let pointer = unsafe { cuda_core::memory::malloc_host(bytes) }
            .map_err(CudaError::driver("locking host memory"))?;
        // SAFETY: the driver returned `bytes` writable bytes, aligned for every plain type.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        let mut buffer =
            Self { elements: pointer.cast(), address: 0, len, context: context.clone() };
        // SAFETY: the driver made the memory, which every context sees.
        let status = unsafe {
            cuda_bindings::cuMemHostGetDevicePointer_v2(&mut buffer.address, pointer.cast(), 0)
        };
        check(status, "asking where the GPU sees host memory")?;
        Ok(buffer)
    }

    /// Its elements as kernels read them over the bus.
    ///
    /// # Safety
    /// They stay as they are, and the buffer alive, until the kernels that read them have ended.
    pub unsafe fn on_device(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// Its elements as kernels write them over the bus.
    ///
    /// # Safety
    /// Nobody reads, writes or frees the buffer until the kernels that write it have ended.
    pub unsafe fn on_device_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, lifetime: PhantomData }
    }

    /// Its elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised elements owned by this buffer.
        unsafe { std::slice::from_raw_parts(self.elements, self.len) }
    }

    /// Its elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised elements owned by this buffer, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.elements, self.len) }
    }

    /// Begins to copy the first `count` elements to the beginning of `target`, in the order of
    /// `stream`.
    ///
    /// # Safety
    /// The elements stay as they are, and the buffer alive, until the copy has ended.
    ///
    /// # Errors
    /// [`CudaError::Length`] when there are fewer elements here or there.
    pub unsafe fn write_to(
        &self,
        stream: &Stream,
        count: usize,
        target: &mut DeviceSliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        if count > self.len {
            let what = "the pinned buffer that is read";
            return Err(CudaError::Length { what, expected: count, actual: self.len });
        }
        target.expect_len("the device slice that is filled", count)?;
        self.context.bind()?;
        let (source, bytes) = (self.elements.cast_const().cast(), count * size_of::<T>());
        // SAFETY: both sides hold `bytes` bytes; the caller keeps the source.
        let status = unsafe {
            cuda_bindings::cuMemcpyHtoDAsync_v2(target.address(), source, bytes, stream.handle())
        };
        check(status, "copying to the GPU")
    }

    /// Begins to copy a part of each row of a table to the same place of `target`, in the order of
    /// `stream`.
    ///
    /// # Safety
    /// As for [`write_to`](Self::write_to).
    ///
    /// # Errors
    /// [`CudaError::Length`] when the table ends behind the end of either side.
    pub unsafe fn write_columns_to(
        &self,
        stream: &Stream,
        table: TableColumns,
        target: &mut DeviceSliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let TableColumns { start, rows, stride, columns } = table;
        let end = start + rows * stride;
        if end > self.len || columns > stride {
            let what = "the pinned buffer that holds a table";
            return Err(CudaError::Length { what, expected: end.max(columns), actual: self.len });
        }
        target.expect_len("the device slice that holds a table", end)?;
        self.context.bind()?;
        let size = size_of::<T>();
        let copy = cuda_bindings::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            dstXInBytes: 0,
            dstY: 0,
            dstHost: std::ptr::null_mut(),
            dstArray: std::ptr::null_mut(),
            srcMemoryType: cuda_bindings::CUmemorytype_enum_CU_MEMORYTYPE_HOST,
            srcHost: self.elements.wrapping_add(start).cast_const().cast(),
            srcPitch: stride * size,
            dstMemoryType: cuda_bindings::CUmemorytype_enum_CU_MEMORYTYPE_DEVICE,
            dstDevice: target.address() + (start * size) as u64,
            dstPitch: stride * size,
            WidthInBytes: columns * size,
            Height: rows,
        };
        // SAFETY: both sides hold the whole table; the caller keeps the source.
        let status = unsafe { cuda_bindings::cuMemcpy2DAsync_v2(&copy, stream.handle()) };
        check(status, "copying columns to the GPU")
    }

    /// Lets the device fill its first elements, behind what was launched on `stream` before.
    ///
    /// # Safety
    /// Until that has happened, which the caller waits for, nobody reads, writes or frees the buffer,
    /// and nothing on another stream writes `source`.
    ///
    /// # Errors
    /// [`CudaError::Length`] when `source` is longer.
    pub unsafe fn begin_read(
        &mut self,
        stream: &Stream,
        source: DeviceSlice<'_, T>,
    ) -> Result<(), CudaError> {
        if source.len() > self.len {
            let what = "the pinned buffer that is filled";
            return Err(CudaError::Length { what, expected: source.len(), actual: self.len });
        }
        self.context.bind()?;
        let bytes = source.len() * size_of::<T>();
        // SAFETY: the target holds `bytes` bytes; the caller leaves it alone until they are there.
        let status = unsafe {
            let target = self.elements.cast();
            cuda_bindings::cuMemcpyDtoHAsync_v2(target, source.address(), bytes, stream.handle())
        };
        check(status, "copying from the GPU")
    }

    /// Fills it from the device and waits.
    ///
    /// # Errors
    /// [`CudaError::Length`] when `source` is longer.
    pub fn read_from(
        &mut self,
        stream: &Stream,
        source: DeviceSlice<'_, T>,
    ) -> Result<(), CudaError> {
        // SAFETY: borrowed exclusively until the wait below.
        unsafe { self.begin_read(stream, source) }?;
        stream.synchronize()
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // An error here means that the context is gone, and the lock with it.
        let _ = self.context.bind();
        // SAFETY: allocated in `zeroed`, freed once.
        let _ = unsafe { cuda_core::memory::free_host(self.elements.cast()) };
    }
}
