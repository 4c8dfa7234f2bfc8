//! The AMX instructions, which have no stable intrinsics. Registers: `tmm0`-`tmm3` sums (weight half
//! 0 or 1, operand tile 0 or 1: half * 2 + tile), `tmm4`-`tmm5` weights, `tmm6`-`tmm7` activations.
//!
//! The compiler makes no tile code of its own, so tiles keep their contents from one of these
//! functions to the next on the same thread.

use std::arch::asm;

/// float32 numbers of a tile of sums.
pub(super) const TILE: usize = 256;

/// Sums of two weight halves times one or two operand tiles, each `[16 weight rows][16 tokens]`.
#[repr(align(64))]
pub(super) struct Sums(pub [[f32; TILE]; 4]);

impl Sums {
    pub const ZERO: Self = Self([[0.0; TILE]; 4]);
}

/// Two times sixteen rows of bfloat16 weights, `pitch` bytes from row to row.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub first: *const u8,
    pub pitch: usize,
}

#[repr(C, align(64))]
struct TileConfig([u8; 64]);

/// Palette 1; eight tiles of 16 rows of 64 bytes.
static CONFIG: TileConfig = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    TileConfig(bytes)
};

/// # Safety
/// The processor must have AMX and the process the permission to use it; the same holds for every
/// function of this file, and all others must be called between this one and [`release`].
#[inline(always)]
pub(super) unsafe fn configure() {
    // SAFETY: the caller's; reads 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
}

/// Gives the tiles back, so that a thread switch need not save them.
///
/// # Safety
/// As for [`configure`].
#[inline(always)]
pub(super) unsafe fn release() {
    // SAFETY: the caller's.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// # Safety
/// As for [`configure`].
#[inline(always)]
pub(super) unsafe fn zero() {
    // SAFETY: the caller's; touches tiles only.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem),
        );
    }
}

/// Goes on with sums that were stored.
///
/// # Safety
/// As for [`configure`].
#[inline(always)]
pub(super) unsafe fn load(sums: &Sums) {
    // SAFETY: the caller's; reads four tiles of 1 KiB from `sums`.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            sums = in(reg) sums.0.as_ptr(),
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, readonly),
        );
    }
}

/// Adds `steps` steps of 32 columns for the operand tiles at `x` and at `x + second`.
///
/// # Safety
/// As for [`configure`]; all rows of `weights` must be readable for `steps * 64` bytes and both
/// operand tiles for `steps` KiB.
#[inline(always)]
pub(super) unsafe fn add_two(weights: Weights, x: *const f32, second: *const f32, steps: usize) {
    debug_assert!(steps > 0);
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {pitch}]",
            "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{c} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{d} + {pitch}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {d}, 64",
            "add {b}, 1024",
            "add {c}, 1024",
            "dec {steps}",
            "jnz 2b",
            a = inout(reg) weights.first => _,
            d = inout(reg) weights.first.wrapping_add(16 * weights.pitch) => _,
            b = inout(reg) x => _,
            c = inout(reg) second => _,
            pitch = in(reg) weights.pitch,
            line = in(reg) 64usize,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// As [`add_two`] for one operand tile.
///
/// # Safety
/// As for [`add_two`].
#[inline(always)]
pub(super) unsafe fn add_one(weights: Weights, x: *const f32, steps: usize) {
    debug_assert!(steps > 0);
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {pitch}]",
            "tileloadd tmm6, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{d} + {pitch}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {a}, 64",
            "add {d}, 64",
            "add {b}, 1024",
            "dec {steps}",
            "jnz 2b",
            a = inout(reg) weights.first => _,
            d = inout(reg) weights.first.wrapping_add(16 * weights.pitch) => _,
            b = inout(reg) x => _,
            pitch = in(reg) weights.pitch,
            line = in(reg) 64usize,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack, readonly),
        );
    }
}

/// Writes the sums of both operand tiles.
///
/// # Safety
/// As for [`configure`].
#[inline(always)]
pub(super) unsafe fn store(sums: &mut Sums) {
    // SAFETY: the caller's; writes four tiles of 1 KiB into `sums`.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) sums.0.as_mut_ptr(),
            line = in(reg) 64usize,
            options(nostack),
        );
    }
}
