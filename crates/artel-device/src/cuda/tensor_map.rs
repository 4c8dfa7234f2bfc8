//! Descriptions of tensors for the copy engine of Hopper and its successors.

use bytemuck::Pod;

use super::context::check;
use super::{CudaError, DeviceSlice};

/// Most axes of a tensor that the copy engine knows.
const AXES_MAX: usize = 5;

/// A tensor of 16-bit numbers or of bytes in device memory that the copy engine brings to shared memory in
/// boxes; what a box has beyond the edges of the tensor becomes zero. Rows of a box are 128 bytes,
/// swizzled as the matrix units read them. (CUDA driver interface, tensor map objects.)
#[derive(Debug, Clone, Copy)]
pub struct TensorMap {
    pub(super) words: [u64; 16],
}

/// One axis of a tensor and of the boxes that are cut from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorAxis {
    /// Elements.
    pub len: usize,
    /// From one to the next, in elements; 1 for the first axis, then multiples of 16 bytes.
    pub stride: usize,
    /// Elements of a box, at most 256.
    pub of_box: usize,
}

/// Storage that has the alignment that the driver asks for.
#[repr(C, align(64))]
struct Aligned([u64; 16]);

impl TensorMap {
    /// Describes `slice` by its axes, the innermost first.
    ///
    /// # Errors
    /// [`CudaError::Length`] when the tensor reaches beyond the slice, [`CudaError::Driver`] for
    /// what the copy engine cannot do.
    pub fn new<T: Pod>(slice: DeviceSlice<'_, T>, axes: &[TensorAxis]) -> Result<Self, CudaError> {
        let data_type = match size_of::<T>() {
            1 => cuda_bindings::CUtensorMapDataType_enum_CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2 => cuda_bindings::CUtensorMapDataType_enum_CU_TENSOR_MAP_DATA_TYPE_UINT16,
            other => panic!("this is a bug: a tensor map of numbers of {other} bytes"),
        };
        assert!((2..=AXES_MAX).contains(&axes.len()), "this is a bug: {} axes", axes.len());
        let last: usize = axes.iter().map(|axis| axis.len.saturating_sub(1) * axis.stride).sum();
        if axes.iter().all(|axis| axis.len > 0) && last >= slice.len() {
            let (expected, actual) = (last + 1, slice.len());
            return Err(CudaError::Length { what: "a tensor of a kernel", expected, actual });
        }
        let lens = of(axes, |axis| axis.len.max(1) as u64);
        let strides = of(&axes[1..], |axis| (axis.stride * size_of::<T>()) as u64);
        let boxes = of(axes, |axis| axis.of_box as u32);
        let steps = [1u32; AXES_MAX];
        let mut map = Aligned([0; 16]);
        // SAFETY: the arrays have an element an axis, and the map is aligned and as long as the driver's.
        let status = unsafe {
            cuda_bindings::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                data_type,
                axes.len() as u32,
                slice.address() as *mut std::ffi::c_void,
                lens.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                cuda_bindings::CUtensorMapInterleave_enum_CU_TENSOR_MAP_INTERLEAVE_NONE,
                cuda_bindings::CUtensorMapSwizzle_enum_CU_TENSOR_MAP_SWIZZLE_128B,
                cuda_bindings::CUtensorMapL2promotion_enum_CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                cuda_bindings::CUtensorMapFloatOOBfill_enum_CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(status, "describing a tensor to the copy engine")?;
        Ok(Self { words: map.0 })
    }
}

/// One number of each axis, zeros behind.
fn of<N: Copy + Default>(axes: &[TensorAxis], number: impl Fn(&TensorAxis) -> N) -> [N; AXES_MAX] {
    let mut numbers = [N::default(); AXES_MAX];
    numbers.iter_mut().zip(axes).for_each(|(into, axis)| *into = number(axis));
    numbers
}
