//! GSM8K (Cobbe et al. 2021, arXiv:2110.14168) as lm-evaluation-harness runs its task `gsm8k`,
//! version 3: five worked problems of the training set before each problem of the test set, greedy
//! completion of at most 256 tokens, two ways of finding the answer in it, exact match of each.
//!
//! ```text
//! prompt      Question: <example 1>\nAnswer: <solution 1>\n\n … Question: <problem>\nAnswer:
//! completion  " She has 3+4 = <<3+4=7>>7 apples.\n#### 7\n\n"
//! strict      the number behind the first "#### "         -> "7"
//! flexible    the last thing that looks like a number     -> "7"
//! ```
//! The calculator annotations `<<3+4=7>>` stay in the examples, as they do there. Which examples a
//! problem gets is [`Shots`].

mod answer;
mod data;
mod prompt;
mod python_random;
mod run;
#[cfg(test)]
mod tests;

use answer::{flexible_extract, normalize, strict_match};
pub use data::{Dataset, Problem};
pub use prompt::{Shots, prompts};
pub use run::evaluate;

/// Where a completion ends; the text from here on is not part of it.
pub const STOP_STRINGS: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// Tokens a completion has at most.
pub const TOKENS_MAX: usize = 256;

/// Examples before a problem.
pub const SHOTS: usize = 5;

/// Which of the two extractions found the right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The number behind `#### ` is right.
    pub strict: bool,
    /// The last number is right.
    pub flexible: bool,
}

impl Outcome {
    /// Compares a completion with the solution of its problem.
    pub fn of(problem: &Problem, completion: &str) -> Self {
        let target = normalize(&problem.answer);
        let matches = |found: &str| normalize(found) == target;
        Self {
            strict: matches(strict_match(completion)),
            flexible: matches(flexible_extract(completion)),
        }
    }
}

/// The outcomes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Problems scored.
    pub total: u64,
    /// Right by strict match.
    pub strict: u64,
    /// Right by flexible extraction.
    pub flexible: u64,
}

impl Report {
    /// Counts one more problem.
    pub fn add(&mut self, outcome: Outcome) {
        self.total += 1;
        self.strict += u64::from(outcome.strict);
        self.flexible += u64::from(outcome.flexible);
    }

    /// Exact match by strict match and its standard error.
    pub fn strict_match(&self) -> (f64, f64) {
        self.mean_and_error(self.strict)
    }

    /// Exact match by flexible extraction and its standard error.
    pub fn flexible_extract(&self) -> (f64, f64) {
        self.mean_and_error(self.flexible)
    }

    /// The share of `right` and `sqrt(p (1 - p) / (n - 1))`, the error of a mean whose variance is
    /// estimated from the same sample.
    fn mean_and_error(&self, right: u64) -> (f64, f64) {
        let mean = right as f64 / self.total.max(1) as f64;
        let error = (mean * (1.0 - mean) / self.total.saturating_sub(1).max(1) as f64).sqrt();
        (mean, error)
    }
}
