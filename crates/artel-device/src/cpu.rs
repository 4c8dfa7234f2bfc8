//! What this processor can do, and how many of its cores are used.

use std::fmt;

use crate::DeviceError;

/// The instruction sets that kernels are written for, weakest first. Each includes the ones
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// AVX2 with FMA and half-precision conversion.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL, VBMI) with dot products of bfloat16 and of bytes (VNNI).
    Avx512,
    /// AMX tiles with bfloat16 products, on top of AVX-512.
    Amx,
}

impl Isa {
    /// All of them, weakest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Name as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Proof that this processor runs an instruction set: kernels are chosen by it, and it can only
/// be made by asking the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeatures {
    isa: Isa,
    row_invariant: bool,
}

impl CpuFeatures {
    /// Asks the processor, and on Linux the kernel for the permission to use AMX tiles.
    pub fn detect() -> Self {
        Self { isa: detect_isa(), row_invariant: false }
    }

    /// The same processor used as if it could do no more than `isa`.
    pub fn at_most(self, isa: Isa) -> Self {
        Self { isa: self.isa.min(isa), ..self }
    }

    /// The same processor with kernels that treat any number of rows alike: the bits of a row do
    /// not depend on which others are computed with it. Costs time where few rows have a faster
    /// kernel that rounds in another way.
    pub fn with_invariant_rows(self) -> Self {
        Self { row_invariant: true, ..self }
    }

    /// Whether kernels must treat any number of rows alike.
    pub fn has_invariant_rows(self) -> bool {
        self.row_invariant
    }

    /// The strongest instruction set that may be used.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Runs a loop compiled for the strongest instruction set, so that the compiler's own
    /// vectorisation may use it.
    pub fn vectorize<W: Vectorized>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        match self.isa {
            // SAFETY: a value with this instruction set only exists where the processor has it.
            Isa::Amx | Isa::Avx512 => return unsafe { run_avx512(work) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { run_avx2(work) },
            Isa::Portable => {}
        }
        work.run()
    }

    /// One value per instruction set that this processor runs: what tests go through.
    pub fn every_supported() -> Vec<Self> {
        let best = Self::detect();
        let supported = Isa::ALL.into_iter().filter(|&isa| isa <= best.isa);
        supported.map(|isa| best.at_most(isa)).collect()
    }
}

/// A loop that [`CpuFeatures::vectorize`] compiles once per instruction set. `run` and what it
/// calls must be `#[inline(always)]`, or the loop stays what the portable build makes of it.
pub trait Vectorized {
    /// What the loop returns.
    type Output;
    /// The loop.
    fn run(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<W: Vectorized>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<W: Vectorized>(work: W) -> W::Output {
    work.run()
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_isa() -> Isa {
    Isa::Portable
}

#[cfg(target_arch = "x86_64")]
fn detect_isa() -> Isa {
    macro_rules! all_of {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    if !all_of!("avx2", "fma", "f16c") {
        return Isa::Portable;
    }
    if !all_of!("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi")
        || !all_of!("avx512bf16", "avx512vnni")
    {
        return Isa::Avx2;
    }
    if processor_has_amx_bf16() && amx_permission() { Isa::Amx } else { Isa::Avx512 }
}

#[cfg(target_arch = "x86_64")]
fn processor_has_amx_bf16() -> bool {
    // CPUID leaf 7, EDX: bit 22 is AMX-BF16, bit 24 is AMX-TILE.
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    let highest_leaf = std::arch::x86_64::__cpuid(0).eax;
    highest_leaf >= 7
        && std::arch::x86_64::__cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
}

/// Linux enlarges a process's saved state for the tiles only on request; every thread that is
/// started later may then use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number, reads no memory of ours, and may be repeated.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_permission() -> bool {
    false
}

/// Cores that work is spread over where this is called.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `work` with all parallel steps inside it spread over `count` threads.
///
/// # Errors
/// [`DeviceError::Threads`] when the threads cannot be started.
pub fn with_threads<R: Send>(
    count: usize,
    work: impl FnOnce() -> R + Send,
) -> Result<R, DeviceError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .map_err(|why| DeviceError::Threads { count, why: why.to_string() })?;
    Ok(pool.install(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_adds_features() {
        let best = CpuFeatures::detect();
        assert_eq!(best.at_most(Isa::Amx), best);
        assert_eq!(best.at_most(Isa::Portable).at_most(Isa::Amx).isa(), Isa::Portable);
        assert_eq!(CpuFeatures::every_supported().last(), Some(&best));
    }

    #[test]
    fn work_runs_on_the_threads_asked_for() {
        assert_eq!(with_threads(3, threads).unwrap(), 3);
    }
}
