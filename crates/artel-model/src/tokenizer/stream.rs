use super::Tokenizer;
use crate::Result;

/// Stands for bytes that are not UTF-8, among them a character that is not complete yet.
const REPLACEMENT: char = '\u{FFFD}';

/// After this many tokens without a complete character the bytes are wrong, not incomplete: a
/// character has at most four bytes, and a token at least one.
const INCOMPLETE_TOKENS_MAX: usize = 4;

/// Turns token ids into text as they arrive. What has been returned is never changed, and half a
/// character is never returned.
///
/// A token's text can depend on the token before it, so each step decodes a short window: the
/// tokens since the last two places where the text was complete.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    /// The window.
    ids: Vec<u32>,
    /// How many tokens of the window were there when its text was last complete.
    complete: usize,
    /// How many bytes of the window's text have been returned.
    returned: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), complete: 0, returned: 0 }
    }

    /// Adds a token and returns the text that is now certain, often empty.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let pending = self.ids.len() - self.complete;
        if text.ends_with(REPLACEMENT) && pending <= INCOMPLETE_TOKENS_MAX {
            let certain = text.trim_end_matches(REPLACEMENT).len();
            return Ok(self.take(&text[..certain]));
        }
        let new = self.take(&text);
        self.ids.drain(..self.complete);
        self.complete = self.ids.len();
        self.returned = self.tokenizer.decode(&self.ids)?.len();
        Ok(new)
    }

    /// The rest: what was held back because it could have become a character.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(self.take(&text))
    }

    /// The part of the window's text that has not been returned.
    fn take(&mut self, text: &str) -> String {
        let new = text.get(self.returned..).unwrap_or_default().to_owned();
        self.returned = self.returned.max(text.len());
        new
    }
}
