//! Experts on a GPU: one stack a product, copied expert by expert from where the checkpoint has it.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice};

use super::words::{ExpertWords, WordLayout};
use super::{ExpertMatrices, ExpertWeights, StackLayout};
use crate::MoeError;
use crate::activation::GateLayout;
use crate::config::MoeConfig;
use crate::grouped_gemm::decode::cuda::{ExpertSlices, WeightSlices};
use crate::plan::gpu::{ExpertsShape, GpuProduct};
use crate::quant::NumberFormat;

/// One matrix per expert, on a GPU.
#[derive(Debug)]
pub struct DeviceMatrices {
    layout: StackLayout,
    memory: Memory,
    input_scale: Option<f32>,
    biases: Option<DeviceBuffer<f32>>,
}

/// Whose the numbers and scales are.
#[derive(Debug)]
enum Memory {
    Own { numbers: DeviceBuffer<u8>, scales: DeviceBuffer<f32> },
    Foreign { numbers: DeviceSlice<'static, u8>, scales: DeviceSlice<'static, f32> },
}

impl DeviceMatrices {
    /// Copies the matrices of all experts into a stack of `layout`.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a layout that the matrices do not fit, [`MoeError::Cuda`] when they do
    /// not fit the GPU.
    pub fn upload<F: NumberFormat>(
        context: &Context,
        matrices: &ExpertMatrices<F>,
        layout: StackLayout,
    ) -> Result<Self, MoeError> {
        if let Some(words) = layout.word_layout() {
            return Self::upload_words(context, matrices, layout, words);
        }
        let per_expert = layout.scales_per_expert();
        let mut numbers = context.buffer(layout.experts * layout.number_bytes_per_expert())?;
        let mut scales = context.buffer(layout.experts * per_expert)?;
        let mut host_scales = vec![0f32; per_expert];
        let mut written = 0;
        for expert in 0..layout.experts {
            for run in matrices.numbers(expert) {
                numbers.write(written, run)?;
                written += run.len();
            }
            matrices.write_scales(expert, &layout, &mut host_scales)?;
            scales.write(expert * per_expert, &host_scales)?;
        }
        let biases = Self::upload_biases(context, matrices)?;
        let memory = Memory::Own { numbers, scales };
        Ok(Self { layout, memory, input_scale: matrices.input_scale(), biases })
    }

    /// The same as words, expert by expert.
    fn upload_words<F: NumberFormat>(
        context: &Context,
        matrices: &ExpertMatrices<F>,
        layout: StackLayout,
        words: WordLayout,
    ) -> Result<Self, MoeError> {
        let mut numbers = context.buffer(layout.experts * layout.number_bytes_per_expert())?;
        let mut scales = context.buffer(layout.experts * layout.scales_per_expert())?;
        let (of_codes, of_scales) = (layout.number_bytes_per_expert(), words.scales_per_expert());
        let mut all = ExpertWords::new(&words);
        for expert in 0..layout.experts {
            words.write_words(matrices.matrix(expert), &mut all)?;
            numbers.write(expert * of_codes, bytemuck::cast_slice(&all.codes))?;
            scales.write(expert * of_scales, bytemuck::cast_slice::<u32, f32>(&all.scales))?;
            let globals = layout.experts * of_scales + expert * words.parts;
            scales.write(globals, &all.globals)?;
        }
        let biases = Self::upload_biases(context, matrices)?;
        let memory = Memory::Own { numbers, scales };
        Ok(Self { layout, memory, input_scale: matrices.input_scale(), biases })
    }

    /// Matrices that another engine keeps on the GPU: numbers `[E, N, K]` and float32 scales
    /// [`StackLayout::scale_shape`], without biases and for activations whose scales are not known.
    ///
    /// # Safety
    /// Both addresses hold what `layout` says, on the GPU that they are used on, until the value and
    /// every kernel that reads it are gone.
    pub unsafe fn from_raw(layout: StackLayout, numbers: u64, scales: u64) -> Self {
        let bytes = layout.experts * layout.number_bytes_per_expert();
        let count = layout.experts * layout.scales_per_expert();
        // SAFETY: the caller vouches for both addresses.
        let (numbers, scales) = unsafe {
            (DeviceSlice::from_raw(numbers, bytes), DeviceSlice::from_raw(scales, count))
        };
        let memory = Memory::Foreign { numbers, scales };
        Self { layout, memory, input_scale: None, biases: None }
    }

    fn upload_biases<F: NumberFormat>(
        context: &Context,
        matrices: &ExpertMatrices<F>,
    ) -> Result<Option<DeviceBuffer<f32>>, MoeError> {
        let biases: Option<Vec<&[f32]>> =
            (0..matrices.experts()).map(|expert| matrices.bias(expert)).collect();
        Ok(biases.map(|all| DeviceBuffer::from_host(context, &all.concat())).transpose()?)
    }

    /// Biases of zero where there are none.
    fn fill_biases(&mut self, context: &Context) -> Result<(), MoeError> {
        if self.biases.is_none() {
            let count = self.layout.experts * self.layout.rows;
            self.biases = Some(DeviceBuffer::zeroed(context, count)?);
        }
        Ok(())
    }

    /// Sizes, and what one scale covers.
    pub fn layout(&self) -> &StackLayout {
        &self.layout
    }

    /// The stored numbers `[E, N, K]`, as bytes.
    pub fn numbers(&self) -> DeviceSlice<'_, u8> {
        match &self.memory {
            Memory::Own { numbers, .. } => numbers.slice(),
            Memory::Foreign { numbers, .. } => *numbers,
        }
    }

    /// The scales, [`StackLayout::scale_shape`].
    pub fn scales(&self) -> DeviceSlice<'_, f32> {
        match &self.memory {
            Memory::Own { scales, .. } => scales.slice(),
            Memory::Foreign { scales, .. } => *scales,
        }
    }

    /// Numbers and scales, as kernels take them.
    pub(crate) fn slices(&self) -> WeightSlices<'_> {
        let (numbers, scales) = (self.numbers(), self.scales());
        WeightSlices { numbers, scales, input_scale: self.input_scale, biases: self.biases() }
    }

    /// Biases `[E, N]`, if the experts have any.
    pub fn biases(&self) -> Option<DeviceSlice<'_, f32>> {
        self.biases.as_ref().map(DeviceBuffer::slice)
    }
}

/// The weights of all experts of a layer, on a GPU.
#[derive(Debug)]
pub struct DeviceExperts {
    w13: DeviceMatrices,
    w2: DeviceMatrices,
}

impl DeviceExperts {
    /// Both products' matrices.
    pub fn new(w13: DeviceMatrices, w2: DeviceMatrices) -> Self {
        Self { w13, w2 }
    }

    /// Copies both products' matrices, with rows and scales as the kernels of this configuration read
    /// them: gates before ups, and biases of both products where there are any.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a format without GPU kernels or weights of another shape,
    /// [`MoeError::Cuda`] when they do not fit the GPU.
    pub fn upload<F: NumberFormat>(
        context: &Context,
        config: &MoeConfig,
        weights: &ExpertWeights<F>,
    ) -> Result<Self, MoeError> {
        let shape = ExpertsShape::of(config, F::NAME.parse()?);
        let layout = |product| shape.stack_layout(product).ok_or_else(|| shape.without_kernels());
        let in_turns = config.activation().layout() == GateLayout::Interleaved;
        let halves = in_turns.then(|| weights.w13().in_halves()).transpose()?;
        let w13 = halves.as_ref().unwrap_or(weights.w13());
        let mut w13 = DeviceMatrices::upload(context, w13, layout(GpuProduct::GateUp)?)?;
        let mut w2 = DeviceMatrices::upload(context, weights.w2(), layout(GpuProduct::Down)?)?;
        if weights.has_biases() {
            // One product may have none: ranks share the features of w13, and one of them adds w2's.
            w13.fill_biases(context)?;
            w2.fill_biases(context)?;
        }
        Ok(Self { w13, w2 })
    }

    /// Bytes of numbers and scales.
    pub fn bytes(&self) -> usize {
        let of = |product: &DeviceMatrices| {
            product.numbers().len() + size_of::<f32>() * product.scales().len()
        };
        of(&self.w13) + of(&self.w2)
    }

    /// Gate over up, `[E, 2I, H]`.
    pub fn w13(&self) -> &DeviceMatrices {
        &self.w13
    }

    /// Down, `[E, H, I]`.
    pub fn w2(&self) -> &DeviceMatrices {
        &self.w2
    }

    /// Both, as kernels take them.
    pub(crate) fn slices(&self) -> ExpertSlices<'_> {
        ExpertSlices { w13: self.w13.slices(), w2: self.w2.slices() }
    }
}
