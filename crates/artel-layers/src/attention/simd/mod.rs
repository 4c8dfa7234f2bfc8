//! The inner loops of attention, compiled once for each instruction set.
//!
//! The arithmetic is the same in all of them, in the same order, so the result is too.

mod block;

pub(super) use block::{Block, ROWS_MAX};

/// Attends for one block with the widest registers this machine has.
pub(super) fn attend(block: &mut Block<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            return unsafe { attend_avx512(block) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { attend_avx2(block) };
        }
    }
    block::attend(block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn attend_avx512(block: &mut Block<'_>) {
    block::attend(block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn attend_avx2(block: &mut Block<'_>) {
    block::attend(block);
}

/// What the instruction sets of this machine make of a block.
#[cfg(test)]
pub(super) fn every_instruction_set() -> Vec<fn(&mut Block<'_>)> {
    let mut found: Vec<fn(&mut Block<'_>)> = vec![|block| block::attend(block), attend];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        found.push(|block| unsafe { attend_avx2(block) });
    }
    found
}
