//! Rows of activations in the order in which lanes read words.
//!
//! Lane `t` of four reads sixteen bytes of a row of weights at once: words `16 c + 4 t` to `16 c + 4 t + 3` of the 32
//! of two planes of 128 columns. Matrix instruction `2 c + o` takes words `4 t + 2 o` and `4 t + 2 o + 1` of these, two
//! bytes of each. So column `64 c + 16 t + 8 o + 4 h + 2 i + p` of a plane stands at place `32 c + 16 o + 8 h + 2 t + i` of
//! half `p`.
//!
//! Example: half 0 of a plane begins with columns 0, 2, 16, 18, 32, 34, 48, 50, then 4, 6, 20, 22.

pub mod cuda;
