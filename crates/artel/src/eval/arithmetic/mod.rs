//! Arithmetic word problems of two to four steps, generated from a seed, with solutions in the
//! style of GSM8K (Cobbe et al. 2021, arXiv:2110.14168): one sentence a step, every calculation
//! annotated as `<<48/2=24>>`, and a last line `#### 24`.
//!
//! A problem is composed in four stages:
//!
//! 1. a *family* (shopping, travel, …) draws a chain of operations and the quantities in it;
//! 2. every link of the chain is told by a sentence drawn from interchangeable forms, among which
//!    facts that nobody needs may be mixed;
//! 3. the same links, worked out, become the lines of the solution;
//! 4. a chain outside the limits (see [`story::Operation`]) is thrown away and drawn again.
//!
//! ```text
//! question  A church has 5 rows of 12 seats. 50% of the seats are taken. How many seats are free?
//! solution  The church has 5*12 = <<5*12=60>>60 seats.
//!           60*0.5 = <<60*0.5=30>>30 seats are taken.
//!           60-30 = <<60-30=30>>30 seats are free.
//!           #### 30
//! ```
//!
//! Which split a problem belongs to is a property of its question alone, so a problem of
//! [`Split::HeldOut`] cannot occur in [`Split::Training`] whatever the seeds are.

mod answer;
mod dice;
mod families;
mod run;
mod story;
mod template;
#[cfg(test)]
mod tests;
mod words;

pub use answer::extract_answer;
pub use run::{Exam, Report, Sample, Score, evaluate, evaluate_remote};

use dice::Dice;
use rayon::prelude::*;
use serde_json::json;
use std::io::{Result, Write};

/// A word problem and its worked solution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The problem in English, one paragraph.
    pub question: String,
    /// One line a step with its calculation as `<<a op b=c>>`, then `#### answer`.
    pub solution: String,
    /// The number the question asks for; positive and below 10,000.
    pub answer: i64,
    /// How many calculations the solution makes, 2 to 4.
    pub steps: u32,
}

/// The two disjoint sets of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Fifteen of sixteen questions: what a model may be trained on.
    Training,
    /// One of sixteen questions: what a model is measured on.
    HeldOut,
}

impl Split {
    /// The split that a question belongs to: its hash modulo 16 is 0 for held-out questions.
    pub fn of(question: &str) -> Split {
        if stable_hash(question).is_multiple_of(16) { Split::HeldOut } else { Split::Training }
    }
}

/// Problem number `index` of the stream that `seed` names; the same arguments give the same problem
/// on every machine.
pub fn problem(split: Split, seed: u64, index: u64) -> Problem {
    let mut dice = Dice::new(seed, index);
    loop {
        let draft = families::draft(&mut dice);
        if Split::of(&draft.problem.question) == split {
            return draft.problem;
        }
    }
}

/// Writes problems `0..count` of a stream as lines of JSON, `{"question": …, "solution": …}`.
///
/// The lines are made on all cores and written in order.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write_jsonl(out: &mut impl Write, split: Split, seed: u64, count: u64) -> Result<()> {
    const LINES_PER_CHUNK: u64 = 1 << 14;
    for start in (0..count).step_by(LINES_PER_CHUNK as usize) {
        let lines: Vec<String> = (start..count.min(start + LINES_PER_CHUNK))
            .into_par_iter()
            .map(|index| {
                let Problem { question, solution, .. } = problem(split, seed, index);
                format!("{}\n", json!({"question": question, "solution": solution}))
            })
            .collect();
        out.write_all(lines.concat().as_bytes())?;
    }
    out.flush()
}

/// FNV-1a of 64 bits, its halves folded together so that the low bits depend on every byte evenly.
fn stable_hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ (hash >> 32) ^ (hash >> 49)
}
