//! Loading and launching.

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, Assembly, Context, DeviceBuffer, DeviceSliceMut, Kernel, KernelSpec,
    Kernels, Stream,
};

use super::layout::{COUNTERS, ScaleForm, THREADS};
use super::text::source;
use super::{StreamedShape, TOKENS_MAX};
use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::grouped_gemm::decode::cuda::DirectStep;
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::grouped_gemm::words::WordFormat;
use crate::quant::activations::ScaleBounds;

/// Both products of at most [`TOKENS_MAX`] tokens.
#[derive(Debug, Clone)]
pub struct StreamedExperts<A> {
    shape: StreamedShape,
    ids: IdForm,
    kernel: Kernel,
    element: PhantomData<A>,
}

impl<A: HalfElement> StreamedExperts<A> {
    /// Asks for the kernel whose tasks of the first product have so many weight rows.
    ///
    /// # Errors
    /// [`MoeError::Config`] for experts or tasks that it does not serve, [`MoeError::Cuda`] when it is missing and
    /// cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: impl Into<StreamedShape>,
        task_rows: usize,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        let shape = shape.into();
        let all = shape.all_sizes(A::NAME, ids == IdForm::Packed);
        let sizes = all.into_iter().find(|sizes| sizes.first.task_rows() == task_rows);
        let sizes = sizes.ok_or_else(|| {
            let allowed = "experts of eight or four bits with SiLU, whose tasks fit a ring";
            MoeError::config("streamed experts", format!("{shape:?} by {task_rows} rows"), allowed)
        })?;
        let assembly = Assembly {
            text: source(&sizes).into(),
            threads: THREADS,
            shared_bytes: sizes.places().end,
        };
        let form = match sizes.scales {
            ScaleForm::Blocks => 0,
            ScaleForm::Channels => 1,
            ScaleForm::Matrices => 2,
            ScaleForm::Words => 3,
            ScaleForm::Integers => 4,
        };
        // Codes and groups of words, and how they are cut into tasks.
        let words = [sizes.first, sizes.second].into_iter().filter_map(|product| {
            let WordFormat { code, group } = product.format?;
            Some([code as i32, group as i32, product.task_rows() as i32])
        });
        let generics = shape.lens().map(|size| size as i32);
        let name = "grouped_gemm/streamed";
        let spec = KernelSpec::assembly(name, assembly, "stream", Architecture::Sm90)
            .element(A::NAME)
            .generics(generics)
            .generics([form, ids.packed()])
            .generics(words.flatten())
            .programmatic();
        Ok(Self { shape, ids, kernel: kernels.get(&spec)?, element: PhantomData })
    }

    /// `out` `[T, H]` = the sum over the experts of each token with the router's weights.
    ///
    /// # Errors
    /// [`MoeError`] for more tokens than [`TOKENS_MAX`] or than the workspace has room for, slices that
    /// are too short, or a launch that fails.
    pub fn launch(
        &self,
        stream: &Stream,
        step: &DirectStep<'_, A>,
        workspace: &mut StreamedWorkspace<A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let [_, top_k, hidden_size, _] = self.shape.lens();
        let tokens = step.tokens;
        if tokens > workspace.tokens {
            let allowed = format!("at most {}", workspace.tokens);
            return Err(MoeError::config("tokens of a streamed step", tokens, allowed));
        }
        step.hidden_states.expect_len("hidden states", tokens * hidden_size)?;
        step.routing.check(self.ids, tokens * top_k)?;
        match &self.shape {
            StreamedShape::Numbers(shape) => step.experts.check::<A>(shape)?,
            StreamedShape::Words(shape) => shape.check_weights(&step.experts)?,
        }
        workspace.check(&self.shape, tokens)?;
        out.expect_len("output hidden states", tokens * hidden_size)?;
        if tokens == 0 {
            return Ok(());
        }
        let (w13, w2) = (step.experts.w13, step.experts.w2);
        let arguments = Arguments::new()
            .slice_mut(out)
            .slice_mut(&workspace.rows.slice_mut())
            .slice_mut(&workspace.inner.slice_mut())
            .slice_mut(&workspace.counters.slice_mut())
            .slice(step.hidden_states)
            .slice(w13.numbers)
            .slice(w13.scales)
            .slice(w2.numbers)
            .slice(w2.scales);
        let of_x = ScaleBounds::HIDDEN.or_given(w13.input_scale);
        let of_inner = ScaleBounds::ACTIVATED.or_given(w2.input_scale);
        let arguments = step.routing.weights(step.routing.ids(arguments)).size(tokens);
        let arguments = [of_x, of_inner]
            .into_iter()
            .fold(arguments, |arguments, bounds| arguments.f32(bounds.least).f32(bounds.most));
        let grid = [stream.context().multiprocessors()?, 1, 1];
        // SAFETY: the arguments are the kernel's and all lengths were checked; it reads weights of
        // experts that exist, and scales by sixteen bytes of stacks that are multiples of these.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}

/// What blocks of threads leave for each other, for batches up to a size. One stream at a time may
/// use it.
#[derive(Debug)]
pub struct StreamedWorkspace<A: HalfElement> {
    tokens: usize,
    /// Activations `[experts of the batch, T, I]`.
    inner: DeviceBuffer<f32>,
    /// Rows `[experts of the batch, T, H]`.
    rows: DeviceBuffer<A>,
    /// All 0 between launches.
    counters: DeviceBuffer<i32>,
}

impl<A: HalfElement> StreamedWorkspace<A> {
    /// For steps of at most `tokens` tokens; no step has more than [`TOKENS_MAX`].
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when the device has no memory left.
    pub fn new(
        context: &Context,
        shape: impl Into<StreamedShape>,
        tokens: usize,
    ) -> Result<Self, MoeError> {
        let tokens = tokens.min(TOKENS_MAX);
        let [_, top_k, hidden_size, intermediate_size] = shape.into().lens();
        let rows = tokens * top_k * tokens;
        Ok(Self {
            tokens,
            inner: DeviceBuffer::zeroed(context, rows * intermediate_size)?,
            rows: DeviceBuffer::zeroed(context, rows * hidden_size)?,
            counters: DeviceBuffer::zeroed(context, COUNTERS)?,
        })
    }

    fn check(&self, shape: &StreamedShape, tokens: usize) -> Result<(), MoeError> {
        let [_, top_k, hidden_size, intermediate_size] = shape.lens();
        let rows = tokens * top_k * tokens;
        self.inner.slice().expect_len("activations", rows * intermediate_size)?;
        self.rows.slice().expect_len("rows of experts", rows * hidden_size)?;
        Ok(())
    }
}
