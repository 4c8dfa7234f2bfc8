//! Kernels by instruction set, and which format uses which.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod e4m3_dots;
#[cfg(target_arch = "x86_64")]
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod fp8_decode;
#[cfg(target_arch = "x86_64")]
mod fp8_quantize;
mod grouped;
#[cfg(target_arch = "x86_64")]
mod grouped_amx;
mod int8;
#[cfg(target_arch = "x86_64")]
mod part_dots;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod transpose;
mod vector;

use artel_device::cpu::{CpuFeatures, Isa};
use grouped::GroupedKernel;
use int8::Int8Kernel;
use vector::VectorKernel;

use super::{GemmFormat, Kernel};
use crate::quant::{Bf16, F16, F32, Fp8Block128, Fp8Channel, Fp8Tensor};
use crate::quant::{Int4W4A16, Int8W8A8, Int8W8A16, Mxfp4, Mxfp8, Nvfp4};

macro_rules! kernels {
    ($($format:ty, $amx:expr, $invariant:expr);*) => { $(
        impl GemmFormat for $format {
            fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self> {
                match features.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx if features.has_invariant_rows() => &$invariant,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx => &$amx,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => &VectorKernel::<Lanes16>::NEW,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => &VectorKernel::<avx2::Lanes8>::NEW,
                    _ => &VectorKernel::<portable::Portable>::NEW,
                }
            }
        }
    )* };
}
#[cfg(target_arch = "x86_64")]
use {
    avx512::Lanes16, e4m3_dots::E4m3Dots, few_rows::FEW_ROWS, grouped_amx::GroupedAmx,
    part_dots::PartDots,
};

// Vectors treat any number of rows alike. Tiles alone cost up to twice the time of dot products at
// 1 to 4 rows of small bfloat16 experts, and nothing where weights come from memory; dot products
// alone cost five to twelve times the time of tiles at 64 rows.
kernels!(
    F32, VectorKernel::<Lanes16>::NEW, VectorKernel::<Lanes16>::NEW;
    F16, VectorKernel::<Lanes16>::NEW, VectorKernel::<Lanes16>::NEW;
    Bf16, amx::Amx::<FEW_ROWS>, amx::Amx::<0>;
    Fp8Block128, amx::Amx::<FEW_ROWS>, amx::Amx::<0>;
    Fp8Tensor, amx::Amx::<FEW_ROWS>, amx::Amx::<0>;
    Fp8Channel, amx::Amx::<FEW_ROWS>, amx::Amx::<0>
);

macro_rules! grouped_kernels {
    ($($format:ty, $few_rows:expr);*) => { $(
        impl GemmFormat for $format {
            fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self> {
                match features.isa() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx if features.has_invariant_rows() => {
                        &const { GroupedAmx::<_, 0>($few_rows) }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx => &const { GroupedAmx::<_, FEW_ROWS>($few_rows) },
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 if !features.has_invariant_rows() => &$few_rows,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => &GroupedKernel::<Lanes16>::NEW,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => &GroupedKernel::<avx2::Lanes8>::NEW,
                    _ => &GroupedKernel::<portable::Portable>::NEW,
                }
            }
        }
    )* };
}
grouped_kernels!(
    Int8W8A16, PartDots::<Int8W8A16>::NEW;
    Int4W4A16, PartDots::<Int4W4A16>::NEW;
    Nvfp4, PartDots::<Nvfp4>::NEW;
    Mxfp4, PartDots::<Mxfp4>::NEW;
    Mxfp8, E4m3Dots
);

impl GemmFormat for Int8W8A8 {
    fn kernel(features: CpuFeatures) -> &'static dyn Kernel<Self> {
        match features.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512 => &Int8Kernel::<int8::Vnni>::NEW,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &Int8Kernel::<int8::Avx2>::NEW,
            _ => &Int8Kernel::<int8::Portable>::NEW,
        }
    }
}
