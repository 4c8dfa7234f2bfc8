//! Many prompts through one engine: what every evaluation does.

use anyhow::{Context, Result, bail};
use artel_engine::{Cancellation, EngineHandle, Event, EventStream, FinishReason, Request, Usage};
use artel_model::Tokenizer;

/// The model side of an evaluation.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Runs the prompts.
    pub engine: &'a EngineHandle,
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

/// Runs all requests, as many together as the engine allows, and hands over each reply in the order
/// of the requests.
///
/// # Errors
/// When a request is refused or fails, and whatever `done` fails with; the other requests are
/// cancelled then.
pub fn complete_all(
    engine: &EngineHandle,
    requests: impl IntoIterator<Item = Result<Request>>,
    mut done: impl FnMut(Completion) -> Result<()>,
) -> Result<()> {
    let streams: Vec<EventStream> = requests
        .into_iter()
        .enumerate()
        .map(|(index, request)| {
            engine.submit(request?).with_context(|| format!("request {}", index + 1))
        })
        .collect::<Result<_>>()?;
    for (index, stream) in streams.into_iter().enumerate() {
        let reply = complete(index, stream).with_context(|| format!("request {}", index + 1))?;
        done(reply)?;
    }
    Ok(())
}

fn complete(index: usize, mut stream: EventStream) -> Result<Completion> {
    let mut text = String::new();
    loop {
        match stream.blocking_recv().context("the engine is gone")? {
            Event::PromptLogprobs(_) => {}
            Event::Token(token) => text.push_str(&token.text),
            Event::Finished(end) => {
                text.push_str(&end.text);
                let (reason, usage) = (end.reason, end.usage);
                if let FinishReason::Failed(why) = reason {
                    bail!("{why}");
                }
                return Ok(Completion { index, text, reason, usage });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use artel_engine::{CpuRunner, Engine, EngineConfig};
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
        let model = Arc::new(model);
        let start = |max_num_seqs: usize| {
            let config = EngineConfig { max_num_seqs, ..EngineConfig::default() };
            let runner = Box::new(CpuRunner::new(Arc::clone(&model)));
            Engine::new(runner, tokenizer.clone(), config).unwrap().spawn().unwrap()
        };
        let request = |prompt_ids: Vec<u32>, max_tokens: usize| {
            Ok(Request { max_tokens: Some(max_tokens), ..Request::new(prompt_ids) })
        };
        let run = |max_num_seqs: usize| {
            let mut replies = Vec::new();
            let requests = (1..12u32).map(|length| request(vec![3 + length; 4], length as usize));
            complete_all(&start(max_num_seqs), requests, |reply| {
                assert_eq!(reply.usage.completion_tokens, reply.index + 1);
                assert_eq!(reply.index, replies.len());
                replies.push(reply.text);
                Ok(())
            })
            .unwrap();
            assert_eq!(replies.len(), 11);
            replies
        };
        assert_eq!(run(1), run(4));

        let refused = [request(vec![5], 1), request(vec![], 1)];
        let error = complete_all(&start(4), refused, |_| Ok(())).unwrap_err();
        assert!(format!("{error:#}").starts_with("request 2: prompt is empty"), "{error:#}");
    }
}
