//! Large batches: rows are brought into the order of the sorted pairs, so that products read and
//! write whole tiles.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernels, Stream};

use super::super::Step;
use super::gemm::{PlainGemm, ScaledGemm};
use crate::MoeError;
use crate::activation::cuda::{Activate, ActivateQuantize, ActivationForm, GateUp};
use crate::activation::{Activation, GateLayout};
use crate::combine::cuda::RowBiases;
use crate::grouped_gemm::decode::DecodeShape;
use crate::grouped_gemm::decode::cuda::{BlockSlices, WeightSlices};
use crate::grouped_gemm::prefill::PrefillForm;
use crate::grouped_gemm::prefill::cuda::{Fp8Operand, HalfElement};
use crate::grouped_gemm::prefill::warpgroup::Assigned;
use crate::permute::cuda::Permute;
use crate::plan::gpu::{ExpertsShape, GemmFamily, GpuProduct, Way};
use crate::quant::activations::cuda::{InputRows, Placement, Quantize, QuantizedRows, ScaleLayout};
use crate::quant::activations::{Granularity, ScaleBounds};
use crate::weights::StackLayout;

/// When pairs were sorted, for the first product and for the second, which comes behind it.
const ASSIGNED: [Assigned; 2] = [Assigned::Lately, Assigned::Before];

/// Both products with what stands before and between them.
#[derive(Debug, Clone)]
pub(super) struct PrefillChain<A: HalfElement> {
    shape: DecodeShape,
    block_size: usize,
    steps: Steps<A>,
}

#[derive(Debug, Clone)]
enum Steps<A: HalfElement> {
    Plain {
        permute: Permute<A>,
        first: PlainGemm<A>,
        /// Where the first product stores gate and up.
        activate: Option<Activate<A>>,
        second: PlainGemm<A>,
    },
    Fp8 {
        quantize: Quantize<A>,
        // Rounded to 16 bits, gate and up or what becomes of them would move codes of the second.
        first: ScaledGemm<f32>,
        activate: ActivateQuantize<f32>,
        second: ScaledGemm<A>,
        /// Numbers a row that the first product stores.
        stored: usize,
    },
}

/// Pairs in their order: the blocks, and where each pair stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct SortedPairs<'a> {
    pub(super) blocks: BlockSlices<'a>,
    pub(super) positions: DeviceSlice<'a, i32>,
}

impl<A: HalfElement> PrefillChain<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        sizes: &ExpertsShape,
        way: Way,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        let layout = |product| sizes.stack_layout(product).ok_or_else(|| sizes.without_kernels());
        let layouts = [layout(GpuProduct::GateUp)?, layout(GpuProduct::Down)?];
        let both = [way.kernels.first, way.kernels.second];
        let shape = sizes.decode_shape().ok_or_else(|| sizes.without_kernels())?;
        let DecodeShape { hidden_size, intermediate_size, top_k, gating, .. } = shape;
        let activation = ActivationForm {
            activation: of_halves(gating.activation),
            intermediate_size,
            sorted: true,
            biased: gating.biases.then_some(block_size),
        };
        let form = sizes.prefill_form(GpuProduct::GateUp, both[0].family);
        let steps = if layouts[0].scale_block.is_none() {
            let mut product = |of: usize| {
                let form = sizes.prefill_form(GpuProduct::ALL[of], both[of].family);
                PlainGemm::load(kernels, &layouts[of], form, both[of], (block_size, ASSIGNED[of]))
            };
            let (first, second) = (product(0)?, product(1)?);
            let activate = match form {
                PrefillForm::SiluAndMultiply => None,
                PrefillForm::Sums => Some(Activate::load(kernels, activation)?),
            };
            let permute = Permute::load(kernels, hidden_size, top_k)?;
            Steps::Plain { permute, first, activate, second }
        } else {
            let placement = Placement::Sorted { top_k };
            let [of_rows, of_inner] = layouts.map(|layout| granularity(&layout));
            let activate = match form {
                PrefillForm::SiluAndMultiply => {
                    ActivateQuantize::load_activated(kernels, intermediate_size, of_inner)?
                }
                PrefillForm::Sums => ActivateQuantize::load(kernels, activation, of_inner)?,
            };
            let (first, second) = (&layouts[0], &layouts[1]);
            let sums = PrefillForm::Sums;
            Steps::Fp8 {
                quantize: Quantize::load(kernels, hidden_size, of_rows, placement)?,
                first: ScaledGemm::load(kernels, first, form, both[0], block_size)?,
                activate,
                second: ScaledGemm::load(kernels, second, sums, both[1], block_size)?,
                stored: first.rows / form.parts(),
            }
        };
        Ok(Self { shape, block_size, steps })
    }

    /// Writes row `p` of `out` `[positions, H]` for every position `p` in use.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        step: &Step<'_, A>,
        pairs: SortedPairs<'_>,
        memory: &mut PrefillMemory<A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let DecodeShape { hidden_size, intermediate_size, top_k, .. } = self.shape;
        let positions = pairs.blocks.blocks * self.block_size;
        let BlockSlices { expert_ids, .. } = pairs.blocks;
        let blocks = pairs.blocks.of_pairs(step.tokens * top_k);
        let weights = step.experts.slices();
        let DecodeShape { experts, gating, .. } = &self.shape;
        weights.check_biases(gating, *experts, [2 * intermediate_size, hidden_size])?;
        let biases = weights.w13.biases.map(|biases| RowBiases { expert_ids, biases });
        let (positions_of, count) = (Some(pairs.positions), step.tokens * top_k);
        let mut out = out.range_mut(0, positions * hidden_size)?;
        match &self.steps {
            Steps::Plain { permute, first, activate, second } => {
                let (x, tokens) = (step.hidden_states, step.tokens);
                permute.launch(stream, tokens, x, pairs.positions, &mut memory.rows.slice_mut())?;
                let [w13, w2] = [weights.w13, weights.w2].map(|of| of.numbers.cast::<A>());
                let mut inner = memory.inner.slice_mut();
                let mut inner = inner.range_mut(0, positions * intermediate_size)?;
                match activate {
                    None => first.launch(stream, blocks, memory.rows.slice(), w13, &mut inner)?,
                    Some(activate) => {
                        let mut sums = memory.sums.slice_mut();
                        let mut sums = sums.range_mut(0, 2 * positions * intermediate_size)?;
                        first.launch(stream, blocks, memory.rows.slice(), w13, &mut sums)?;
                        let rows = sums.as_slice();
                        let sums = GateUp { rows, pairs: count, positions: positions_of, biases };
                        activate.launch(stream, sums, &mut inner)?;
                    }
                }
                second.launch(stream, blocks, inner.as_slice(), w2, &mut out)
            }
            Steps::Fp8 { quantize, first, activate, second, stored } => {
                let layout = ScaleLayout::ByGroup { rows: positions };
                let input = InputRows {
                    values: step.hidden_states,
                    rows: step.tokens,
                    positions: Some(pairs.positions),
                };
                let bounds = ScaleBounds::HIDDEN.or_given(weights.w13.input_scale);
                quantize.launch(stream, input, &mut memory.codes.quantized(layout, bounds))?;
                let [w13, w2] = [weights.w13, weights.w2].map(|of: WeightSlices<'_>| Fp8Operand {
                    numbers: of.numbers,
                    scales: of.scales,
                });
                let mut sums = memory.gate_up.slice_mut();
                let mut sums = sums.range_mut(0, positions * stored)?;
                first.launch(stream, blocks, memory.codes.operand(), w13, &mut sums)?;
                let bounds = ScaleBounds::ACTIVATED.or_given(weights.w2.input_scale);
                let inner = &mut memory.inner_codes.quantized(layout, bounds);
                let rows = sums.as_slice();
                let sums = GateUp { rows, pairs: count, positions: positions_of, biases };
                activate.launch(stream, sums, inner)?;
                second.launch(stream, blocks, memory.inner_codes.operand(), w2, &mut out)
            }
        }
    }
}

/// The same function of gates and then ups, as weights on a GPU have them.
fn of_halves(activation: Activation) -> Activation {
    match activation {
        Activation::SwigluOai { alpha, limit, .. } => {
            Activation::SwigluOai { alpha, limit, layout: GateLayout::Halves }
        }
        other => other,
    }
}

/// What shares a scale of the rows that FP8 weights of `layout` meet.
fn granularity(layout: &StackLayout) -> Granularity {
    let scale_columns = layout.scale_block.map_or(0, |[_, columns]| columns);
    Granularity::under(scale_columns, layout.columns)
}

/// What the steps leave for each other; of 16-bit and of FP8 experts only one part is in use.
#[derive(Debug)]
pub(super) struct PrefillMemory<A: HalfElement> {
    rows: DeviceBuffer<A>,
    /// Gate and up, where the first product does not make one of them.
    sums: DeviceBuffer<A>,
    codes: Codes,
    gate_up: DeviceBuffer<f32>,
    inner: DeviceBuffer<A>,
    inner_codes: Codes,
}

/// FP8 rows by position with their scales, `[groups, positions]`.
#[derive(Debug)]
struct Codes {
    codes: DeviceBuffer<u8>,
    scales: DeviceBuffer<f32>,
}

impl Codes {
    /// Zeros: rows that pad a block are multiplied like the others.
    fn new(context: &Context, positions: usize, layout: &StackLayout) -> Result<Self, MoeError> {
        let positions = if layout.scale_block.is_some() { positions } else { 0 };
        let groups = granularity(layout).groups(layout.columns);
        Ok(Self {
            codes: DeviceBuffer::zeroed(context, positions * layout.columns)?,
            scales: DeviceBuffer::zeroed(context, positions * groups)?,
        })
    }

    fn quantized(&mut self, layout: ScaleLayout, bounds: ScaleBounds) -> QuantizedRows<'_> {
        let (codes, scales) = (self.codes.slice_mut(), self.scales.slice_mut());
        QuantizedRows { codes, scales, layout, bounds }
    }

    fn operand(&self) -> Fp8Operand<'_> {
        Fp8Operand { numbers: self.codes.slice(), scales: self.scales.slice() }
    }
}

impl<A: HalfElement> PrefillMemory<A> {
    pub(super) fn new(
        context: &Context,
        shape: &ExpertsShape,
        positions: usize,
    ) -> Result<Self, MoeError> {
        let layout = |product| shape.stack_layout(product).ok_or_else(|| shape.without_kernels());
        let (first, second) = (layout(GpuProduct::GateUp)?, layout(GpuProduct::Down)?);
        // Tiles of a fixed height store both gates and ups where others need not.
        let form = shape.prefill_form(GpuProduct::GateUp, GemmFamily::Prefill);
        let [plain, scaled] = match first.scale_block {
            None => [positions, 0],
            Some(_) => [0, positions],
        };
        Ok(Self {
            rows: DeviceBuffer::zeroed(context, plain * first.columns)?,
            sums: DeviceBuffer::zeroed(
                context,
                if form.parts() == 1 { plain * first.rows } else { 0 },
            )?,
            codes: Codes::new(context, positions, &first)?,
            gate_up: DeviceBuffer::zeroed(context, scaled * first.rows / form.parts())?,
            inner: DeviceBuffer::zeroed(context, plain * second.columns)?,
            inner_codes: Codes::new(context, positions, &second)?,
        })
    }
}
