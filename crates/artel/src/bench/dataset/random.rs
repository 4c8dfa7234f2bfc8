//! Prompts of a given length that differ from each other.

use anyhow::{Result, ensure};
use artel_model::Tokenizer;
use rand::{Rng, RngExt};

use super::Prompt;

/// How often a text is corrected until it has the tokens it should have.
const ATTEMPTS: usize = 10;

/// How the tokens of a random prompt are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Each drawn by itself: no two prompts have anything in common, whatever the vocabulary.
    Drawn,
    /// Neighbours in the vocabulary from a drawn one on, as vLLM has them: number `i` is
    /// `ids[(offset_i + i + j) % n]` for `j` from 0 on. Prompts overlap where the vocabulary is small.
    Runs,
}

/// What random prompts and their answers are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Tokens of a prompt.
    pub input: usize,
    /// Tokens of an answer.
    pub output: usize,
    /// Both differ by this share at most: uniform in `[n * (1 - r), n * (1 + r)]`.
    pub range_ratio: f64,
    /// Tokens that all prompts begin with, on top of `input`.
    pub prefix: usize,
    /// How tokens are chosen, among those that stand for text.
    pub tokens: Tokens,
}

/// Makes prompts: tokens are chosen, and their text is brought to the length that was asked for, since
/// encoding may merge tokens.
///
/// Tokens that the tokenizer begins every text with count as part of the input.
///
/// # Errors
/// When the lengths leave nothing to ask, or the tokenizer fails.
pub fn prompts(
    shape: &Shape,
    tokenizer: &Tokenizer,
    count: usize,
    random: &mut impl Rng,
) -> Result<Vec<Prompt>> {
    let ids = whole_characters(tokenizer)?;
    ensure!(!ids.is_empty(), "the tokenizer has no token that stands for text");
    let ratio = shape.range_ratio;
    ensure!((0.0..1.0).contains(&ratio), "--random-range-ratio {ratio} is not in [0, 1)");
    let special = tokenizer.encode("")?.len();
    let (low, high) = bounds(shape.input.saturating_sub(special), ratio);
    ensure!(
        shape.prefix + low > 0,
        "--random-input-len {} is too small: prompts may be empty ({special} token(s) of each are \
         the tokenizer's own)",
        shape.input
    );
    let (output_low, output_high) = bounds(shape.output, ratio);
    let (output_low, output_high) = (output_low.max(1), output_high.max(1));
    let prefix: Vec<u32> =
        (0..shape.prefix).map(|_| ids[random.random_range(0..ids.len())]).collect();
    let mut prompts = Vec::with_capacity(count);
    for index in 0..count {
        let input = random.random_range(low..=high);
        let output_tokens = random.random_range(output_low..=output_high);
        let offset = random.random_range(0..ids.len());
        let mut tokens = prefix.clone();
        tokens.extend((0..input).map(|step| match shape.tokens {
            Tokens::Drawn => ids[random.random_range(0..ids.len())],
            Tokens::Runs => ids[(offset + index + step) % ids.len()],
        }));
        let (text, tokens) = fitted(tokenizer, tokens, &ids, random)?;
        prompts.push(Prompt { text, tokens: tokens + special, output_tokens });
    }
    Ok(prompts)
}

/// Ids whose text is valid by itself. Others are parts of a character, which become more tokens when
/// the text is encoded.
fn whole_characters(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for id in tokenizer.text_ids() {
        let text = tokenizer.decode(&[id])?;
        if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Least and greatest length.
fn bounds(length: usize, ratio: f64) -> (usize, usize) {
    let length = length as f64;
    ((length * (1.0 - ratio)).floor() as usize, (length * (1.0 + ratio)).ceil() as usize)
}

/// A text that encodes to as many tokens as `tokens` has, near to theirs; and its tokens.
fn fitted(
    tokenizer: &Tokenizer,
    mut tokens: Vec<u32>,
    ids: &[u32],
    random: &mut impl Rng,
) -> Result<(String, usize)> {
    let wanted = tokens.len();
    let mut text = tokenizer.decode(&tokens)?;
    for _ in 0..ATTEMPTS {
        tokens = tokenizer.encode_verbatim(&text)?;
        if tokens.len() == wanted {
            return Ok((text, wanted));
        }
        // The cut may go through a character; another last token mends it.
        tokens.truncate(wanted.saturating_sub(1));
        while tokens.len() < wanted {
            tokens.push(ids[random.random_range(0..ids.len())]);
        }
        text = tokenizer.decode(&tokens)?;
    }
    let found = tokenizer.encode_verbatim(&text)?.len();
    Ok((text, found))
}
