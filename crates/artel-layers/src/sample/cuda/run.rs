//! All steps of sampling, one launch after the other.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernels, Stream};
use artel_moe::quant::Element;

use super::adjust::cuda::Adjust;
use super::draw::BINS;
use super::draw::cuda::{Draw, DrawRows, DrawState};
use super::mask::cuda::{Forbid, RowMasks};
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

/// What is done to logits: masks, then the entries of each row.
#[derive(Debug, Clone, Copy)]
pub struct RowAdjustments<'a> {
    /// Where some row has a mask.
    pub masks: Option<RowMasks<'a>>,
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

/// Memory that sampling needs between its launches.
#[derive(Debug)]
pub struct SampleWorkspace {
    chunk_largests: DeviceBuffer<f32>,
    chunk_ids: DeviceBuffer<i32>,
    chunk_sums: DeviceBuffer<f32>,
    chunk_floors: DeviceBuffer<f32>,
    largests: DeviceBuffer<f32>,
    floors: DeviceBuffer<f32>,
    normalizers: DeviceBuffer<f32>,
    copy: DeviceBuffer<f32>,
    counts: DeviceBuffer<i32>,
    sums: DeviceBuffer<i64>,
    bins: DeviceBuffer<i32>,
    bin_sums: DeviceBuffer<i64>,
    cursors: DeviceBuffer<i32>,
    limits: DeviceBuffer<i32>,
    ids: DeviceBuffer<i32>,
    rows: usize,
}

/// All kernels of sampling from logits of `L`.
#[derive(Debug, Clone)]
pub struct SampleKernels<L> {
    greedy: Greedy<L>,
    copying: Greedy<L>,
    adjusted: Greedy<f32>,
    forbid: Forbid,
    adjust: Adjust<L>,
    draw: Draw<L>,
    draw_adjusted: Draw<f32>,
    vocabulary: usize,
}

impl<L: Element> SampleKernels<L> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a vocabulary without kernels, [`LayersError::Cuda`] when a kernel is
    /// missing and cannot be made.
    pub fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        Ok(Self {
            greedy: Greedy::load(kernels, vocabulary, false)?,
            copying: Greedy::load(kernels, vocabulary, true)?,
            adjusted: Greedy::load(kernels, vocabulary, false)?,
            forbid: Forbid::load(kernels, vocabulary)?,
            adjust: Adjust::load(kernels, vocabulary)?,
            draw: Draw::load(kernels, vocabulary)?,
            draw_adjusted: Draw::load(kernels, vocabulary)?,
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
            chunk_floors: DeviceBuffer::new(context, chunks)?,
            largests: DeviceBuffer::new(context, rows)?,
            floors: DeviceBuffer::new(context, rows)?,
            normalizers: DeviceBuffer::new(context, rows)?,
            copy: DeviceBuffer::new(context, rows * self.vocabulary)?,
            counts: DeviceBuffer::new(context, 2 * chunks)?,
            sums: DeviceBuffer::new(context, 2 * chunks)?,
            bins: DeviceBuffer::zeroed(context, BINS * rows)?,
            bin_sums: DeviceBuffer::zeroed(context, BINS * rows)?,
            cursors: DeviceBuffer::new(context, BINS * rows)?,
            limits: DeviceBuffer::new(context, rows)?,
            ids: DeviceBuffer::new(context, rows * self.vocabulary)?,
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
            floors: workspace.chunk_floors.slice_mut(),
        };
        let mut rows = RowSlices {
            largests: workspace.largests.slice_mut(),
            floors: workspace.floors.slice_mut(),
            normalizers: workspace.normalizers.slice_mut(),
            tokens,
            logprobs,
        };
        let mut state = DrawState {
            counts: workspace.counts.slice_mut(),
            sums: workspace.sums.slice_mut(),
            bins: workspace.bins.slice_mut(),
            bin_sums: workspace.bin_sums.slice_mut(),
            cursors: workspace.cursors.slice_mut(),
            limits: workspace.limits.slice_mut(),
            ids: workspace.ids.slice_mut(),
        };
        let Some(adjustments) = adjustments else {
            self.greedy.launch(stream, (logits, None), &mut chunks, &mut rows, false)?;
            if steps.draws {
                steps.draw(stream, (logits, &self.draw), parameters, &mut state, &mut rows)?;
                self.adjust.measure(stream, logits, &mut rows)?;
            }
            return Ok(());
        };
        let mut copy = workspace.copy.slice_mut();
        let place = Some(copy.reborrow());
        self.copying.launch(stream, (logits, place), &mut chunks, &mut rows, false)?;
        if let Some(masks) = &adjustments.masks {
            self.forbid.launch(stream, count, masks, &mut copy)?;
        }
        if !adjustments.ids.is_empty() {
            self.adjust.adjust(stream, count, adjustments, &mut copy)?;
        }
        let adjusted = copy.as_slice().range(0, count * self.vocabulary)?;
        self.adjusted.launch(stream, (adjusted, None), &mut chunks, &mut rows, true)?;
        if steps.draws {
            steps.draw(
                stream,
                (adjusted, &self.draw_adjusted),
                parameters,
                &mut state,
                &mut rows,
            )?;
        }
        self.adjust.measure(stream, logits, &mut rows)
    }
}

impl SampleSteps {
    /// Draws from logits as they are or as they were adjusted.
    fn draw<L: Element>(
        self,
        stream: &Stream,
        (logits, draw): (DeviceSlice<'_, L>, &Draw<L>),
        parameters: &RowParameters<'_>,
        state: &mut DrawState<'_>,
        rows: &mut RowSlices<'_>,
    ) -> Result<(), LayersError> {
        let wanted = DrawRows {
            largests: rows.largests.as_slice(),
            floors: rows.floors.as_slice(),
            temperatures: parameters.temperatures,
            top_ks: parameters.top_ks,
            top_ps: parameters.top_ps,
            least: parameters.least,
            uniforms: parameters.uniforms,
        };
        let cuts = self.top_k || self.top_p;
        draw.launch(stream, logits, (&wanted, cuts), state, &mut rows.tokens)
    }
}
