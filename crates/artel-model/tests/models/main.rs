//! Whole checkpoints: loaded, run, and compared with what transformers computes with them.

mod architectures;
mod broken;
mod context;
mod dummy;
mod formats;
mod quantized;
mod support;
