//! Attention of one token of one sequence, in parts of 64 keys.
//!
//! Few blocks of threads are at work, so what counts is how soon each is done: keys and values, all but
//! those of the newest token, are in registers before the kernel waits for the one ahead of it.

pub mod cuda;
mod text;

use super::Cut;

/// Keys of a step: 16, a block of the cache, for each warp.
pub(crate) const STEP: usize = 64;

impl Cut {
    /// PTX, from `length` and `window`: `first`, the key that the first part begins with, `share`, keys of a
    /// part, and `count`, parts.
    pub(crate) fn text(&self) -> String {
        let Self { parts_max, step_keys, part_keys_min } = *self;
        format!(
            "sub.s32 first, length, window;
max.s32 first, first, 0;
div.s32 first, first, {step_keys};
mul.lo.s32 first, first, {step_keys};
sub.s32 count, length, first;
add.s32 share, count, {};
div.s32 share, share, {parts_max};
add.s32 share, share, {};
div.s32 share, share, {step_keys};
mul.lo.s32 share, share, {step_keys};
max.s32 share, share, {part_keys_min};
add.s32 count, count, share;
sub.s32 count, count, 1;
div.s32 count, count, share;
",
            parts_max - 1,
            step_keys - 1,
        )
    }
}
