//! The runner of an NVIDIA GPU.
//!
//! ```text
//! host    write words ─ launch ──────────────────────────┐   wait, read what was chosen
//! device  ... upload ─ feed ─ forward (a graph) ─ sample ─ download ...
//! ```
//! Everything a step needs lies in page-locked memory. Steps that only decode are brought to the device by
//! a kernel and replay a CUDA graph of the next larger recorded size; those with prompts are copied and
//! launched one by one. A kernel tells the host what was chosen. Two steps may be on their way: the tokens that the first one chooses are fed
//! to the second on the device.
//!
//! What the device cannot do, it leaves to the definition: the logits of such rows are read back and
//! the host chooses. Those steps are done when their launch returns.

mod counters;
mod graphs;
mod pieces;
mod sampling;
mod slot;
mod words;

use std::collections::VecDeque;
use std::fmt;

use artel_device::cuda::{Context, Graph, Kernels, Stream};
use artel_layers::exchange::cuda::Exchange;
use artel_layers::feed::cuda::Feed;
use artel_model::cuda::{CudaKernels, CudaLimits, CudaModel, CudaStep};
use artel_model::{BLOCK_TOKENS, LogitsOf, Model, Progress, SequenceInput};
use half::bf16;

use self::counters::ExpertCounters;
use self::graphs::graph_rows;
use self::sampling::{DeviceSampling, Rows, SamplingKernels};
use self::slot::{Readout, Slot};
use self::words::{Words, blocks, copy_inputs};
use crate::runner::{Launched, RunReport, Runner, RunnerInfo, SequenceOutput, SequenceStep};
use crate::{EngineConfig, Result};

/// Rows of logits that a step may have at least: tokens of a prompt whose probabilities are wanted.
const LOGITS_ROWS_MIN: usize = 64;

/// Device memory that is left alone: graphs, and what the driver takes as it goes on.
const SPARE_BYTES: usize = 1 << 30;

/// Stands for a token that the device is still choosing.
const AWAITED: [u32; 1] = [0];

/// Runs a model on a GPU.
pub struct CudaRunner {
    /// By rows, smallest first; none before the cache has its place. First, so that graphs go before the
    /// kernels that they launch.
    graphs: Vec<(usize, Graph)>,
    model: CudaModel,
    info: RunnerInfo,
    stream: Stream,
    feed: Feed,
    exchange: Exchange,
    sampling: DeviceSampling,
    slots: [Slot; 2],
    /// Slots of the steps that run, the older first.
    running: VecDeque<usize>,
    /// Row of logits of each sequence in the latest step, where its token was chosen.
    chosen_rows: Vec<Option<usize>>,
    counters: ExpertCounters,
    /// Tokens of the latest step that is complete, and how its experts were served.
    path: (usize, String),
}

/// Every kernel that a runner launches.
pub struct CudaRunnerKernels {
    model: CudaKernels,
    feed: Feed,
    exchange: Exchange,
    sampling: SamplingKernels,
}

impl CudaRunnerKernels {
    /// Asks for the kernels that serve `model`; without a GPU this lists them.
    ///
    /// # Errors
    /// When the model has no kernels, or one is missing and cannot be made.
    pub fn load(kernels: &mut Kernels, model: &Model, config: &EngineConfig) -> Result<Self> {
        let limits = limits(model, config);
        Ok(Self {
            model: CudaKernels::load(kernels, model, &limits)?,
            feed: Feed::load(kernels)?,
            exchange: Exchange::load(kernels)?,
            sampling: SamplingKernels::load(kernels, model.config().vocabulary)?,
        })
    }
}

/// What a configuration asks of the model.
fn limits(model: &Model, config: &EngineConfig) -> CudaLimits {
    CudaLimits {
        tokens_max: config.max_num_batched_tokens,
        sequences_max: config.max_num_seqs,
        logits_max: config.max_num_seqs.max(LOGITS_ROWS_MIN),
        context_max: config.max_model_len.min(model.config().max_positions),
    }
}

impl CudaRunner {
    /// Uploads `model`, reporting as it goes. `memory_share` of the device's memory may be in use when
    /// keys and values have theirs.
    ///
    /// # Errors
    /// When the device has not enough memory or fails.
    pub fn new(
        (model, kernels): (&Model, CudaRunnerKernels),
        context: &Context,
        config: &EngineConfig,
        memory_share: f64,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let limits = limits(model, config);
        let stream = context.stream()?;
        let vocabulary = model.config().vocabulary;
        let layers = model.config().layers;
        let on_device = CudaModel::load(model, context, kernels.model, report)?;
        let sampling =
            DeviceSampling::new(context, kernels.sampling, (limits.sequences_max, vocabulary))?;
        let logits = (limits.logits_max, vocabulary);
        let slot = || Slot::new(context, on_device.layout(), sampling.layout(), logits);
        let slots = [slot()?, slot()?];
        let block_bytes = on_device.cache_bytes_per_block();
        let kv_cache_memory = cache_memory(context, memory_share)?;
        Ok(Self {
            info: RunnerInfo {
                vocabulary,
                max_positions: model.config().max_positions,
                kv_bytes_per_token: block_bytes / BLOCK_TOKENS,
                kv_cache_memory: Some(kv_cache_memory.min(layers * 2 * CACHE_LAYER_BYTES_MAX)),
            },
            counters: ExpertCounters::new(context, on_device.expert_counts())?,
            model: on_device,
            stream,
            feed: kernels.feed,
            exchange: kernels.exchange,
            sampling,
            slots,
            running: VecDeque::with_capacity(2),
            chosen_rows: Vec::new(),
            graphs: Vec::new(),
            path: (0, String::new()),
        })
    }

    /// Launches a step in the slot that is free, and returns which one that is.
    fn begin(&mut self, batch: &[SequenceStep<'_>]) -> Result<usize> {
        let number = self.running.back().map_or(0, |latest| 1 - latest);
        let slot = &mut self.slots[number];
        let inputs: Vec<SequenceInput<'_>> = batch.iter().map(input).collect();
        let recorded = self.graphs.iter().find(|(rows, _)| batch.len() <= *rows);
        let decode_rows = recorded.map_or(0, |(rows, _)| *rows);
        let step = self.model.write_step(&inputs, decode_rows, slot.inputs.as_mut_slice())?;
        let words = (slot.sampling.as_mut_slice(), slot.masks.as_mut_slice());
        let rows = self.sampling.write(batch, &self.chosen_rows, words);
        let recorded = recorded.filter(|(rows, _)| step == CudaStep::decode(*rows));
        let words = Words { step: &step, blocks: blocks(&inputs), rows: &rows };
        let device = (&mut self.model, &mut self.sampling);
        match recorded {
            Some(_) => words.bring(&self.stream, &self.exchange, slot, device)?,
            None => words.copy(&self.stream, slot, device)?,
        }
        if rows.is_fed {
            let (sources, chosen) = self.sampling.feed(batch.len())?;
            let mut ids = self.model.buffers()?.inputs;
            self.feed.launch(&self.stream, &mut ids, sources, chosen)?;
        }
        match recorded {
            // SAFETY: graphs are recorded of this model's and cache's buffers, which live as long and
            // are used on this stream only.
            Some((_, graph)) => unsafe { graph.launch(&self.stream) }?,
            None => self.model.forward(&self.stream, &step)?,
        }
        self.choose(number, &rows)?;
        self.chosen_rows.clear();
        self.chosen_rows.extend_from_slice(&rows.of_sequences);
        let slot = &mut self.slots[number];
        slot.readouts.clear();
        slot.readouts.extend(batch.iter().zip(&rows.of_sequences).map(readout));
        slot.tokens = batch.iter().map(SequenceStep::new_tokens).sum();
        Ok(number)
    }

    /// Chooses tokens on the device and lets it copy them, and all else that the step told, to the
    /// host.
    fn choose(&mut self, number: usize, rows: &Rows) -> Result<()> {
        let slot = &mut self.slots[number];
        if rows.count > 0 {
            let values = rows.count * self.info.vocabulary;
            let logits = self.model.buffers()?.logits.range(0, values)?;
            self.sampling.launch(&self.stream, logits, rows)?;
            let (tokens, logprobs) = self.sampling.chosen(rows.count)?;
            // SAFETY: nobody touches the slot before its event has happened.
            unsafe {
                let told = (&mut slot.chosen, &mut slot.logprobs);
                self.exchange.tell(&self.stream, (tokens, logprobs), told)
            }?;
            if rows.needs_logits {
                // SAFETY: as above.
                unsafe { slot.logits.begin_read(&self.stream, logits) }?;
            }
        }
        slot.counted = self.counters.launched();
        if slot.counted.is_some() {
            let counters = self.model.buffers()?.expert_counters;
            // SAFETY: as above.
            unsafe { self.counters.read[number].begin_read(&self.stream, counters) }?;
        }
        slot.done.record(&self.stream)?;
        Ok(())
    }

    /// Waits for the step in a slot and takes in what it tells beside tokens.
    fn wait(&mut self, number: usize) -> Result<()> {
        let slot = &self.slots[number];
        slot.done.synchronize()?;
        if let Some(steps) = slot.counted {
            self.counters.take(steps, number);
        }
        if self.path.0 != slot.tokens {
            self.path = (slot.tokens, self.model.way(slot.tokens));
        }
        Ok(())
    }

    /// Computes a step; the host chooses where the device cannot.
    fn run_and_wait(&mut self, batch: &[SequenceStep<'_>]) -> Result<Vec<SequenceOutput>> {
        let number = self.begin(batch)?;
        self.wait(number)?;
        let is_for_the_host = |step: &SequenceStep<'_>| self.sampling.is_for_the_host(step);
        Ok(self.slots[number].outputs_chosen_here(batch, is_for_the_host))
    }

    /// Logits `[rows, V]` of a forward pass of one sequence that is waited for; `logits_of` as asked.
    fn logits_of(&mut self, input: SequenceInput<'_>) -> Result<Vec<f32>> {
        let number = self.running.back().map_or(0, |latest| 1 - latest);
        let slot = &mut self.slots[number];
        let step = self.model.write_step(&[input], 0, slot.inputs.as_mut_slice())?;
        copy_inputs(&self.stream, &mut self.model, &slot.inputs, (&step, blocks(&[input])))?;
        self.model.forward(&self.stream, &step)?;
        let values = step.logits_rows() * self.info.vocabulary;
        let logits = self.model.buffers()?.logits.range(0, values)?;
        slot.logits.read_from(&self.stream, logits)?;
        Ok(slot.logits.as_slice()[..values].iter().copied().map(bf16::to_f32).collect())
    }

    /// Records the launches of steps that only decode.
    fn record_graphs(&mut self) -> Result<()> {
        for rows in graph_rows(self.model.limits().sequences_max) {
            let (step, model) = (CudaStep::decode(rows), &mut self.model);
            // Once without recording: the driver loads kernels when they are first launched.
            model.forward(&self.stream, &step)?;
            let graph = Graph::capture(&self.stream, |stream| model.forward(stream, &step))?;
            self.graphs.push((rows, graph));
        }
        Ok(self.stream.synchronize()?)
    }
}

/// Bytes of the keys of one layer, or of its values: kernels number their elements with 31 bits.
const CACHE_LAYER_BYTES_MAX: usize = (i32::MAX as usize / 2) * size_of::<bf16>();

/// What keys and values may take when weights and buffers have their place.
fn cache_memory(context: &Context, share: f64) -> Result<usize> {
    let (free, total) = context.memory()?;
    let wanted = (total as f64 * share) as usize;
    Ok(wanted.saturating_sub(total - free).saturating_sub(SPARE_BYTES))
}

fn input<'a>(step: &SequenceStep<'a>) -> SequenceInput<'a> {
    let tokens = if step.awaited.is_some() { &AWAITED } else { step.tokens };
    let logits_of = match step.choice {
        Some(_) => LogitsOf::LastToken,
        None => LogitsOf::Nothing,
    };
    SequenceInput { blocks: step.blocks, cached: step.cached, tokens, logits_of }
}

fn readout((step, row): (&SequenceStep<'_>, &Option<usize>)) -> Option<Readout> {
    let top = step.choice.and_then(|choice| choice.logprobs).unwrap_or(0);
    row.map(|row| Readout { row, top })
}

impl Runner for CudaRunner {
    fn info(&self) -> RunnerInfo {
        self.info
    }

    fn allocate(&mut self, blocks: usize) -> Result<()> {
        self.graphs.clear();
        self.model.allocate_cache(blocks)?;
        self.record_graphs()
    }

    fn launch(&mut self, batch: &[SequenceStep<'_>]) -> Result<Launched> {
        if batch.iter().any(|step| step.prompt.is_some()) {
            return self.run_in_pieces(batch).map(Launched::Done);
        }
        if batch.iter().any(|step| self.sampling.is_for_the_host(step)) {
            return self.run_and_wait(batch).map(Launched::Done);
        }
        let number = self.begin(batch)?;
        self.running.push_back(number);
        Ok(Launched::Running)
    }

    fn collect(&mut self) -> Result<Vec<SequenceOutput>> {
        let number = self.running.pop_front().expect("this is a bug: no step runs");
        self.wait(number)?;
        Ok(self.slots[number].outputs())
    }

    fn report(&mut self) -> RunReport<'_> {
        let (expert_pairs, expert_steps) = self.counters.news();
        RunReport { expert_pairs, expert_steps, path: &self.path.1, ranks: None }
    }
}

impl fmt::Debug for CudaRunner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CudaRunner").field("info", &self.info).finish_non_exhaustive()
    }
}
