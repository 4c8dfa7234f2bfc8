//! Chores of the workspace. `tidy` is a library too, so that the limits are an ordinary test.

pub mod tidy;
pub mod report;
pub mod toolkit;
