//! What computes a step: the interface between the engine and a device.

use artel_layers::sample::{Adjustments, Sampler, TokenHistory, TokenLogprobs};
use artel_model::BlockId;

use crate::{RankMetrics, Result};

/// What the engine has to know of a runner's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerInfo {
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest context that the model knows positions for.
    pub max_positions: usize,
    /// Bytes that keys and values of one token take.
    pub kv_bytes_per_token: usize,
    /// Bytes for keys and values unless the caller wants otherwise; `None` where memory is only taken
    /// as they fill.
    pub kv_cache_memory: Option<usize>,
}

/// Computes steps: the model and the choice of tokens, on one device. Only what was chosen leaves
/// the runner, so that logits can stay where they are made.
///
/// The runner keeps keys and values in blocks of [`BLOCK_TOKENS`](artel_model::BLOCK_TOKENS)
/// tokens and nothing else between steps; which request owns which block is the engine's matter.
pub trait Runner: Send {
    /// What the model is.
    fn info(&self) -> RunnerInfo;

    /// Makes room for so many blocks of keys and values. Called once, before the first step.
    ///
    /// # Errors
    /// When there is not enough memory.
    fn allocate(&mut self, blocks: usize) -> Result<()>;

    /// Computes the new tokens of all sequences and chooses the next where that is asked for, or
    /// lets a device begin with it.
    ///
    /// # Errors
    /// When the model fails. The step may be repeated then.
    fn launch(&mut self, batch: &[SequenceStep<'_>]) -> Result<Launched>;

    /// Waits for the step that runs; of two, for the one that was launched first.
    ///
    /// # Errors
    /// When the model fails.
    ///
    /// # Panics
    /// When no step runs.
    fn collect(&mut self) -> Result<Vec<SequenceOutput>>;

    /// How the latest step that is complete was computed. Asked once for each.
    fn report(&mut self) -> RunReport<'_>;
}

/// How far a step is when its launch returns. Outputs are one entry a sequence, in the order of the
/// batch.
#[derive(Debug)]
pub enum Launched {
    /// Computed.
    Done(Vec<SequenceOutput>),
    /// A device computes it; [`Runner::collect`] has the outputs. One more step may be launched
    /// before that.
    Running,
}

/// What one step does for one sequence.
#[derive(Debug, Clone, Copy)]
pub struct SequenceStep<'a> {
    /// Blocks of the sequence in order, with room for the new tokens.
    pub blocks: &'a [BlockId],
    /// Tokens that are in the blocks.
    pub cached: usize,
    /// The tokens that follow them; at least one unless one is awaited.
    pub tokens: &'a [u32],
    /// One token more, which is being chosen: by the step launched before this one, for the sequence
    /// at this place of its batch. Only where that step is [`Launched::Running`].
    pub awaited: Option<usize>,
    /// How the token behind them is chosen; `None` when the prompt goes on.
    pub choice: Option<Choice<'a>>,
    /// The tokens of the prompt whose probabilities are wanted.
    pub prompt: Option<PromptTargets<'a>>,
}

impl SequenceStep<'_> {
    /// New tokens, known and awaited.
    pub fn new_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.awaited.is_some())
    }
}

/// How a token is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The request's parameters.
    pub sampler: &'a Sampler,
    /// What penalties are about.
    pub history: &'a TokenHistory,
    /// Number of the token within the answer.
    pub position: u64,
    /// What is done to the logits first.
    pub adjustments: Adjustments<'a>,
    /// How many of the most probable tokens are wanted beside the chosen one.
    pub logprobs: Option<usize>,
}

/// Tokens of a prompt whose probabilities are wanted.
#[derive(Debug, Clone, Copy)]
pub struct PromptTargets<'a> {
    /// The token that follows each new token, as far as the prompt reaches.
    pub targets: &'a [u32],
    /// How many of the most probable tokens are wanted beside each.
    pub logprobs: usize,
}

/// What came of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SequenceOutput {
    /// The chosen token, or why none could be chosen; `None` when none was asked for.
    pub chosen: Option<std::result::Result<TokenLogprobs, String>>,
    /// One entry for each of the prompt's targets.
    pub prompt: Vec<TokenLogprobs>,
}

/// How a step was computed.
#[derive(Debug, Clone, Copy)]
pub struct RunReport<'a> {
    /// Pairs of token and expert since the report before that had any, `[layers with
    /// experts][experts]`; empty without news of them.
    pub expert_pairs: &'a [Vec<i32>],
    /// Steps that those pairs are of.
    pub expert_steps: u64,
    /// How the experts were served: assignment and kernel; empty without experts.
    pub path: &'a str,
    /// The ranks that hold the experts, where there are several.
    pub ranks: Option<&'a RankMetrics>,
}
