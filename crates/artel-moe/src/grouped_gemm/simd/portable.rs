//! Vectors for any processor: eight numbers in an array.

use artel_device::cpu::Vectorized;
use half::{bf16, f16};

use super::vector::{Lanes, Load};
use crate::quant::e4m3_to_f32;

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

static E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = e4m3_to_f32(code as u8);
        code += 1;
    }
    values
};

// SAFETY: plain Rust runs everywhere.
unsafe impl Lanes for Portable {
    const COUNT: usize = 8;
    const E4M3_SCALE: f32 = 1.0;
    const NAME: &'static str = "portable";

    #[inline(always)]
    unsafe fn call<W: Vectorized>(work: W) -> W::Output {
        work.run()
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] * factor.0[lane] + sum.0[lane]))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8, values: &[f32; 16]) -> [Self; 2] {
        // SAFETY: the caller's.
        let bytes: [u8; 8] = unsafe { from.cast::<[u8; 8]>().read() };
        let value = |code: u8| values[usize::from(code & 15)];
        [Self(bytes.map(value)), Self(bytes.map(|byte| value(byte >> 4)))]
    }

    #[inline(always)]
    unsafe fn halves(from: *const f32) -> Self {
        // SAFETY: the caller's.
        let [a, b] = unsafe { from.cast::<[f32; 2]>().read() };
        Self([a, a, a, a, b, b, b, b])
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    /// Nothing: plain Rust has no word for it.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

macro_rules! load {
    ($($element:ty, $widen:expr);*) => { $(
        // SAFETY: reads eight numbers, as the trait asks its caller to provide.
        unsafe impl Load<$element> for Portable {
            #[inline(always)]
            unsafe fn load(from: *const $element) -> Self {
                // SAFETY: the caller's.
                Self(std::array::from_fn(|lane| $widen(unsafe { from.add(lane).read() })))
            }
        }
    )* };
}
load!(f32, |x: f32| x; f16, f16::to_f32; bf16, bf16::to_f32; u8, |code: u8| E4M3_VALUES[usize::from(code)]; i8, f32::from);
