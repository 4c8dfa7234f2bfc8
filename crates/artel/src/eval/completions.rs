//! Many prompts through one engine: what every evaluation does.

use std::collections::HashMap;

use anyhow::{Context, Result};
use artel_engine::{
    Cancellation, Engine, EventKind, FinishReason, GenerationRequest, RequestId, Usage,
};
use artel_model::Tokenizer;

/// The model side of an evaluation.
#[derive(Debug)]
pub struct Candidate<'a, 'm> {
    /// Runs the prompts.
    pub engine: &'a mut Engine<'m>,
    /// Turns them into tokens, with a beginning-of-text token where the tokenizer has one.
    pub tokenizer: &'a Tokenizer,
    /// Tokens with which the model ends a text.
    pub end_tokens: &'a [u32],
    /// Ends the evaluation early.
    pub cancellation: &'a Cancellation,
}

/// The reply to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Which of the requests, counted from 0.
    pub index: usize,
    /// The text, up to what ended it.
    pub text: String,
    /// What ended it.
    pub reason: FinishReason,
    /// Tokens in and out.
    pub usage: Usage,
}

/// Runs all requests, as many together as the engine allows, and hands over each reply when it is
/// complete, in the order in which they end. Requests are drawn as places become free.
///
/// # Errors
/// When a request is refused or the engine fails, and whatever `done` fails with; the other
/// requests are not finished then.
pub fn complete_all(
    engine: &mut Engine<'_>,
    requests: impl IntoIterator<Item = Result<GenerationRequest>>,
    mut done: impl FnMut(Completion) -> Result<()>,
) -> Result<()> {
    let mut requests = requests.into_iter().enumerate();
    let mut open: HashMap<RequestId, (usize, String)> = HashMap::new();
    loop {
        while open.len() < engine.config().sequences_max
            && let Some((index, request)) = requests.next()
        {
            let id = engine.submit(request?).with_context(|| format!("problem {}", index + 1))?;
            open.insert(id, (index, String::new()));
        }
        if open.is_empty() {
            return Ok(());
        }
        for event in engine.step()? {
            let (_, text) = open.entry(event.request).or_default();
            match event.kind {
                EventKind::Token(token) => text.push_str(&token.text),
                EventKind::Finished(end) => {
                    let (index, text) = open.remove(&event.request).unwrap_or_default();
                    let text = text + &end.text;
                    done(Completion { index, text, reason: end.reason, usage: end.usage })?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use artel_engine::EngineConfig;
    use artel_model::{Checkpoint, LoadOptions, Model, Tokenizer};

    use super::*;

    const TOKENIZER: &[u8] =
        include_bytes!("../../../artel-model/tests/fixtures/text/byte_level/tokenizer.json");

    #[test]
    fn every_request_is_answered_once_whatever_the_batch() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artel-model/tests/fixtures");
        let checkpoint = Checkpoint::open(&fixtures.join("minimax_m2_tied")).unwrap();
        let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap();
        let files: [(&str, &'static [u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
            ("tokenizer.json", TOKENIZER),
        ];
        let tokenizer = Checkpoint::from_static("characters", &files).unwrap();
        let tokenizer = Tokenizer::read(&tokenizer).unwrap();
        let requests = || {
            (1..12).map(|length| Ok(GenerationRequest::new(vec![3 + length; 4], length as usize)))
        };
        let run = |sequences_max: usize| {
            let config = EngineConfig { sequences_max, ..EngineConfig::default() };
            let mut engine = Engine::new(&model, &tokenizer, config).unwrap();
            let mut replies = vec![None; 11];
            complete_all(&mut engine, requests(), |reply| {
                assert_eq!(reply.usage.completion_tokens, reply.index + 1);
                assert!(replies[reply.index].replace(reply.text).is_none());
                Ok(())
            })
            .unwrap();
            replies.into_iter().map(Option::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(4));

        let mut engine = Engine::new(&model, &tokenizer, EngineConfig::default()).unwrap();
        let refused =
            [Ok(GenerationRequest::new(vec![5], 1)), Ok(GenerationRequest::new(vec![], 1))];
        let error = complete_all(&mut engine, refused, |_| Ok(())).unwrap_err();
        assert!(format!("{error:#}").starts_with("problem 2: the prompt is empty"), "{error:#}");
    }
}
