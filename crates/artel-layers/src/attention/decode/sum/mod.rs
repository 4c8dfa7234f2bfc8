//! The parts of attention added up: the second launch of a step.

pub mod cuda;
pub(crate) mod text;

use super::Cut;
