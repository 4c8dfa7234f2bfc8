//! The words of a step on their way to the device.

mod cuda;

pub(super) use cuda::{Words, blocks, copy_inputs};
