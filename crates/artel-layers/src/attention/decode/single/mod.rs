//! Attention of one token of one sequence, in parts of 64 keys.
//!
//! Few blocks of threads are at work, so what counts is how soon each is done: keys and values, all but
//! those of the newest token, are in registers before the kernel waits for the one ahead of it.

pub mod cuda;
mod text;

/// Keys of a step: 16, a block of the cache, for each warp.
pub(crate) const STEP: usize = 64;

/// How the parts of attention lie: see [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartsForm {
    /// Room for parts of a head.
    pub(crate) room: usize,
    /// Keys that are multiplied at a time.
    pub(crate) step: usize,
    /// Fewest keys of a part.
    pub(crate) keys_min: usize,
}

impl PartsForm {
    /// From `length` and `window`: `first`, the key that the first part begins with, `share`, keys of a
    /// part, and `count`, parts.
    pub(crate) fn cut(&self) -> String {
        let Self { room, step, keys_min } = *self;
        format!(
            "sub.s32 first, length, window;
max.s32 first, first, 0;
div.s32 first, first, {step};
mul.lo.s32 first, first, {step};
sub.s32 count, length, first;
add.s32 share, count, {};
div.s32 share, share, {room};
add.s32 share, share, {};
div.s32 share, share, {step};
mul.lo.s32 share, share, {step};
max.s32 share, share, {keys_min};
add.s32 count, count, share;
sub.s32 count, count, 1;
div.s32 count, count, share;
",
            room - 1,
            step - 1,
        )
    }
}
