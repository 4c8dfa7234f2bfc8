//! The model's tokenizer and chat template, where this machine has them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use artel_model::{ChatTemplate, Checkpoint, ModelError, Tokenizer};

use super::client::ServedModel;
use crate::source;

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

/// Finds the tokenizer of `model`: in the folder that was asked for, else where the server has the
/// model from, else in the program.
///
/// # Errors
/// When it is nowhere, or the folder that was asked for has none.
pub fn find(wanted: Option<&Path>, model: &ServedModel) -> Result<Texts> {
    if let Some(folder) = wanted {
        let checkpoint = Checkpoint::open_texts(folder)
            .with_context(|| format!("--tokenizer {}", folder.display()))?;
        return Texts::read(&checkpoint);
    }
    let folders = [&model.root, &model.id].map(PathBuf::from);
    if let Some(folder) = folders.iter().find(|folder| folder.join("tokenizer.json").is_file()) {
        return Texts::read(&Checkpoint::open_texts(folder)?);
    }
    if [&model.root, &model.id].contains(&&source::BUNDLED_NAME.to_owned()) {
        return Texts::read(&source::bundled()?);
    }
    bail!(
        "the tokenizer of {} is not on this machine: give its folder by --tokenizer, or use \
         --skip-tokenizer-init with --dataset-name custom",
        model.id
    )
}
