//! The files of GSM8K: `train.jsonl` and `test.jsonl`, one problem a line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A problem with its worked solution.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// The problem in English.
    pub question: String,
    /// Steps with their calculations as `<<a+b=c>>`, then `#### answer`.
    pub answer: String,
}

/// Both halves of GSM8K.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Where examples come from.
    pub train: Vec<Problem>,
    /// What is measured.
    pub test: Vec<Problem>,
}

impl Dataset {
    /// Reads `train.jsonl` and `test.jsonl` of a folder.
    ///
    /// # Errors
    /// Names the file that is missing, and the line that is no problem or has no `#### answer`.
    pub fn load(folder: &Path) -> Result<Self> {
        Ok(Self {
            train: read_problems(&folder.join("train.jsonl"))?,
            test: read_problems(&folder.join("test.jsonl"))?,
        })
    }
}

fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}: the folder must hold train.jsonl and test.jsonl of GSM8K \
             (github.com/openai/grade-school-math)",
            path.display()
        )
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let problems = lines.map(|(index, line)| {
        let place = || format!("{}, line {}", path.display(), index + 1);
        let problem: Problem = serde_json::from_str(line)
            .with_context(|| format!("{}: no {{\"question\", \"answer\"}}", place()))?;
        ensure!(problem.answer.contains("#### "), "{}: the answer has no \"#### \"", place());
        Ok(problem)
    });
    problems.collect()
}
