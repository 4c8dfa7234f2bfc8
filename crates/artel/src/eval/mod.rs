//! Evaluations: problems with known answers, and how a model's replies are scored.

pub mod arithmetic;
pub mod completions;
pub mod gsm8k;
pub mod remote;
