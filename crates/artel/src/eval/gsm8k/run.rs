//! The evaluation itself.

use anyhow::Result;
use artel_engine::{Cancellation, Engine, FinishReason, GenerationRequest};
use artel_model::Tokenizer;

use super::{Dataset, Outcome, Report, SHOTS, STOP_STRINGS, Shots, TOKENS_MAX, prompts};
use crate::eval::completions::complete_all;

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

/// Puts the first `problems` problems of the test set to the model, five examples before each, and
/// reports after every one. A cancelled problem is not counted.
///
/// # Errors
/// When the training set is too small, a prompt does not fit the context, or the model fails.
pub fn evaluate(
    candidate: Candidate<'_, '_>,
    dataset: &Dataset,
    shots: Shots,
    problems: usize,
    mut progress: impl FnMut(&Report),
) -> Result<Report> {
    let Candidate { engine, tokenizer, end_tokens, cancellation } = candidate;
    let prompts = prompts(dataset, shots, SHOTS, problems)?;
    let requests = prompts.iter().map(|prompt| {
        Ok(GenerationRequest {
            stop_strings: STOP_STRINGS.map(str::to_owned).to_vec(),
            end_tokens: end_tokens.to_vec(),
            cancellation: cancellation.clone(),
            ..GenerationRequest::new(tokenizer.encode(prompt)?, TOKENS_MAX)
        })
    });
    let mut report = Report::default();
    complete_all(engine, requests, |reply| {
        if reply.reason != FinishReason::Cancelled {
            report.add(Outcome::of(&dataset.test[reply.index], &reply.text));
            progress(&report);
        }
        Ok(())
    })?;
    Ok(report)
}
