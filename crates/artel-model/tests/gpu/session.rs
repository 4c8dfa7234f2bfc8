//! One model on both devices, step by step.

use artel_device::cuda::PinnedBuffer;
use artel_gpu_test::Gpu;
use artel_model::cuda::{CudaKernels, CudaLimits, CudaModel};
use artel_model::{BLOCK_TOKENS, BlockId, KvCache, Model, ModelError, SequenceInput, Workspace};
use half::bf16;

/// Steps of tests: enough for the tiles of many rows.
pub const LIMITS: CudaLimits =
    CudaLimits { tokens_max: 6500, sequences_max: 80, logits_max: 300, context_max: 800 };

/// Blocks of a sequence that may grow to the longest context.
pub const SEQUENCE_BLOCKS: usize = LIMITS.context_max / BLOCK_TOKENS;

/// A model and its state on both devices.
pub struct Session<'m> {
    model: &'m Model,
    gpu: &'m Gpu,
    workspace: Workspace,
    cache: KvCache,
    on_gpu: CudaModel,
    words: Vec<i32>,
    logits: PinnedBuffer<bf16>,
}

/// Logits `[rows, V]` of a step by the CPU and by the GPU.
pub struct Logits {
    pub expected: Vec<f32>,
    pub found: Vec<f32>,
    pub vocabulary: usize,
}

impl<'m> Session<'m> {
    pub fn new(gpu: &'m Gpu, model: &'m Model, kernels: &CudaKernels) -> Result<Self, ModelError> {
        let context = gpu.stream.context();
        let mut on_gpu = CudaModel::load(model, context, kernels.clone(), &mut |_| ())?;
        let blocks = SEQUENCE_BLOCKS * LIMITS.sequences_max;
        on_gpu.allocate_cache(blocks)?;
        let words = vec![-7; on_gpu.layout().words()];
        let logits = PinnedBuffer::zeroed(context, LIMITS.logits_max * model.config().vocabulary)?;
        let (workspace, cache) = (model.new_workspace(), model.new_cache(blocks));
        Ok(Self { model, gpu, workspace, cache, on_gpu, words, logits })
    }

    pub fn vocabulary(&self) -> usize {
        self.model.config().vocabulary
    }

    /// One step on both.
    pub fn step(&mut self, batch: &[SequenceInput<'_>]) -> Result<Logits, ModelError> {
        let expected = self.model.forward(&mut self.workspace, &mut self.cache, batch)?.to_vec();
        let vocabulary = self.vocabulary();
        let found = self.step_on_gpu(batch, 0)?;
        assert_eq!(found.len(), expected.len(), "rows of logits");
        Ok(Logits { expected, found, vocabulary })
    }

    /// One step on the GPU alone, padded to `decode_rows` rows.
    pub fn step_on_gpu(
        &mut self,
        batch: &[SequenceInput<'_>],
        decode_rows: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let step = self.on_gpu.write_step(batch, decode_rows, &mut self.words)?;
        self.on_gpu.upload(&self.words[self.on_gpu.layout().used(&step)])?;
        self.on_gpu.forward(&self.gpu.stream, &step)?;
        let rows = batch.iter().map(|input| rows_of(input)).sum::<usize>();
        let count = rows * self.vocabulary();
        let logits = self.on_gpu.buffers()?.logits.range(0, count)?;
        self.logits.read_from(&self.gpu.stream, logits)?;
        Ok(self.logits.as_slice()[..count].iter().map(|logit| logit.to_f32()).collect())
    }

    /// Pairs of each expert since the beginning, layer after layer.
    pub fn expert_pairs(&mut self) -> Result<Vec<i32>, ModelError> {
        let counters = self.on_gpu.buffers()?.expert_counters;
        let mut pairs = PinnedBuffer::zeroed(self.gpu.stream.context(), counters.len())?;
        pairs.read_from(&self.gpu.stream, counters)?;
        Ok(pairs.as_slice().to_vec())
    }
}

fn rows_of(input: &SequenceInput<'_>) -> usize {
    match input.logits_of {
        artel_model::LogitsOf::Nothing => 0,
        artel_model::LogitsOf::LastToken => 1,
        artel_model::LogitsOf::AllTokens => input.tokens.len(),
    }
}

/// The blocks of sequence `number`: its own, backwards.
pub fn blocks(number: usize) -> Vec<BlockId> {
    let first = number * SEQUENCE_BLOCKS;
    (first..first + SEQUENCE_BLOCKS).rev().map(|block| block as BlockId).collect()
}

impl Logits {
    /// `1 - 2 <a, b> / (|a|^2 + |b|^2)` of each row, ascending.
    pub fn differences(&self) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let rows = self.expected.chunks(self.vocabulary).zip(self.found.chunks(self.vocabulary));
        let mut differences: Vec<f64> =
            rows.map(|(a, b)| 1.0 - 2.0 * dot(a, b) / (dot(a, a) + dot(b, b))).collect();
        differences.sort_by(f64::total_cmp);
        differences
    }
}
