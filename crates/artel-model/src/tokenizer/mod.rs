//! Text to token ids and back.

mod stream;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::de::IgnoredAny;
pub use stream::TextStream;

use crate::{Checkpoint, ModelError, Result};

const FILE: &str = "tokenizer.json";

/// The tokenizer of a checkpoint, from `tokenizer.json`.
///
/// A clone shares the vocabulary. Special tokens that appear in a text by name, as chat templates write them, become their ids.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::MissingFile`] when there is none, [`ModelError::Tokenizer`] when it does not
    /// load.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let text = checkpoint.find_text(FILE)?.ok_or_else(|| ModelError::MissingFile {
            checkpoint: checkpoint.name(),
            file: FILE.to_owned(),
            purpose: "turning text into token ids",
        })?;
        let file = checkpoint.describe(FILE);
        // The loader takes it for granted that the text is JSON.
        if let Err(source) = serde_json::from_str::<IgnoredAny>(&text) {
            return Err(ModelError::Json { file, source });
        }
        let mut inner: tokenizers::Tokenizer = guarded(|| text.parse())
            .map_err(|why| ModelError::Tokenizer { why: format!("{file} does not load: {why}") })?;
        // Some files carry the settings of their training run; a prompt is neither cut nor padded.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Token ids of a text that stands for itself: begins as the model expects a text to begin
    /// (a beginning-of-text token where the tokenizer has one).
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, true)).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of exactly this text, such as what a chat template rendered.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer refuses the text.
    pub fn encode_verbatim(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids without special tokens; unknown ids are left out and bytes that are
    /// not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the decoder of the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(refused)
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }

    /// Id of a token given by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of one token as the vocabulary writes it.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids that stand for text, in ascending order: the vocabulary without special and added tokens.
    pub fn text_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let vocabulary = self.inner.get_vocab(false).into_values();
        let mut ids: Vec<u32> = vocabulary.filter(|id| !added.contains_key(id)).collect();
        ids.sort_unstable();
        ids
    }

    /// The tokenizer as `tokenizer.json` writes it.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when a part of it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        guarded(|| self.inner.to_string(false)).map_err(refused)
    }

    /// Number of tokens, added ones included. The model may have more embeddings than that.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Runs the tokenizer library, which panics on some files that are JSON but no sound tokenizer, such
/// as merges of tokens that its vocabulary lacks. Nothing it was changing is used afterwards.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let result = catch_unwind(AssertUnwindSafe(run));
    result.unwrap_or_else(|_| Err("tokenizer.json contradicts itself".into()))
}

fn refused(why: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { why: why.to_string() }
}
