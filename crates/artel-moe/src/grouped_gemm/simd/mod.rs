//! Kernels by instruction set, and which format uses which.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod fp8_decode;
#[cfg(target_arch = "x86_64")]
mod fp8_quantize;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;
mod vector;

use artel_device::cpu::{CpuFeatures, Isa};
use vector::VectorKernel;

use super::{GemmFormat, Kernel};
use crate::quant::{Bf16, F16, F32, Fp8Block128, Fp8Channel, Fp8Tensor};

macro_rules! kernels {
    ($($format:ty, $amx:expr);*) => { $(
        impl GemmFormat for $format {
            fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self> {
                match features.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx => &$amx,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => &VectorKernel::<avx512::Lanes16>::NEW,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => &VectorKernel::<avx2::Lanes8>::NEW,
                    _ => &VectorKernel::<portable::Portable>::NEW,
                }
            }
        }
    )* };
}
kernels!(
    F32, VectorKernel::<avx512::Lanes16>::NEW;
    F16, VectorKernel::<avx512::Lanes16>::NEW;
    Bf16, amx::Amx;
    Fp8Block128, amx::Amx;
    Fp8Tensor, amx::Amx;
    Fp8Channel, amx::Amx
);
