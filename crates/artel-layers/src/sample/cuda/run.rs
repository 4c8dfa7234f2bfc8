//! All steps of sampling, one launch after the other.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernels, Stream};
use artel_moe::quant::Element;

use super::adjust::cuda::Adjust;
use super::descend::cuda::{Descend, DescentRows, DescentState, Level};
use super::descend::{LEVELS, RANK_LEVELS, Stage};
use super::{ChunkSlices, Greedy, RowSlices};
use crate::LayersError;

/// What each row of a step asks for; `[rows]` each.
#[derive(Debug, Clone, Copy)]
pub struct RowParameters<'a> {
    /// 0 is greedy.
    pub temperatures: DeviceSlice<'a, f32>,
    /// 0 keeps all.
    pub top_ks: DeviceSlice<'a, i32>,
    /// In (0, 1].
    pub top_ps: DeviceSlice<'a, f32>,
    /// Natural logarithm of `min_p`: negative infinity keeps all.
    pub least: DeviceSlice<'a, f32>,
    /// [`Sampler::uniform`](crate::sample::Sampler::uniform) of each row's position.
    pub uniforms: DeviceSlice<'a, f64>,
}

/// What is done to the logits of some tokens of each row.
#[derive(Debug, Clone, Copy)]
pub struct RowAdjustments<'a> {
    /// `[rows + 1]`: the entries of row `r` are those from `starts[r]` up to `starts[r + 1]`.
    pub starts: DeviceSlice<'a, i32>,
    /// Token of each entry; no token twice in a row.
    pub ids: DeviceSlice<'a, i32>,
    /// Occurrences in the output; 0 for a token of the prompt alone, -1 for one that was not seen.
    pub counts: DeviceSlice<'a, i32>,
    /// Added to the logit before penalties; negative infinity forbids the token.
    pub biases: DeviceSlice<'a, f32>,
    /// `[rows, 3]`: repetition, presence and frequency penalty.
    pub penalties: DeviceSlice<'a, f32>,
}

/// Which launches the rows of a step need, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleSteps {
    /// A row has a temperature above 0.
    pub draws: bool,
    /// And keeps the most probable `k` only.
    pub top_k: bool,
    /// Or those that reach `p` together.
    pub top_p: bool,
}

impl SampleSteps {
    /// The levels of all descents in order.
    fn levels(self) -> Vec<Level> {
        let stages = [(self.top_k, Stage::TopK), (self.top_p, Stage::TopP), (true, Stage::Draw)];
        let wanted = stages.into_iter().filter(|(is_wanted, _)| *is_wanted);
        // Where no row is cut, tokens are drawn in the order of their ids.
        let first = if self.top_k || self.top_p { 0 } else { RANK_LEVELS };
        let levels = |stage| {
            (first..LEVELS).map(move |level| Level { stage, level, is_first: level == first })
        };
        wanted.flat_map(|(_, stage)| levels(stage)).collect()
    }
}

/// Memory that sampling needs between its launches.
#[derive(Debug)]
pub struct SampleWorkspace {
    chunk_largests: DeviceBuffer<f32>,
    chunk_ids: DeviceBuffer<i32>,
    chunk_sums: DeviceBuffer<f32>,
    largests: DeviceBuffer<f32>,
    normalizers: DeviceBuffer<f32>,
    copy: DeviceBuffer<f32>,
    partials: DeviceBuffer<f64>,
    words: DeviceBuffer<i32>,
    numbers: DeviceBuffer<f64>,
    rows: usize,
}

/// All kernels of sampling from logits of `L`.
#[derive(Debug, Clone)]
pub struct SampleKernels<L> {
    greedy: Greedy<L>,
    copying: Greedy<L>,
    adjusted: Greedy<f32>,
    adjust: Adjust<L>,
    descend: Descend,
    levels: [Vec<Level>; 4],
    vocabulary: usize,
}

impl<L: Element> SampleKernels<L> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a vocabulary without kernels, [`LayersError::Cuda`] when a kernel is
    /// missing and cannot be made.
    pub fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        let levels = [(false, false), (false, true), (true, false), (true, true)];
        Ok(Self {
            greedy: Greedy::load(kernels, vocabulary, false)?,
            copying: Greedy::load(kernels, vocabulary, true)?,
            adjusted: Greedy::load(kernels, vocabulary, false)?,
            adjust: Adjust::load(kernels, vocabulary)?,
            descend: Descend::load(kernels, vocabulary)?,
            levels: levels.map(|(top_k, top_p)| SampleSteps { draws: true, top_k, top_p }.levels()),
            vocabulary,
        })
    }

    /// Memory for steps of up to `rows` rows.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when memory runs out.
    pub fn workspace(
        &self,
        context: &Context,
        rows: usize,
    ) -> Result<SampleWorkspace, LayersError> {
        let chunks = rows * self.greedy.chunks();
        Ok(SampleWorkspace {
            chunk_largests: DeviceBuffer::new(context, chunks)?,
            chunk_ids: DeviceBuffer::new(context, chunks)?,
            chunk_sums: DeviceBuffer::new(context, chunks)?,
            largests: DeviceBuffer::new(context, rows)?,
            normalizers: DeviceBuffer::new(context, rows)?,
            copy: DeviceBuffer::new(context, rows * self.vocabulary)?,
            partials: DeviceBuffer::new(context, self.descend.partials_len(rows))?,
            words: DeviceBuffer::new(context, 16 * rows)?,
            numbers: DeviceBuffer::new(context, 8 * rows)?,
            rows,
        })
    }

    /// Chooses a token for each row of `logits` `[rows, V]`: into `tokens`, with the natural logarithms
    /// of their probabilities under the logits as they are. A row whose logits are all NaN or negative
    /// infinity gives -1.
    ///
    /// # Errors
    /// [`LayersError::Shape`] for more rows than the workspace has, [`LayersError::Cuda`] when a slice is
    /// too short or a launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        logits: DeviceSlice<'_, L>,
        (parameters, adjustments): (&RowParameters<'_>, Option<&RowAdjustments<'_>>),
        steps: SampleSteps,
        workspace: &mut SampleWorkspace,
        (tokens, logprobs): (DeviceSliceMut<'_, i32>, DeviceSliceMut<'_, f32>),
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        LayersError::check_shape("rows to sample", count.max(workspace.rows), workspace.rows)?;
        let mut chunks = ChunkSlices {
            largests: workspace.chunk_largests.slice_mut(),
            ids: workspace.chunk_ids.slice_mut(),
            sums: workspace.chunk_sums.slice_mut(),
        };
        let mut rows = RowSlices {
            largests: workspace.largests.slice_mut(),
            normalizers: workspace.normalizers.slice_mut(),
            tokens,
            logprobs,
        };
        if !steps.draws && adjustments.is_none() {
            return self.greedy.launch(stream, (logits, None), &mut chunks, &mut rows, false);
        }
        let mut copy = workspace.copy.slice_mut();
        let place = Some(copy.reborrow());
        self.copying.launch(stream, (logits, place), &mut chunks, &mut rows, false)?;
        if let Some(adjustments) = adjustments {
            self.adjust.adjust(stream, count, adjustments, &mut copy)?;
            let adjusted = copy.as_slice().range(0, count * self.vocabulary)?;
            self.adjusted.launch(stream, (adjusted, None), &mut chunks, &mut rows, true)?;
        }
        if steps.draws {
            let levels = &self.levels[2 * usize::from(steps.top_k) + usize::from(steps.top_p)];
            let wanted = DescentRows {
                largests: rows.largests.as_slice(),
                temperatures: parameters.temperatures,
                top_ks: parameters.top_ks,
                top_ps: parameters.top_ps,
                least: parameters.least,
                uniforms: parameters.uniforms,
            };
            let mut state = DescentState {
                partials: workspace.partials.slice_mut(),
                words: workspace.words.slice_mut(),
                numbers: workspace.numbers.slice_mut(),
            };
            let copy = copy.as_slice().range(0, count * self.vocabulary)?;
            self.descend.launch(stream, copy, &wanted, levels, &mut state, &mut rows.tokens)?;
        }
        self.adjust.measure(stream, logits, &mut rows)
    }
}
