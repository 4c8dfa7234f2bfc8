//! RMS norm of rows of float32, a block of threads each, to bfloat16, to codes, or to both.
//!
//! At few rows what counts is how soon a row is done: a thread has eight neighbouring columns, and all that
//! it reads is asked for at once. The weight is read, and the second-level cache asked for the row, before
//! the kernel waits for the one ahead of it.

pub(super) mod cuda;
mod text;
