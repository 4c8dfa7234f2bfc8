//! Prompts with worked examples.

use std::fmt::Write;

use anyhow::{Result, ensure};

use super::data::{Dataset, Problem};
use super::python_random::PythonRandom;

/// Which problems of the training set are shown before a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shots {
    /// Drawn anew for each problem by Python's generator under one seed, problem after problem:
    /// what the harness does by default, with seed 1234. Prompts are then the harness's own.
    Drawn {
        /// Seed of the generator.
        seed: u64,
    },
    /// The first ones for every problem, so that all prompts begin alike.
    First,
}

impl Shots {
    /// The harness's default.
    pub const HARNESS: Self = Self::Drawn { seed: 1234 };
}

/// The prompts of the first `problems` problems of the test set, with `count` examples each.
///
/// # Errors
/// When the training set has fewer than `count` problems.
pub fn prompts(
    dataset: &Dataset,
    shots: Shots,
    count: usize,
    problems: usize,
) -> Result<Vec<String>> {
    let train = dataset.train.len();
    ensure!(train >= count, "train.jsonl has {train} problems, but a prompt shows {count}");
    let mut random = match shots {
        Shots::Drawn { seed } => Some(PythonRandom::new(seed)),
        Shots::First => None,
    };
    let problems = dataset.test.iter().take(problems);
    let prompts = problems.map(|problem| {
        let examples = match &mut random {
            Some(random) => random.sample(train, count),
            None => (0..count).collect(),
        };
        prompt(examples.iter().map(|&index| &dataset.train[index]), &problem.question)
    });
    Ok(prompts.collect())
}

fn prompt<'a>(examples: impl Iterator<Item = &'a Problem>, question: &str) -> String {
    let mut text = String::new();
    for Problem { question, answer } in examples {
        write!(text, "Question: {question}\nAnswer: {answer}\n\n")
            .unwrap_or_else(|why| panic!("this is a bug: a string refused text: {why}"));
    }
    text + "Question: " + question + "\nAnswer:"
}
