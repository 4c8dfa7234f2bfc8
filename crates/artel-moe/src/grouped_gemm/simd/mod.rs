//! Kernels by instruction set, and which format uses which.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod vector;

use artel_device::cpu::{CpuFeatures, Isa};
use vector::VectorKernel;

use super::{GemmFormat, Kernel};
use crate::quant::{Bf16, F16, F32, Fp8Block128};

macro_rules! vector_kernels {
    ($($format:ty),*) => { $(
        impl GemmFormat for $format {
            fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self> {
                match features.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx | Isa::Avx512 => &VectorKernel::<avx512::Lanes16>::NEW,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => &VectorKernel::<avx2::Lanes8>::NEW,
                    _ => &VectorKernel::<portable::Portable>::NEW,
                }
            }
        }
    )* };
}
vector_kernels!(F32, F16, Bf16, Fp8Block128);
