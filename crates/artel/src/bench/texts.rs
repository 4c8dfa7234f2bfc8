//! A model's tokenizer and chat template.

use anyhow::Result;
use artel_model::{ChatTemplate, Checkpoint, ModelError, Tokenizer};

/// What is needed to make and count prompts.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Turns text into tokens.
    pub tokenizer: Tokenizer,
    /// Turns messages into text, where the model has a template.
    pub template: Option<ChatTemplate>,
    /// Where they come from.
    pub name: String,
}

impl Texts {
    /// Reads the tokenizer and, where there is one, the template.
    ///
    /// # Errors
    /// When there is no tokenizer or a file is broken.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let tokenizer = Tokenizer::read(checkpoint)?;
        let template = match ChatTemplate::read(checkpoint) {
            Ok(template) => Some(template),
            Err(ModelError::NoChatTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { tokenizer, template, name: checkpoint.name() })
    }
}
