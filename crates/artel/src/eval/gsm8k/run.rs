//! The evaluation itself.

use anyhow::Result;
use artel_engine::{FinishReason, Request};
use serde::Serialize;

use super::{Dataset, Outcome, Report, SHOTS, STOP_STRINGS, Shots, TOKENS_MAX, prompts};
use crate::eval::completions::{Candidate, complete_all};

/// One problem and what the model made of it.
#[derive(Debug, Serialize)]
pub struct Sample<'a> {
    /// Number of the problem in the test set.
    pub index: usize,
    /// The problem.
    pub question: &'a str,
    /// Its worked solution.
    pub answer: &'a str,
    /// What the model wrote.
    pub reply: &'a str,
    /// Whether the number behind `#### ` is right.
    pub strict: bool,
    /// Whether the last number is right.
    pub flexible: bool,
}

/// Puts the first `problems` problems of the test set to the model, five examples before each, and
/// reports after every one. A cancelled problem is not counted.
///
/// # Errors
/// When the training set is too small, a prompt does not fit the context, the model fails, or
/// `done` does.
pub fn evaluate(
    candidate: Candidate<'_>,
    dataset: &Dataset,
    shots: Shots,
    problems: usize,
    mut done: impl FnMut(&Report, &Sample<'_>) -> Result<()>,
) -> Result<Report> {
    let Candidate { engine, tokenizer, end_tokens, cancellation } = candidate;
    let prompts = prompts(dataset, shots, SHOTS, problems)?;
    let requests = prompts.iter().map(|prompt| {
        Ok(Request {
            stop_strings: STOP_STRINGS.map(str::to_owned).to_vec(),
            end_tokens: end_tokens.to_vec(),
            cancellation: cancellation.clone(),
            max_tokens: Some(TOKENS_MAX),
            ..Request::new(tokenizer.encode(prompt)?)
        })
    });
    let mut report = Report::default();
    complete_all(engine, requests, |reply| {
        if reply.reason == FinishReason::Cancelled {
            return Ok(());
        }
        let problem = &dataset.test[reply.index];
        let outcome = Outcome::of(problem, &reply.text);
        report.add(outcome);
        let Outcome { strict, flexible } = outcome;
        let (question, answer) = (&problem.question, &problem.answer);
        let (index, reply) = (reply.index, &reply.text);
        done(&report, &Sample { index, question, answer, reply, strict, flexible })
    })?;
    Ok(report)
}
