//! The evaluation itself: held-out problems through the engine, scored by exact match.

use std::collections::BTreeMap;

use artel_engine::{Cancellation, FinishReason, Request};
use artel_model::{Chat, ChatTemplate, Message};
use serde::Serialize;

use super::{Problem, Split, extract_answer, problem};
use crate::eval::completions::{Candidate, complete_all};
use crate::eval::remote::RemoteModel;

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
    let requests = (0..exam.num_problems).map(|index| {
        let messages = [Message::new("user", &exam.problem(index).question)];
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
        report.completion_tokens += reply.usage.completion_tokens;
        report.add(exam, reply.index, &reply.text, &mut done)
    })?;
    Ok(report)
}

/// The same through a server, with so many problems at a time.
///
/// # Errors
/// When the server refuses a problem or cannot be reached, or `done` fails.
pub async fn evaluate_remote(
    model: &RemoteModel,
    exam: Exam,
    at_a_time: usize,
    cancellation: &Cancellation,
    mut done: impl FnMut(&Report, &Sample<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let questions = (0..exam.num_problems).map(|index| exam.problem(index).question);
    let limits = (exam.max_tokens, at_a_time);
    let mut report = Report::default();
    let scored = model.answer_all(questions, limits, cancellation, |reply| {
        report.completion_tokens += reply.completion_tokens;
        report.add(exam, reply.index, &reply.text, &mut done)
    });
    scored.await?;
    Ok(report)
}

impl Exam {
    fn problem(&self, index: usize) -> Problem {
        problem(Split::HeldOut, self.seed, index as u64)
    }
}

impl Report {
    fn add(
        &mut self,
        exam: Exam,
        index: usize,
        reply: &str,
        done: &mut impl FnMut(&Report, &Sample<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Problem { question, answer, steps, .. } = exam.problem(index);
        let right = extract_answer(reply) == Some(answer);
        self.total.add(right);
        self.by_steps.entry(steps).or_default().add(right);
        done(self, &Sample { index, question: &question, answer, reply, right })
    }
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
