//! Probabilities of tokens, in the two shapes that the API has.

use artel_engine::Token;
use serde_json::{Map, Value, json};

use crate::generate::PromptLogprobs;
use crate::vocabulary::Vocabulary;

/// What stands for a probability of 0, whose logarithm JSON cannot write.
const LEAST: f32 = -9999.0;

/// Completions: four lists, and where in the text each token begins.
#[derive(Debug, Default)]
pub(crate) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds the tokens of a prompt. `offset` is where the next token begins, in characters.
    pub(crate) fn add_prompt(
        &mut self,
        vocabulary: &Vocabulary,
        (ids, known): (&[u32], &PromptLogprobs),
        offset: &mut usize,
    ) {
        for (&id, known) in ids.iter().zip(known) {
            let known = known.as_ref().map(|known| (known.logprob, &known.top[..]));
            self.add(vocabulary, id, known, offset);
        }
    }

    /// Adds a token of the answer.
    pub(crate) fn add_token(&mut self, vocabulary: &Vocabulary, token: &Token, offset: &mut usize) {
        self.add(vocabulary, token.id, Some((token.logprob, &token.top)), offset);
    }

    fn add(
        &mut self,
        vocabulary: &Vocabulary,
        id: u32,
        known: Option<(f32, &[(u32, f32)])>,
        offset: &mut usize,
    ) {
        let text = vocabulary.text(id);
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        self.token_logprobs.push(known.map(|(logprob, _)| finite(logprob)));
        self.top_logprobs.push(known.map(|(logprob, top)| {
            let mut map = Map::new();
            // Different tokens may look alike; the most probable of them counts.
            for (id, logprob) in top.iter().copied().chain([(id, logprob)]) {
                map.entry(vocabulary.text(id)).or_insert_with(|| finite(logprob).into());
            }
            map
        }));
        self.tokens.push(text);
    }

    pub(crate) fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// Chats: one object a token, with its bytes.
pub(crate) fn chat_logprobs<'a>(
    vocabulary: &Vocabulary,
    tokens: impl IntoIterator<Item = &'a Token>,
) -> Value {
    let one = |id: u32, logprob: f32| {
        let bytes = vocabulary.bytes(id);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
    };
    let content = tokens.into_iter().map(|token| {
        let mut object = one(token.id, token.logprob);
        let top = token.top.iter().map(|&(id, logprob)| one(id, logprob));
        object["top_logprobs"] = top.collect();
        object
    });
    let content: Vec<Value> = content.collect();
    json!({"content": content, "refusal": null})
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}
