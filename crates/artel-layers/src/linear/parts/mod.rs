//! Sums of the parts of a product that its reader adds, without a launch in between.

pub mod cuda;
