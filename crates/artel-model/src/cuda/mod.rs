//! The decoder on an NVIDIA GPU.
//!
//! [`CudaKernels`] asks for every kernel that a model may launch (or lists them), [`CudaModel::load`]
//! copies its weights, and [`CudaModel::forward`] launches a step. A step reads its inputs from one
//! buffer whose places never change ([`StepLayout`]) and allocates and waits for nothing, so that it can
//! be recorded in a graph.
//!
//! The residual stream is float32. What goes from one operation to the next is bfloat16, or codes where
//! weights are FP8 in blocks; so are keys and values. Logits are bfloat16. Weights stay in the
//! checkpoint's format where there are kernels for it; embedding, output layer and the linear maps of
//! attention are rounded to bfloat16 from all formats but FP8 in blocks.

mod attention;
mod dense;
mod experts;
mod inputs;
mod kernels;
mod latent;
mod linear;
mod norm;
mod rows;
mod single;
pub mod step;
#[cfg(test)]
mod tests;
mod upload;

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Stream};
use artel_layers::LayersError;
use artel_moe::eplb::count::CountShape;
use artel_moe::layer::cuda::ExpertsProgram;
use artel_moe::plan::gpu::GpuPlan;
use artel_moe::quant::AnyMatrix;
use half::bf16;
pub use kernels::CudaKernels;
pub use step::{CudaStep, LogitsRows, StepLayout, StepSection};

use crate::checkpoint::Progress;
use crate::decoder::SequenceInput;
use crate::{Model, ModelError, Result};
use attention::LayerCache;
use experts::{MlpLeft, RoutingRows};
use inputs::Inputs;
use kernels::LayerWeights;
use linear::{MapRows, MapWeights, Products};
use rows::Rows;
use upload::Upload;

/// What a model on a GPU is made for: memory and kernels follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaLimits {
    /// Most new tokens of a step; at least `sequences_max`.
    pub tokens_max: usize,
    /// Most sequences of a step.
    pub sequences_max: usize,
    /// Most rows of logits of a step; at least `sequences_max`.
    pub logits_max: usize,
    /// Most tokens of a sequence: what its block table has room for.
    pub context_max: usize,
}

/// A decoder on a GPU, with its cache and the memory of its steps.
#[derive(Debug)]
pub struct CudaModel {
    context: Context,
    layout: StepLayout,
    kernels: CudaKernels,
    vocabulary: usize,
    experts: usize,
    /// `None` where the output layer has the same weights.
    embedding: Option<DeviceBuffer<bf16>>,
    frequencies: DeviceBuffer<f32>,
    layers: Vec<LayerWeights>,
    norm: DeviceBuffer<f32>,
    head: MapWeights,
    programs: Vec<ExpertsProgram<bf16>>,
    rows: Rows,
    routing: RoutingRows,
    counters: DeviceBuffer<i32>,
    inputs: DeviceBuffer<i32>,
    cache: Vec<LayerCache>,
    cache_blocks: usize,
}

/// What the host writes before a step and reads behind it.
#[derive(Debug)]
pub struct StepBuffers<'a> {
    /// All words of [`StepLayout`].
    pub inputs: DeviceSliceMut<'a, i32>,
    /// Logits `[rows, V]` of the latest step, with room for the most rows.
    pub logits: DeviceSlice<'a, bf16>,
    /// Pairs of each expert since the model was loaded, `[layers with experts, E]`; they wrap around.
    pub expert_counters: DeviceSlice<'a, i32>,
}

impl CudaModel {
    /// Copies the weights of `model`, whose kernels were loaded on the same GPU, and makes room for its
    /// steps. The cache has no blocks yet.
    ///
    /// # Errors
    /// [`ModelError`] when the GPU has not enough memory.
    pub fn load(
        model: &Model,
        context: &Context,
        mut kernels: CudaKernels,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let (decoder, limits) = (model.decoder(), kernels.limits);
        let mut upload = Upload::new(context, model.parameters().bytes(), report);
        let programs = std::mem::take(&mut kernels.programs).into_iter();
        let programs =
            programs.map(|program| program.start(context)).collect::<Result<Vec<_>>>()?;
        let rows = Rows::new(context, &limits, kernels.widths, &kernels.attention)?;
        let routing = RoutingRows::new(context, limits.tokens_max, kernels.expert_layers())?;
        let embedding = match is_shared(decoder.embedding.weight(), decoder.head.weight()) {
            true => None,
            false => Some(upload.matrix(decoder.embedding.weight())?),
        };
        let (mut layers, mut expert_layers) = (Vec::new(), 0);
        for (layer, kernels) in decoder.layers.iter().zip(&kernels.layers) {
            let weights = LayerWeights::upload(&mut upload, layer, expert_layers)?;
            if let (Some(program), Some(moe)) = (kernels.program(), weights.experts()) {
                programs[program].check(moe.experts())?;
                expert_layers += 1;
            }
            layers.push(weights);
        }
        let layout = StepLayout::new(&limits);
        let experts = model.config().experts;
        Ok(Self {
            context: context.clone(),
            vocabulary: model.config().vocabulary,
            experts,
            embedding,
            frequencies: upload.vector(decoder.rope.inverse_frequencies())?,
            layers,
            norm: upload.vector(decoder.norm.weight())?,
            head: MapWeights::upload(&mut upload, &[&decoder.head])?,
            programs,
            rows,
            routing,
            counters: DeviceBuffer::zeroed(context, expert_layers * experts)?,
            inputs: DeviceBuffer::zeroed(context, layout.words())?,
            cache: Vec::new(),
            cache_blocks: 0,
            layout,
            kernels,
        })
    }

    /// What its steps may be.
    pub fn limits(&self) -> &CudaLimits {
        &self.kernels.limits
    }

    /// Where a step finds its inputs.
    pub fn layout(&self) -> &StepLayout {
        &self.layout
    }

    /// Size of the vocabulary, `V`.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Layers that have routed experts, and experts of each.
    pub fn expert_counts(&self) -> [usize; 2] {
        [self.kernels.expert_layers().count(), self.experts]
    }

    /// Bytes that a block of [`BLOCK_TOKENS`](artel_layers::attention::BLOCK_TOKENS) tokens takes in all
    /// layers.
    pub fn cache_bytes_per_block(&self) -> usize {
        self.layers.len() * LayerCache::block_bytes(&self.kernels.attention)
    }

    /// Makes room for `blocks` blocks of keys and values. What was cached is lost, and graphs that were
    /// recorded must not be launched any more.
    ///
    /// # Errors
    /// [`ModelError::Cuda`] when the GPU has not enough memory.
    pub fn allocate_cache(&mut self, blocks: usize) -> Result<()> {
        self.cache.clear();
        self.cache_blocks = 0;
        let layer = |_| LayerCache::new(&self.context, &self.kernels.attention, blocks);
        self.cache = (0..self.layers.len()).map(layer).collect::<Result<_>>()?;
        self.cache_blocks = blocks;
        Ok(())
    }

    /// As [`StepLayout::write`] for this model's vocabulary and cache.
    ///
    /// # Errors
    /// As there, and [`ModelError::Layer`] for a token outside of the vocabulary or a block that the
    /// cache does not have.
    pub fn write_step(
        &self,
        batch: &[SequenceInput<'_>],
        decode_rows: usize,
        words: &mut [i32],
    ) -> Result<CudaStep> {
        for input in batch {
            let position = input.tokens.iter().position(|&id| id as usize >= self.vocabulary);
            if let Some(position) = position {
                let (id, vocabulary) = (input.tokens[position], self.vocabulary);
                return Err(LayersError::TokenId { id, position, vocabulary }.into());
            }
            let blocks = self.cache_blocks;
            if let Some(block) = input.blocks.iter().find(|block| **block as usize >= blocks) {
                let allowed = format!("below {blocks}, the blocks of the cache");
                return Err(LayersError::config("a block", block, allowed).into());
            }
        }
        self.layout.write(batch, decode_rows, words)
    }

    /// Copies the words of a step and waits. Those who care for time copy them in the order of a stream.
    ///
    /// # Errors
    /// [`ModelError::Cuda`] when there are more words than the layout has.
    pub fn upload(&mut self, words: &[i32]) -> Result<()> {
        Ok(self.inputs.write(0, words)?)
    }

    /// What the host writes and reads.
    pub fn buffers(&mut self) -> Result<StepBuffers<'_>> {
        let rows = self.kernels.limits.logits_max;
        Ok(StepBuffers {
            inputs: self.inputs.slice_mut(),
            logits: self.rows.logits.slice().range(0, rows * self.vocabulary)?,
            expert_counters: self.counters.slice(),
        })
    }

    /// How the experts of a step of `tokens` tokens are served; empty for a model without experts.
    pub fn way(&self, tokens: usize) -> String {
        let way = self.programs.first().map(|program| program.way(tokens.max(1)));
        way.map_or_else(String::new, |way| format!("{} {}", way.path, way.kernels.first))
    }

    /// What serves which batch size in the layers with experts, one plan for each kind of them.
    pub fn plans(&self) -> impl Iterator<Item = &GpuPlan> {
        self.programs.iter().map(ExpertsProgram::plan)
    }

    /// Launches a step, whose inputs are in the buffer when its launches run: hidden states of all rows
    /// through all layers, and the logits of the rows that it lists. Every block in its tables must be
    /// one of the cache.
    ///
    /// # Errors
    /// [`ModelError::StepTooLarge`] for a step beyond the limits, [`ModelError::Cuda`] when a launch
    /// fails.
    pub fn forward(&mut self, stream: &Stream, step: &CudaStep) -> Result<()> {
        self.layout.check(step)?;
        if step.tokens == 0 {
            return Ok(());
        }
        if self.cache.is_empty() {
            return Err(ModelError::StepTooLarge {
                what: "sequences",
                found: step.sequences,
                limit: 0,
            });
        }
        let inputs = Inputs::new(self.inputs.slice(), &self.layout, *step)?;
        let (kernels, rows, tokens) = (&self.kernels, &mut self.rows, step.tokens);
        let table = match &self.embedding {
            Some(embedding) => embedding.slice(),
            None => self.head.table(),
        };
        let (positions, frequencies) = (inputs.positions, self.frequencies.slice());
        let mut angles = rows.angles.slice_mut();
        kernels.angles.launch(stream, tokens, positions, frequencies, &mut angles)?;
        kernels.embed.launch(stream, table, inputs.token_ids, &mut rows.hidden.slice_mut())?; // [T, H]
        let layers = kernels.layers.iter().zip(&self.layers).zip(&mut self.cache);
        let mut left = MlpLeft::Rows;
        for ((kernels, weights), cache) in layers {
            let (memory, programs) = ((&mut *rows, &mut self.routing), &mut self.programs);
            left = kernels.forward(stream, (&inputs, left), (weights, cache), memory, programs)?;
        }
        let behind = left.behind(&self.programs, &self.routing, tokens)?;
        kernels.norm.launch(stream, (tokens, behind), &self.norm, rows)?;
        let count = step.logits_rows();
        let picked = match step.logits {
            LogitsRows::Every => &rows.normed,
            LogitsRows::Listed(_) => {
                let (hidden, ids) = (rows.normed.slice(), inputs.logits_rows);
                kernels.pick.launch(stream, hidden, ids, &mut rows.picked.slice_mut())?;
                &rows.picked
            }
        };
        let mut products = Products { stream, workspace: &mut rows.linear, tokens: count };
        let logits = &mut rows.logits.slice_mut();
        products.launch((&kernels.head, &self.head), MapRows::Plain(picked), logits)?; // [rows, V]
        self.launch_count(stream, step)
    }

    fn launch_count(&mut self, stream: &Stream, step: &CudaStep) -> Result<()> {
        let [layers, experts] = self.expert_counts();
        if layers == 0 {
            return Ok(());
        }
        let slots = self.routing.slots();
        let (ids, stride) = self.routing.ids();
        let shape = CountShape { layers, pairs: step.tokens * slots, stride, experts };
        let counters = &mut self.counters.slice_mut();
        Ok(self.kernels.count.launch(stream, shape, ids, counters)?)
    }
}

/// Whether both matrices are the same bytes.
fn is_shared(embedding: &AnyMatrix, head: &AnyMatrix) -> bool {
    match (embedding, head) {
        (AnyMatrix::Bf16(embedding), AnyMatrix::Bf16(head)) => {
            std::ptr::eq(embedding.elements(), head.elements())
        }
        _ => false,
    }
}
