//! The answer to one request, as the events of its stream tell it.

use serde::Deserialize;
use serde_json::Value;

/// Longest piece of a body that is quoted in an error, in characters.
const QUOTE_CHARACTERS: usize = 300;

/// What ends a stream.
const DONE: &str = "[DONE]";

/// What came of one request. Times are in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// When it was sent, on the clock of the run.
    pub start: f64,
    /// How long the limit of concurrent requests held it back before that.
    pub queue_time: f64,
    /// From sending to the first token; 0 when there was none.
    pub ttft: f64,
    /// Gaps between the events that carried tokens.
    pub itls: Vec<f64>,
    /// From sending to the last token.
    pub latency: f64,
    /// Tokens of the prompt: the server's count where it gives one.
    pub prompt_tokens: usize,
    /// Tokens of the answer, as the server counts them.
    pub output_tokens: Option<usize>,
    /// The text.
    pub text: String,
    /// Why it failed.
    pub error: Option<String>,
}

impl Outcome {
    /// Whether the answer came to its end.
    pub fn succeeded(&self) -> bool {
        self.error.is_none()
    }
}

/// An answer that is still arriving.
#[derive(Debug, Default)]
pub struct Answer {
    text: String,
    ttft: Option<f64>,
    itls: Vec<f64>,
    latest: f64,
    usage: Option<Usage>,
    /// The stream said that it is over, or why the text is.
    ended: bool,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<usize>,
    #[serde(default)]
    completion_tokens: Option<usize>,
}

impl Answer {
    /// Takes the data of an event that arrived `seconds` after the request was sent.
    ///
    /// # Errors
    /// What the server says went wrong, or that it is no event of such a stream.
    pub fn event(&mut self, data: &str, seconds: f64) -> Result<(), String> {
        let data = data.trim();
        if data == DONE {
            self.ended = true;
            return Ok(());
        }
        if data.is_empty() {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|why| {
            format!("the stream has an event that is no chunk: {why}: {}", quote(data))
        })?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(format!("error in the stream: {}", sentence(&error)));
        }
        if chunk.usage.is_some() {
            self.usage = chunk.usage;
        }
        // An event without choices tells the usage and carries no token.
        if let Some(choice) = chunk.choices.into_iter().flatten().next() {
            self.token(choice, seconds);
        }
        Ok(())
    }

    fn token(&mut self, choice: Choice, seconds: f64) {
        match self.ttft {
            None => self.ttft = Some(seconds),
            Some(_) => self.itls.push(seconds - self.latest),
        }
        self.latest = seconds;
        self.ended |= choice.finish_reason.is_some();
        let delta = choice.delta.map(|delta| [delta.reasoning_content, delta.content]);
        for part in delta.into_iter().flatten().chain([choice.text]).flatten() {
            self.text.push_str(&part);
        }
    }

    /// The stream is over, with an error or not.
    pub fn finish(self, prompt_tokens: usize, error: Option<String>) -> Outcome {
        let error = error.or_else(|| match self.ttft {
            None => Some("the stream ended without a token".to_owned()),
            Some(_) if !self.ended => Some("the stream broke off before its end".to_owned()),
            Some(_) => None,
        });
        Outcome {
            ttft: self.ttft.unwrap_or_default(),
            latency: self.latest,
            prompt_tokens: self
                .usage
                .and_then(|usage| usage.prompt_tokens)
                .unwrap_or(prompt_tokens),
            output_tokens: self.usage.and_then(|usage| usage.completion_tokens),
            itls: self.itls,
            text: self.text,
            error,
            ..Outcome::default()
        }
    }
}

/// The sentence in the body of a refusal, whichever of the usual shapes it has.
pub fn refusal(body: &str) -> String {
    match serde_json::from_str::<Value>(body) {
        Ok(value) => sentence(value.get("error").unwrap_or(&value)),
        Err(_) => quote(body.trim()),
    }
}

fn sentence(error: &Value) -> String {
    let fields = ["message", "detail"].iter().find_map(|field| error.get(field)?.as_str());
    fields.or(error.as_str()).map_or_else(|| quote(&error.to_string()), quote)
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(events: &[(&str, f64)]) -> Outcome {
        let mut answer = Answer::default();
        let error = events.iter().find_map(|(data, at)| answer.event(data, *at).err());
        answer.finish(7, error)
    }

    #[test]
    fn times_are_those_of_events_with_choices() {
        let answer = outcome(&[
            (r#"{"choices":[{"text":"a"}]}"#, 0.5),
            (r#"{"choices":[{"text":""}]}"#, 0.75),
            (r#"{"choices":[{"text":"b","finish_reason":"length"}]}"#, 1.75),
            (r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#, 2.5),
            ("[DONE]", 3.0),
        ]);
        assert_eq!(answer.error, None);
        assert_eq!((answer.ttft, answer.latency), (0.5, 1.75));
        assert_eq!(answer.itls, [0.25, 1.0]);
        assert_eq!((answer.prompt_tokens, answer.output_tokens), (9, Some(3)));
        assert_eq!(answer.text, "ab");
    }

    #[test]
    fn chats_have_deltas_and_may_reason() {
        let answer = outcome(&[
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#, 0.1),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm "}}]}"#, 0.2),
            (r#"{"choices":[{"delta":{"content":"yes"}}]}"#, 0.3),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, 0.4),
        ]);
        assert_eq!(answer.error, None);
        assert_eq!(answer.text, "hm yes");
        assert_eq!((answer.prompt_tokens, answer.output_tokens), (7, None));
        assert_eq!(answer.itls.len(), 3);
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let token = (r#"{"choices":[{"text":"a"}]}"#, 0.5);
        let error = |events: &[(&str, f64)]| outcome(events).error.unwrap();
        let broken = (r#"{"error":{"message":"out of memory","code":500}}"#, 0.6);
        assert_eq!(error(&[token, broken]), "error in the stream: out of memory");
        assert_eq!(error(&[token]), "the stream broke off before its end");
        assert_eq!(error(&[("[DONE]", 0.1)]), "the stream ended without a token");
        assert!(error(&[("<html>", 0.1)]).contains("no chunk"));
        assert_eq!(refusal(r#"{"error":{"message":"no such model"}}"#), "no such model");
        assert_eq!(refusal(r#"{"detail":"Not Found"}"#), "Not Found");
        assert_eq!(refusal(r#"{"object":"error","message":"too long"}"#), "too long");
        assert_eq!(refusal(" <html>\n"), "<html>");
        assert_eq!(refusal(&"ä".repeat(400)).chars().count(), 301);
    }
}
