use std::collections::BTreeMap;

use artel_device::cpu::CpuFeatures;
use artel_moe::inputs::{ExpertInputs, InputSquares};
use artel_moe::layer::{AnyMoeLayer, AnyWorkspace};

use super::{LogitsOf, SequenceInput};

/// Memory of a step, kept for the next: once it has seen the largest step, the steps after it
/// allocate next to nothing.
#[derive(Debug)]
pub struct Workspace {
    /// New tokens of all sequences, one after the other, `[T]`.
    pub(super) tokens: Vec<u32>,
    /// Their positions, `[T]`.
    pub(super) positions: Vec<usize>,
    /// Rows of the tokens whose logits are wanted, ascending.
    pub(super) logits_rows: Vec<usize>,
    /// The residual stream, `[T, H]`.
    pub(super) hidden: Vec<f32>,
    /// What a block reads, `[T, H]`.
    pub(super) normed: Vec<f32>,
    /// What a block adds to the residual stream, `[T, H]`.
    pub(super) delta: Vec<f32>,
    /// The result, `[rows, V]`.
    pub(super) logits: Vec<f32>,
    pub(super) blocks: BlockWorkspace,
}

/// Memory inside the blocks.
#[derive(Debug)]
pub(crate) struct BlockWorkspace {
    pub(super) layers: artel_layers::Workspace,
    pub(super) attention: AttentionBuffers,
    pub(super) mlp: MlpBuffers,
    pub(super) moe: AnyWorkspace,
    /// Pairs of each expert, layer by layer.
    pub(super) expert_pairs: Vec<Vec<i32>>,
    /// What experts have met in all steps, layer by layer, where it is recorded.
    pub(super) expert_inputs: Option<Vec<ExpertInputs>>,
}

/// Rows between the operations of attention; which of them are used depends on its kind.
#[derive(Debug, Default)]
pub(super) struct AttentionBuffers {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) mixed: Vec<f32>,
    pub(super) latent: Vec<f32>,
}

/// Rows between the operations of an MLP.
#[derive(Debug, Default)]
pub(super) struct MlpBuffers {
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) gate_up: Vec<f32>,
    pub(super) activated: Vec<f32>,
    pub(super) shared: Vec<f32>,
    pub(super) shared_gate: Vec<f32>,
}

impl Workspace {
    /// A workspace that has not allocated anything yet.
    pub fn new(features: CpuFeatures) -> Self {
        let mut moe = AnyWorkspace::new(features);
        moe.record_experts(true);
        Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            logits_rows: Vec::new(),
            hidden: Vec::new(),
            normed: Vec::new(),
            delta: Vec::new(),
            logits: Vec::new(),
            blocks: BlockWorkspace {
                layers: artel_layers::Workspace::new(features),
                attention: AttentionBuffers::default(),
                mlp: MlpBuffers::default(),
                moe,
                expert_pairs: Vec::new(),
                expert_inputs: None,
            },
        }
    }

    /// Pairs of token and expert that the latest step computed, `[layers with experts][E]`.
    pub fn expert_pairs(&self) -> &[Vec<i32>] {
        &self.blocks.expert_pairs
    }

    /// Records what all matrices that have names are given from now on.
    pub(crate) fn record_inputs(&mut self) {
        self.blocks.layers.record_inputs();
        self.blocks.moe.record_inputs();
        self.blocks.expert_inputs = Some(Vec::new());
    }

    /// What linear maps have met since then, by name, and the experts of each layer that has some.
    pub(crate) fn take_inputs(&mut self) -> (BTreeMap<String, InputSquares>, Vec<ExpertInputs>) {
        let experts = self.blocks.expert_inputs.as_mut().map(std::mem::take);
        (self.blocks.layers.take_inputs(), experts.unwrap_or_default())
    }

    /// Lines up the new tokens of all sequences.
    pub(super) fn gather(&mut self, batch: &[SequenceInput<'_>]) {
        self.tokens.clear();
        self.positions.clear();
        self.logits_rows.clear();
        self.blocks.expert_pairs.clear();
        for &SequenceInput { cached, tokens, logits_of, .. } in batch {
            let first = self.tokens.len();
            self.tokens.extend_from_slice(tokens);
            self.positions.extend(cached..cached + tokens.len());
            let wanted = match logits_of {
                LogitsOf::Nothing => 0,
                LogitsOf::LastToken => tokens.len().min(1),
                LogitsOf::AllTokens => tokens.len(),
            };
            self.logits_rows.extend(first + tokens.len() - wanted..first + tokens.len());
        }
    }
}

impl BlockWorkspace {
    /// Adds what `experts` have just met to what is recorded of their layer: the one whose pairs were
    /// counted last.
    pub(super) fn keep_inputs(&mut self, experts: &AnyMoeLayer) {
        let Some(layers) = &mut self.expert_inputs else { return };
        let count = self.expert_pairs.len();
        layers.resize_with(layers.len().max(count), ExpertInputs::default);
        layers[count - 1].add(&experts.take_inputs(&mut self.moe));
    }
}

/// The buffer as `length` numbers, of which the old ones mean nothing.
pub(super) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}
