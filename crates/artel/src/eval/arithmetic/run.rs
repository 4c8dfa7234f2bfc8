//! The evaluation itself: held-out problems through the engine, scored by exact match.

use std::collections::BTreeMap;

use artel_engine::{FinishReason, Request};
use artel_model::{Chat, ChatTemplate, Message};
use serde::Serialize;

use super::{Problem, Split, extract_answer, problem};
use crate::eval::completions::{Candidate, complete_all};

/// Right answers among problems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Score {
    /// Problems answered.
    pub problems: u64,
    /// Answers that were right.
    pub right: u64,
}

impl Score {
    fn add(&mut self, right: bool) {
        self.problems += 1;
        self.right += u64::from(right);
    }

    /// Share of right answers.
    pub fn exact_match(&self) -> f64 {
        self.right as f64 / self.problems.max(1) as f64
    }

    /// Standard error of that share, from its own variance.
    pub fn standard_error(&self) -> f64 {
        let mean = self.exact_match();
        (mean * (1.0 - mean) / self.problems.saturating_sub(1).max(1) as f64).sqrt()
    }
}

/// How a model did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// All problems.
    pub total: Score,
    /// By the number of calculations that the solution makes.
    pub by_steps: BTreeMap<u32, Score>,
    /// Tokens that the model wrote.
    pub completion_tokens: usize,
}

/// One problem and what the model made of it.
#[derive(Debug, Serialize)]
pub struct Sample<'a> {
    /// Number of the problem in its stream.
    pub index: usize,
    /// The problem.
    pub question: &'a str,
    /// The right answer.
    pub answer: i64,
    /// What the model wrote.
    pub reply: &'a str,
    /// Whether the number behind `####` is the right answer.
    pub right: bool,
}

/// Which problems, and how long an answer may be.
#[derive(Debug, Clone, Copy)]
pub struct Exam {
    /// Problems to solve.
    pub num_problems: usize,
    /// Seed of the stream that they come from.
    pub seed: u64,
    /// Longest answer, in tokens.
    pub max_tokens: usize,
}

/// Puts held-out problems to the model through its chat template, greedily, and reports after each.
/// Problems that were interrupted are not counted.
///
/// # Errors
/// When a prompt does not fit the context, the model fails, or `done` does.
pub fn evaluate(
    candidate: Candidate<'_>,
    template: &ChatTemplate,
    exam: Exam,
    mut done: impl FnMut(&Report, &Sample<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let Candidate { engine, tokenizer, end_tokens, cancellation } = candidate;
    let held_out = |index: usize| problem(Split::HeldOut, exam.seed, index as u64);
    let requests = (0..exam.num_problems).map(|index| {
        let messages = [Message::new("user", &held_out(index).question)];
        let prompt = template.render(&Chat::new(&messages))?;
        Ok(Request {
            end_tokens: end_tokens.to_vec(),
            cancellation: cancellation.clone(),
            max_tokens: Some(exam.max_tokens),
            ..Request::new(tokenizer.encode_verbatim(&prompt)?)
        })
    });
    let mut report = Report::default();
    complete_all(engine, requests, |reply| {
        if reply.reason == FinishReason::Cancelled {
            return Ok(());
        }
        let Problem { question, answer, steps, .. } = held_out(reply.index);
        let right = extract_answer(&reply.text) == Some(answer);
        report.total.add(right);
        report.by_steps.entry(steps).or_default().add(right);
        report.completion_tokens += reply.usage.completion_tokens;
        let (question, text) = (&question, &reply.text);
        done(&report, &Sample { index: reply.index, question, answer, reply: text, right })
    })?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_knows_its_error() {
        let mut score = Score::default();
        assert_eq!((score.exact_match(), score.standard_error()), (0.0, 0.0));
        (0..100).for_each(|index| score.add(index < 90));
        assert_eq!(score.exact_match(), 0.9);
        assert!((score.standard_error() - (0.09f64 / 99.0).sqrt()).abs() < 1e-12);
    }
}
