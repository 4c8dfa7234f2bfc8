//! Where the tokenizer of a served model is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use artel_model::Checkpoint;

use super::client::ServedModel;
use crate::bench::texts::Texts;
use crate::source;

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
