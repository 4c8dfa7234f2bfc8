//! Loading and launching.

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, Kernel, KernelSpec, Kernels, Stream,
};
use half::bf16;

use super::super::Cut;
use super::super::cuda::{DecodeParts, DecodeWorkspace};
use super::STEP;
use super::text::{HEAD, HEADS_MAX, SHARED_BYTES, WARPS, source};
use crate::LayersError;
use crate::attention::AttentionShape;
use crate::attention::cuda::{AttentionParameters, CacheSlices, LOG2_E, SequenceSlices};

/// Attention of one token of one sequence, which leaves parts.
#[derive(Debug, Clone)]
pub struct SingleAttention {
    kernel: Kernel,
    shape: AttentionShape,
}

impl SingleAttention {
    /// Asks for the kernel; `None` where there is none for such heads.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when the kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: &AttentionShape,
    ) -> Result<Option<Self>, LayersError> {
        let heads = shape.query_heads / shape.kv_heads.max(1);
        let is_known = crate::attention::cuda::head_dim(shape).is_ok_and(|head| head == HEAD)
            && (1..=HEADS_MAX).contains(&heads)
            && kernels.architecture() == Architecture::Sm90;
        if !is_known {
            return Ok(None);
        }
        let cut = Self::cut(shape);
        let assembly = Assembly {
            text: source(shape.kv_heads, heads, cut).into(),
            threads: 32 * WARPS,
            shared_bytes: SHARED_BYTES,
        };
        let sizes = [shape.kv_heads, heads, cut.parts_max, cut.step_keys, cut.part_keys_min];
        let name = "attention/single";
        let spec = KernelSpec::assembly(name, assembly, "attend", Architecture::Sm90)
            .generics(sizes.map(|size| size as i32))
            .programmatic();
        Ok(Some(Self { kernel: kernels.get(&spec)?, shape: *shape }))
    }

    /// How keys are cut for heads of `shape`: as many parts as others have room for, which may be shorter.
    pub(crate) fn cut(shape: &AttentionShape) -> Cut {
        Cut { step_keys: STEP, part_keys_min: STEP, ..Cut::of(shape) }
    }

    /// Attends for the one token of the first sequence: `queries` are `[query_heads * D]`. Its key and value
    /// are in the cache. Length and table are older than every kernel that may still run, and so are all
    /// other keys and values of the sequence.
    ///
    /// # Errors
    /// [`LayersError::Config`] for a window of 0, [`LayersError::Cuda`] when a slice is too short or the
    /// launch fails.
    pub fn launch<'a>(
        &self,
        stream: &Stream,
        (queries, cache): (DeviceSlice<'_, bf16>, &CacheSlices<'_, bf16>),
        sequences: &SequenceSlices<'a>,
        parameters: &AttentionParameters<'a>,
        workspace: &'a mut DecodeWorkspace,
    ) -> Result<DecodeParts<'a>, LayersError> {
        sequences.check()?;
        cache.check(&self.shape)?;
        queries.expect_len("queries", self.shape.query_width())?;
        let window = parameters.window()?;
        let parts = workspace.parts(&self.shape, 1, sequences.lengths, parameters.sinks, window)?;
        let arguments = Arguments::new()
            .slice(queries)
            .slice_mut(&cache.keys)
            .slice_mut(&cache.values)
            .slice(sequences.tables)
            .slice(sequences.lengths)
            .slice(parts.sums)
            .slice(parts.largests)
            .slice(parts.totals)
            .i32(window)
            .f32(parameters.scale * LOG2_E);
        let grid = [self.shape.kv_heads, Self::cut(&self.shape).parts_max, 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches for
        // the table and the length.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(parts)
    }
}
