//! The arithmetic units alone: operands stay in registers, so nothing else can be the limit.

use artel_device::cpu::{CpuFeatures, Isa};

/// Independent sums: as many as hide the latency of a multiply-add, with room for the operands.
const SUMS: usize = 10;

/// Multiply-adds on vectors of one instruction set; see [`multiply_add_vectors`].
#[cfg(target_arch = "x86_64")]
macro_rules! multiply_adds {
    ($name:ident, $features:literal, $vector:ty, $splat:ident, $fma:ident, $cast:ident) => {
        #[target_feature(enable = $features)]
        fn $name(a: f32, b: f32, rounds: usize) -> f32 {
            use std::arch::x86_64::*;
            let (a, b) = ($splat(a), $splat(b));
            let mut sums: [$vector; SUMS] = [$splat(0.0); SUMS];
            for _ in 0..rounds {
                // A closure would not be compiled for the instruction set.
                for sum in &mut sums {
                    *sum = $fma(a, b, *sum);
                }
            }
            let mut total = 0.0;
            for sum in sums {
                total += $cast(sum);
            }
            total
        }
    };
}
#[cfg(target_arch = "x86_64")]
multiply_adds!(adds_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32);
#[cfg(target_arch = "x86_64")]
multiply_adds!(adds_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);

/// float32 numbers in a vector of `features`.
pub fn lanes(features: CpuFeatures) -> usize {
    match features.isa() {
        Isa::Portable => 1,
        Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Amx => 16,
    }
}

/// `rounds` times [`SUMS`] multiply-adds of vectors: [`vector_operations`] a round.
pub fn multiply_add_vectors(features: CpuFeatures, [a, b]: [f32; 2], rounds: usize) -> f32 {
    match features.isa() {
        // SAFETY: `features` proves the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { adds_avx512(a, b, rounds) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { adds_avx2(a, b, rounds) },
        _ => {
            let mut sums = [0f32; SUMS];
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum += a * b);
            }
            sums.iter().sum()
        }
    }
}

/// Operations of a round of [`multiply_add_vectors`].
pub fn vector_operations(features: CpuFeatures) -> usize {
    2 * lanes(features) * SUMS
}

/// Operations of a round of [`multiply_tiles`].
pub const TILE_OPERATIONS: usize = 4 * 2 * 16 * 16 * 32;

/// Four tiles of 16 rows of 32 bfloat16 numbers, as bits.
#[repr(align(64))]
pub struct Tiles(pub [u16; 4 * 16 * 32]);

/// `rounds` times four products of AMX tiles.
///
/// # Panics
/// Without AMX.
#[cfg(target_arch = "x86_64")]
pub fn multiply_tiles(features: CpuFeatures, operands: &Tiles, rounds: usize) {
    assert_eq!(features.isa(), Isa::Amx, "this is a bug: tiles are multiplied without AMX");
    // Palette 1; eight tiles of 16 rows of 64 bytes.
    let mut configuration = [0u8; 64];
    configuration[0] = 1;
    for tile in 0..8 {
        configuration[16 + 2 * tile] = 64;
        configuration[48 + tile] = 16;
    }
    // SAFETY: `features` proves AMX and the permission to use it; reads the configuration and four
    // tiles of 1 KiB from `operands`.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{configuration}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{operands} + {line}]",
            "tileloadd tmm5, [{operands} + {line} + 1024]",
            "tileloadd tmm6, [{operands} + {line} + 2048]",
            "tileloadd tmm7, [{operands} + {line} + 3072]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            configuration = in(reg) configuration.as_ptr(),
            operands = in(reg) operands.0.as_ptr(),
            line = in(reg) 64usize,
            rounds = inout(reg) rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// Tiles exist on x86-64 alone.
///
/// # Panics
/// Always.
#[cfg(not(target_arch = "x86_64"))]
pub fn multiply_tiles(_: CpuFeatures, _: &Tiles, _: usize) {
    unreachable!("this is a bug: tiles are multiplied without AMX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_does_the_same_work() {
        for features in CpuFeatures::every_supported() {
            let sum = multiply_add_vectors(features, [0.5, 0.25], 64);
            assert_eq!(sum, 64.0 * 0.125 * SUMS as f32, "{}", features.isa());
        }
    }
}
