//! What each token stands for, in bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use artel_model::Tokenizer;
use llguidance::token_bytes_from_tokenizer_json;
use llguidance::toktrie::TokTrie;

/// The bytes of all tokens, as far as the tokenizer has an alphabet of bytes.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    tokenizer: Tokenizer,
    /// By token id; special tokens begin with [`TokTrie::SPECIAL_TOKEN_MARKER`]. Or why not.
    bytes: Result<Vec<Vec<u8>>, String>,
}

impl Vocabulary {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone(), bytes: read(tokenizer) }
    }

    /// By token id, special tokens marked; or why it cannot be known.
    pub(crate) fn all(&self) -> Result<&[Vec<u8>], &str> {
        self.bytes.as_deref().map_err(String::as_str)
    }

    /// What a token stands for; a special token stands for its name.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        match self.all().ok().and_then(|bytes| bytes.get(id as usize)) {
            Some(bytes) if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => {
                bytes[1..].to_vec()
            }
            Some(bytes) => bytes.clone(),
            None => {
                let text = self.tokenizer.decode(&[id]).unwrap_or_default();
                let name = || self.tokenizer.token_text(id).unwrap_or_default();
                if text.is_empty() { name().into_bytes() } else { text.into_bytes() }
            }
        }
    }

    /// The same as text; bytes that are no text become U+FFFD.
    pub(crate) fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.bytes(id)).into_owned()
    }

    /// Bytes of the longest token: what no text of so many tokens can exceed.
    pub(crate) fn longest(&self) -> Option<usize> {
        self.all().ok()?.iter().map(Vec::len).max()
    }
}

/// The reader takes sound files for granted, and ours has been read by the tokenizer already; what
/// else it trips over means that the alphabet is not known.
fn read(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>, String> {
    let json = tokenizer.to_json().map_err(|error| error.to_string())?;
    let json = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let read = catch_unwind(AssertUnwindSafe(|| token_bytes_from_tokenizer_json(&json)));
    match read {
        Ok(bytes) => bytes.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizer has an alphabet that is not known".to_owned()),
    }
}
