//! The arithmetic units alone: operands stay in registers, so nothing else can be the limit.

use artel_device::cpu::{CpuFeatures, Isa, Vectorized};

/// Independent sums: as many as hide the latency of a multiply-add, with room for the operands.
const SUMS: usize = 10;

/// Multiply-adds on vectors of `LANES` float32 numbers, fused where the processor fuses them.
pub struct MultiplyAdds<const LANES: usize, const FUSED: bool> {
    /// Operands.
    pub operands: [[f32; LANES]; 2],
    /// Rounds of [`MultiplyAdds::OPERATIONS`].
    pub rounds: usize,
}

impl<const LANES: usize, const FUSED: bool> MultiplyAdds<LANES, FUSED> {
    /// Operations of a round.
    pub const OPERATIONS: usize = 2 * LANES * SUMS;
}

impl<const LANES: usize, const FUSED: bool> Vectorized for MultiplyAdds<LANES, FUSED> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let [a, b] = self.operands;
        let mut sums = [[0f32; LANES]; SUMS];
        for _ in 0..self.rounds {
            for sum in sums.as_flattened_mut().chunks_exact_mut(LANES) {
                for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                    *sum = if FUSED { a.mul_add(b, *sum) } else { a * b + *sum };
                }
            }
        }
        sums.as_flattened().iter().sum()
    }
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
