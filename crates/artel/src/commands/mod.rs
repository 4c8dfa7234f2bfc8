//! One file a command.

pub mod bench;
pub mod eval;
pub mod inspect;
pub mod logits;
pub mod run;
