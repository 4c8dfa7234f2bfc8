//! What a model thinks, apart from what it says: `<think>…</think>` before the answer.

use artel_model::Tokenizer;

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Thought(String),
    Said(String),
}

/// How a model's answers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// With what it says: the model does not think aloud.
    Saying,
    /// With [`BEGIN`] or with what it says.
    Either,
    /// In the middle of a thought: the prompt ended with [`BEGIN`].
    Thinking,
}

impl Opening {
    /// Of the answer to a prompt.
    pub(crate) fn after(prompt: &str, tokenizer: &Tokenizer) -> Self {
        // A tag that is a special token is not part of the text.
        let shown = |id: &u32| tokenizer.decode(&[*id]).is_ok_and(|text| text == END);
        match tokenizer.token_id(END).filter(shown) {
            None => Self::Saying,
            Some(_) if prompt.trim_end().ends_with(BEGIN) => Self::Thinking,
            Some(_) => Self::Either,
        }
    }

    /// The token with which a thought ends that has begun already.
    pub(crate) fn end_token(self, tokenizer: &Tokenizer) -> Option<u32> {
        (self == Self::Thinking).then(|| tokenizer.token_id(END)).flatten()
    }
}

/// Splits a text that arrives in pieces of any size. Text is held back while it could be a part of
/// a tag, or is white space beside one.
#[derive(Debug)]
pub(crate) struct Splitter {
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    /// A thought; at its very beginning white space is dropped.
    Thinking {
        begun: bool,
    },
    /// What is said after a thought, before its first letter.
    Turning,
    Saying,
}

impl Splitter {
    pub(crate) fn new(opening: Opening) -> Self {
        let state = match opening {
            Opening::Saying => State::Saying,
            Opening::Either => State::Opening,
            Opening::Thinking => State::Thinking { begun: false },
        };
        Self { state, held: String::new() }
    }

    /// Adds text; returns what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.held.push_str(text);
        while self.advance(&mut pieces) {}
        pieces
    }

    /// The rest, when nothing more comes.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        let piece = match self.state {
            State::Thinking { .. } => Piece::Thought(held.trim_end().to_owned()),
            State::Turning => return Vec::new(),
            State::Opening | State::Saying => Piece::Said(held),
        };
        let (Piece::Thought(text) | Piece::Said(text)) = &piece;
        if text.is_empty() { Vec::new() } else { vec![piece] }
    }

    /// One transition; whether there may be another.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Opening => {
                let begun = self.held.trim_start();
                if let Some(rest) = begun.strip_prefix(BEGIN) {
                    self.held = rest.to_owned();
                    self.state = State::Thinking { begun: false };
                    return true;
                }
                if BEGIN.starts_with(begun) {
                    return false;
                }
                self.state = State::Saying;
                true
            }
            State::Thinking { begun: false } => {
                self.held = self.held.trim_start().to_owned();
                self.state = State::Thinking { begun: !self.held.is_empty() };
                !self.held.is_empty()
            }
            State::Thinking { begun: true } => self.think(pieces),
            State::Turning => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Saying;
                true
            }
            State::Saying => {
                if !self.held.is_empty() {
                    pieces.push(Piece::Said(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }

    fn think(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let end = self.held.find(END);
        let certain = match end {
            Some(at) => self.held[..at].trim_end().len(),
            None => certain(&self.held),
        };
        if certain > 0 {
            pieces.push(Piece::Thought(self.held[..certain].to_owned()));
        }
        self.held.drain(..end.map_or(certain, |at| at + END.len()));
        if end.is_some() {
            self.state = State::Turning;
        }
        end.is_some()
    }
}

/// Bytes of a thought that are neither the beginning of its end nor white space before it.
fn certain(text: &str) -> usize {
    let tag = (1..END.len()).rev().find(|&length| text.ends_with(&END[..length])).unwrap_or(0);
    text[..text.len() - tag].trim_end().len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(opening: Opening, pieces: &[&str]) -> (String, String) {
        let mut splitter = Splitter::new(opening);
        let mut all: Vec<Piece> = pieces.iter().flat_map(|text| splitter.push(text)).collect();
        all.extend(splitter.finish());
        let (mut thought, mut said) = (String::new(), String::new());
        for piece in all {
            match piece {
                Piece::Thought(text) => thought.push_str(&text),
                Piece::Said(text) => said.push_str(&text),
            }
        }
        (thought, said)
    }

    #[test]
    fn a_thought_is_told_from_the_answer() {
        let both = |thought: &str, said: &str| (thought.to_owned(), said.to_owned());
        let cases = [
            (Opening::Either, "<think>\na < b\n</think>\n\nyes", both("a < b", "yes")),
            (Opening::Either, " <think></think>yes", both("", "yes")),
            (Opening::Either, "yes <think>no</think>", both("", "yes <think>no</think>")),
            (Opening::Either, "<thin", both("", "<thin")),
            (Opening::Thinking, "hm</th </think> yes</think>", both("hm</th", "yes</think>")),
            (Opening::Thinking, "hm </thin", both("hm </thin", "")),
            (Opening::Saying, "<think>a</think>", both("", "<think>a</think>")),
        ];
        for (opening, text, expected) in cases {
            assert_eq!(split(opening, &[text]), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_split_alike(
            parts in prop::collection::vec(
                prop::sample::select(vec!["<think>", "</think>", "a", " ", "\n", "<", "é", "th"]), 0..12
            ),
            cuts in prop::collection::vec(0usize..40, 0..6),
            opening in prop::sample::select(
                vec![Opening::Saying, Opening::Either, Opening::Thinking]
            ),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> =
                cuts.into_iter().filter(|&at| at <= text.len() && text.is_char_boundary(at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            prop_assert_eq!(split(opening, &pieces), split(opening, &[&text]));
        }
    }
}
