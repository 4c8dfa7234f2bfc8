//! Weights in words that are e4m3 numbers already (MXFP8), in the forms of the others: nothing is widened where few
//! rows meet them, and shifts make bfloat16 of them where many do.

pub(super) mod aligned;
pub(super) mod direct;
pub(super) mod product;
pub(super) mod widened;
