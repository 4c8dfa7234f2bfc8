//! What the requests ask.

mod file;
mod random;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use random::{Shape, Tokens};

use super::texts::Texts;

/// One prompt and how long its answer may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text to send.
    pub text: String,
    /// Its tokens; 0 without a tokenizer.
    pub tokens: usize,
    /// Tokens that the answer may have.
    pub output_tokens: usize,
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Tokens of the vocabulary.
    Random(Shape),
    /// Conversations of a ShareGPT file: the first turn is the prompt, the second gives the length.
    Sharegpt {
        /// JSON: an array of objects with `conversations`.
        path: PathBuf,
        /// Length of every answer instead.
        output_tokens: Option<usize>,
    },
    /// Prompts of a file.
    Custom {
        /// JSON lines with `prompt` and perhaps `output_tokens`.
        path: PathBuf,
        /// Length of every answer; without it each line has its own.
        output_tokens: Option<usize>,
        /// Whether prompts are sent as messages of a chat, in the model's template.
        templated: bool,
    },
}

/// A data set, and how it becomes requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Where prompts come from.
    pub source: Source,
    /// Prompts wanted.
    pub count: usize,
    /// Further prompts, for requests before the measurement.
    pub warmups: usize,
    /// Seed of the prompts.
    pub seed: u64,
    /// Whether the order of a file is kept.
    pub in_order: bool,
    /// Whether a file that is too short gives fewer prompts, instead of some twice.
    pub no_oversample: bool,
}

/// The prompts of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// What is measured.
    pub measured: Vec<Prompt>,
    /// What is sent before.
    pub warmups: Vec<Prompt>,
}

impl Prompts {
    /// How many different texts are measured. A mixture of experts that is asked the same over and
    /// over uses few of them.
    pub fn distinct(&self) -> usize {
        self.measured.iter().map(|prompt| &prompt.text).collect::<HashSet<_>>().len()
    }
}

/// Makes or reads the prompts; the same seed gives the same, however many warm-ups are wanted.
///
/// # Errors
/// When a file cannot be read, is not what it should be or has no usable prompt, and when random
/// prompts are wanted without a tokenizer.
pub fn load(dataset: &Dataset, texts: Option<&Texts>) -> Result<Prompts> {
    let mut random = ChaCha8Rng::seed_from_u64(dataset.seed);
    let wanted = dataset.count + dataset.warmups;
    let mut measured = match &dataset.source {
        Source::Random(shape) => {
            let texts = texts.context("random prompts are made from the tokenizer's vocabulary")?;
            random::prompts(shape, &texts.tokenizer, wanted, &mut random)?
        }
        Source::Sharegpt { path, output_tokens } => {
            let texts = texts.context("sharegpt lengths are counted by the tokenizer")?;
            let mut entries = file::sharegpt(path)?;
            file::shuffle(&mut entries, dataset, &mut random);
            let prompts = file::conversations(&entries, &texts.tokenizer, *output_tokens, dataset);
            file::fill(prompts?, dataset, path, &mut random)?
        }
        Source::Custom { path, output_tokens, templated } => {
            let mut lines = file::custom(path, *output_tokens)?;
            file::shuffle(&mut lines, dataset, &mut random);
            lines.truncate(dataset.count);
            let texts = texts.map(|texts| (texts, *templated));
            let prompts = lines.into_iter().map(|line| line.prompt(texts));
            file::fill(prompts.collect::<Result<_>>()?, dataset, path, &mut random)?
        }
    };
    // Files have no prompts to spare: what is sent before is sent again.
    let again = measured.iter().cycle().take(dataset.warmups).cloned().collect();
    let warmups = match dataset.source {
        Source::Random(_) => measured.split_off(dataset.count),
        _ => again,
    };
    Ok(Prompts { measured, warmups })
}
