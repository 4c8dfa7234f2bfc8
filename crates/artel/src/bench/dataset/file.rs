//! Prompts of files.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use artel_model::{Chat, Message, Tokenizer};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde_json::Value;

use super::{Dataset, Prompt};
use crate::bench::texts::Texts;

/// Conversations that are left out: too short to say anything, or too long for small contexts.
const TOKENS_MIN: usize = 4;
const PROMPT_TOKENS_MAX: usize = 1024;
const TOTAL_TOKENS_MAX: usize = 2048;

/// The first two turns of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    prompt: String,
    answer: String,
}

/// One line of a custom file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    prompt: String,
    output_tokens: usize,
}

/// The conversations with at least two turns.
pub fn sharegpt(path: &Path) -> Result<Vec<Conversation>> {
    let entries: Value = serde_json::from_str(&read(path)?)
        .with_context(|| format!("{} is not JSON", path.display()))?;
    let entries = entries.as_array();
    let entries = entries.with_context(|| format!("{} is not a JSON array", path.display()))?;
    let two_turns = |entry: &Value| {
        let turn = |index| entry["conversations"][index]["value"].as_str().map(str::to_owned);
        Some(Conversation { prompt: turn(0)?, answer: turn(1)? })
    };
    Ok(entries.iter().filter_map(two_turns).collect())
}

/// The lines with their prompts, and with the length of `output_tokens` or their own.
pub fn custom(path: &Path, output_tokens: Option<usize>) -> Result<Vec<Line>> {
    let text = read(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let line = |(index, line): (usize, &str)| {
        custom_line(line, output_tokens)
            .with_context(|| format!("{}, line {}", path.display(), index + 1))
    };
    lines.map(line).collect()
}

fn custom_line(line: &str, output_tokens: Option<usize>) -> Result<Line> {
    let line: Value = serde_json::from_str(line).context("not JSON")?;
    let prompt = line["prompt"].as_str().context("no \"prompt\" with a text")?.to_owned();
    let own = || {
        let own = line["output_tokens"].as_u64().filter(|tokens| *tokens > 0);
        own.context(
            "no \"output_tokens\" with a number above 0, which --custom-output-len -1 needs",
        )
    };
    let output_tokens = output_tokens.map_or_else(|| own().map(|own| own as usize), Ok)?;
    Ok(Line { prompt, output_tokens })
}

impl Line {
    /// The prompt as it is sent: in the model's template where `templated`.
    pub fn prompt(self, texts: Option<(&Texts, bool)>) -> Result<Prompt> {
        let Line { prompt, output_tokens } = self;
        let template = texts.filter(|(_, templated)| *templated);
        let text = match template.and_then(|(texts, _)| texts.template.as_ref()) {
            Some(template) => template.render(&Chat::new(&[Message::new("user", &prompt)]))?,
            None => prompt,
        };
        let tokens = texts.map(|(texts, _)| texts.tokenizer.encode(&text)).transpose()?;
        Ok(Prompt { tokens: tokens.map_or(0, |tokens| tokens.len()), text, output_tokens })
    }
}

/// The first prompts that are neither too short nor too long.
pub fn conversations(
    entries: &[Conversation],
    tokenizer: &Tokenizer,
    output_tokens: Option<usize>,
    dataset: &Dataset,
) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for entry in entries {
        if prompts.len() == dataset.count {
            break;
        }
        let tokens = tokenizer.encode(&entry.prompt)?.len();
        let answer = match output_tokens {
            Some(tokens) => tokens,
            None => tokenizer.encode(&entry.answer)?.len(),
        };
        let too_short = tokens < TOKENS_MIN || (output_tokens.is_none() && answer < TOKENS_MIN);
        let too_long = tokens > PROMPT_TOKENS_MAX || tokens + answer > TOTAL_TOKENS_MAX;
        if !too_short && !too_long {
            prompts.push(Prompt { text: entry.prompt.clone(), tokens, output_tokens: answer });
        }
    }
    Ok(prompts)
}

/// Mixes the entries, unless the order of the file is wanted.
pub fn shuffle<T>(entries: &mut [T], dataset: &Dataset, random: &mut impl Rng) {
    if !dataset.in_order {
        entries.shuffle(random);
    }
}

/// Draws prompts again until there are enough, unless fewer are wanted then.
pub fn fill(
    mut prompts: Vec<Prompt>,
    dataset: &Dataset,
    path: &Path,
    random: &mut impl Rng,
) -> Result<Vec<Prompt>> {
    let found = prompts.len();
    ensure!(found > 0, "{} has no usable prompt", path.display());
    while !dataset.no_oversample && prompts.len() < dataset.count {
        prompts.push(prompts[random.random_range(0..found)].clone());
    }
    Ok(prompts)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the data set {}", path.display()))
}
