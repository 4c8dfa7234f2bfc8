//! Checkpoints, tokenizers, chat templates and one short file per architecture.
//!
//! A checkpoint is opened ([`Checkpoint`]), its model built ([`Model::load`]) and run
//! ([`Model::forward`]); text goes in and out through [`Tokenizer`] and [`ChatTemplate`]. Only this
//! crate reads files of checkpoints, and it trusts nothing in them.

mod architectures;
pub mod chat;
pub mod checkpoint;
pub mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
mod decoder;
mod error;
mod generation;
mod model;
pub mod quantize;
pub mod tokenizer;
mod weights;

pub use architectures::known_architectures;
pub use artel_layers::attention::{BLOCK_TOKENS, BlockId, KvCache};
pub use artel_moe::quant::Format;
pub use chat::{Chat, ChatTemplate, Ending, Message};
pub use checkpoint::{Checkpoint, Progress};
pub use decoder::{LogitsOf, SequenceInput, Workspace};
pub use error::{ModelError, Result};
pub use generation::GenerationConfig;
pub use model::{Model, ModelConfig};
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::{FormatBytes, Group, LoadOptions, Parameters};
