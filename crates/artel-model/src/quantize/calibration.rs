//! What a model's matrices meet when it reads texts: the mean squares of their input columns, which say
//! how much an error of a weight matters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use artel_layers::attention::KvCache;
use artel_moe::inputs::{ExpertInputs, InputSquares};

use super::texts;
use crate::{
    Checkpoint, LoadOptions, LogitsOf, Model, ModelError, Result, SequenceInput, Tokenizer,
};

/// Tokens of one step, and of the longest piece of a text.
const STEP_TOKENS: usize = 1024;

/// Tokens that the mean over a layer's experts counts as, beside those that an expert has met itself.
const PRIOR_TOKENS: f64 = 32.0;

/// How far calibration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationProgress {
    /// Tokens that the model has read.
    pub tokens_done: usize,
    /// Tokens that it will read.
    pub tokens_total: usize,
}

/// Mean squares of the input columns of a model's matrices, by the names of their tensors.
///
/// That of an expert is over the tokens routed to it, with the mean over all experts of its layer mixed
/// in as if it were that of 32 tokens: experts that saw few tokens or none follow their layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    by_tensor: BTreeMap<String, Arc<[f32]>>,
    tokens: usize,
}

impl Calibration {
    /// Lets the model of `checkpoint` read the texts of `file`: UTF-8, one a line, or JSON objects with
    /// a `text` or `prompt`. It reads them in order until it has seen `tokens_max` tokens.
    ///
    /// # Errors
    /// [`ModelError::Texts`] for a file that is not there, is not UTF-8 or has no tokens; and when the
    /// checkpoint has no tokenizer or its model does not load.
    pub fn read(
        checkpoint: &Checkpoint,
        file: &Path,
        tokens_max: usize,
        report: &mut dyn FnMut(CalibrationProgress),
    ) -> Result<Self> {
        let texts = texts::read(file)?;
        let tokenizer = Tokenizer::read(checkpoint)?;
        let model = Model::load(checkpoint, &LoadOptions::default())?;
        let pieces = pieces(&model, &tokenizer, &texts, tokens_max)?;
        if pieces.is_empty() {
            let why = "has no tokens in it".to_owned();
            return Err(ModelError::Texts { path: file.to_owned(), why });
        }
        Self::observe(&model, &pieces, report)
    }

    /// Lets a model read pieces of text, each of which stands for itself.
    pub(super) fn observe(
        model: &Model,
        pieces: &[Vec<u32>],
        report: &mut dyn FnMut(CalibrationProgress),
    ) -> Result<Self> {
        let tokens_total = pieces.iter().map(Vec::len).sum();
        let mut workspace = model.new_workspace();
        workspace.record_inputs();
        let steps = steps(pieces);
        let blocks_of = |step: &[Vec<u32>]| -> usize {
            step.iter().map(|piece| KvCache::blocks_for(piece.len())).sum()
        };
        let blocks = steps.iter().map(|step| blocks_of(step)).max().unwrap_or(0);
        let mut cache = model.new_cache(blocks);
        let blocks = cache.all_blocks();
        let mut tokens_done = 0;
        for step in steps {
            let mut free = &blocks[..];
            let batch: Vec<SequenceInput<'_>> = step
                .iter()
                .map(|tokens| {
                    let (blocks, rest) = free.split_at(KvCache::blocks_for(tokens.len()));
                    free = rest;
                    SequenceInput { blocks, cached: 0, tokens, logits_of: LogitsOf::Nothing }
                })
                .collect();
            model.forward(&mut workspace, &mut cache, &batch)?;
            tokens_done += step.iter().map(Vec::len).sum::<usize>();
            report(CalibrationProgress { tokens_done, tokens_total });
        }
        let (maps, layers) = workspace.take_inputs();
        let mut by_tensor = BTreeMap::new();
        let none = InputSquares::default();
        for (name, squares) in maps {
            by_tensor.insert(name, squares.mean_squares(&none, 0.0).into());
        }
        for (names, inputs) in model.expert_names().zip(&layers) {
            by_tensor.extend(of_experts(names, inputs));
        }
        Ok(Self { by_tensor, tokens: tokens_total })
    }

    /// Tokens that were read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean squares of the input columns of a matrix, `[columns]`; `None` for one that was not met.
    pub fn mean_squares(&self, tensor: &str) -> Option<&[f32]> {
        self.by_tensor.get(tensor).map(AsRef::as_ref)
    }
}

/// The texts as tokens, up to `tokens_max` of them, in pieces that the model has positions for.
fn pieces(
    model: &Model,
    tokenizer: &Tokenizer,
    texts: &[String],
    tokens_max: usize,
) -> Result<Vec<Vec<u32>>> {
    let longest = model.config().max_positions.clamp(1, STEP_TOKENS);
    let (mut pieces, mut left) = (Vec::new(), tokens_max);
    for text in texts {
        let tokens = tokenizer.encode(text)?;
        let tokens = &tokens[..tokens.len().min(left)];
        left -= tokens.len();
        pieces.extend(tokens.chunks(longest).map(<[u32]>::to_vec));
        if left == 0 {
            break;
        }
    }
    Ok(pieces)
}

/// Neighbouring pieces that fit into a step together.
fn steps(mut pieces: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let mut steps = Vec::new();
    while !pieces.is_empty() {
        let mut tokens = 0;
        let fits = |piece: &&Vec<u32>| {
            tokens += piece.len();
            tokens <= STEP_TOKENS
        };
        let count = pieces.iter().take_while(fits).count().max(1);
        let (step, rest) = pieces.split_at(count);
        steps.push(step);
        pieces = rest;
    }
    steps
}

/// Mean squares of the matrices of one layer's experts; gate and up of an expert share theirs.
fn of_experts(names: &[[String; 3]], inputs: &ExpertInputs) -> Vec<(String, Arc<[f32]>)> {
    let all = |experts: &[InputSquares]| {
        let mut sum = InputSquares::default();
        experts.iter().for_each(|expert| sum.add(expert));
        sum
    };
    let (all_w13, all_w2) = (all(&inputs.w13), all(&inputs.w2));
    let experts = names.iter().zip(inputs.w13.iter().zip(&inputs.w2));
    let of_expert = |(names, (w13, w2)): (&[String; 3], (&InputSquares, &InputSquares))| {
        let w13: Arc<[f32]> = w13.mean_squares(&all_w13, PRIOR_TOKENS).into();
        let w2: Arc<[f32]> = w2.mean_squares(&all_w2, PRIOR_TOKENS).into();
        let [gate, up, down] = names.clone();
        [(gate, w13.clone()), (up, w13), (down, w2)]
    };
    experts.flat_map(of_expert).collect()
}
