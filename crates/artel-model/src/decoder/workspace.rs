use artel_device::cpu::CpuFeatures;
use artel_moe::layer::AnyWorkspace;

use super::SequenceInput;

/// Memory of a step, kept for the next: once it has seen the largest step, the steps after it
/// allocate next to nothing.
#[derive(Debug)]
pub struct Workspace {
    /// New tokens of all sequences, one after the other, `[T]`.
    pub(super) tokens: Vec<u32>,
    /// Their positions, `[T]`.
    pub(super) positions: Vec<usize>,
    /// Rows of the last new token of each sequence that has one.
    pub(super) last_rows: Vec<usize>,
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
        Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            last_rows: Vec::new(),
            hidden: Vec::new(),
            normed: Vec::new(),
            delta: Vec::new(),
            logits: Vec::new(),
            blocks: BlockWorkspace {
                layers: artel_layers::Workspace::new(features),
                attention: AttentionBuffers::default(),
                mlp: MlpBuffers::default(),
                moe: AnyWorkspace::new(features),
            },
        }
    }

    /// Lines up the new tokens of all sequences.
    pub(super) fn gather(&mut self, batch: &[SequenceInput<'_>]) {
        self.tokens.clear();
        self.positions.clear();
        self.last_rows.clear();
        for SequenceInput { cache, tokens } in batch {
            self.tokens.extend_from_slice(tokens);
            self.positions.extend(cache.len()..cache.len() + tokens.len());
            if !tokens.is_empty() {
                self.last_rows.push(self.tokens.len() - 1);
            }
        }
    }
}

/// The buffer as `length` numbers, of which the old ones mean nothing.
pub(super) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.resize(length, 0.0);
    buffer
}
