//! The steps that order rows, quantise, activate and combine them.

use anyhow::Result;
use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_moe::activation::Activation;
use artel_moe::activation::cuda::{ActivateQuantize, ActivationForm, GateUp};
use artel_moe::assignment::cuda::{Align, AlignedSlices, IdForm};
use artel_moe::assignment::{AlignOptions, Assignment, Workspace, cpu};
use artel_moe::combine::cuda::{
    Combine, CombineForm, CombineOperands, PairWeights, RowOrder, WeightForm,
};
use artel_moe::quant::activations::cuda::{
    InputRows, Placement, Quantize, QuantizedRows, ScaleLayout,
};
use artel_moe::quant::activations::{Granularity, ScaleBounds};
use half::bf16;

use super::Floor;
use super::cuda::{EXPERTS, HIDDEN, Report, TOP_K, noise, random_ids, times, upload};

/// Of one of two ranks.
const INTERMEDIATE: usize = 768;

/// Pairs of a block, for decoding and for long prompts.
const BLOCKS: [usize; 2] = [16, 128];

/// Every kernel that is measured.
pub(super) struct RowSteps {
    aligns: Vec<(&'static str, Align)>,
    quantize: Quantize<bf16>,
    quantize_sorted: Quantize<bf16>,
    activate: ActivateQuantize<bf16>,
    combine: Combine<bf16>,
}

impl RowSteps {
    pub(super) fn load(kernels: &mut Kernels) -> Result<Self> {
        let mut aligns = Vec::new();
        for (name, block) in ["align, blocks of 16", "align, blocks of 128"].into_iter().zip(BLOCKS)
        {
            let options = AlignOptions::new(EXPERTS, block);
            aligns.push((name, Align::load(kernels, &options, IdForm::Plain)?));
        }
        let groups = Granularity::Groups;
        let sorted = Placement::Sorted { top_k: TOP_K };
        let activation = ActivationForm {
            activation: Activation::Silu,
            intermediate_size: INTERMEDIATE,
            sorted: true,
            biased: None,
        };
        let combine = CombineForm {
            top_k: TOP_K,
            hidden_size: HIDDEN,
            order: RowOrder::Sorted,
            weights: WeightForm::Routed,
            identity: false,
            biased: None,
        };
        Ok(Self {
            aligns,
            quantize: Quantize::load(kernels, HIDDEN, groups, Placement::InPlace)?,
            quantize_sorted: Quantize::load(kernels, HIDDEN, groups, sorted)?,
            activate: ActivateQuantize::load(kernels, activation, groups)?,
            combine: Combine::load(kernels, combine)?,
        })
    }

    pub(super) fn measure(&self, stream: &Stream, report: &mut Report<'_>) -> Result<()> {
        for tokens in [1, 8, 64, 512, 4096, 8192] {
            self.align(stream, tokens, report)?;
            let sorted = Sorted::new(stream, tokens)?;
            self.quantize(stream, &sorted, report)?;
            self.activate(stream, &sorted, report)?;
            self.combine(stream, &sorted, report)?;
        }
        Ok(())
    }

    fn align(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let ids = upload(stream, &random_ids(tokens * TOP_K))?;
        for ((name, align), block) in self.aligns.iter().zip(BLOCKS) {
            let zeroed = |len| DeviceBuffer::<i32>::zeroed(stream.context(), len);
            let sorted_len = align.sorted_len(ids.len())?;
            let mut workspace = zeroed(align.workspace_len(ids.len()))?;
            let mut sorted_token_ids = zeroed(sorted_len)?;
            let mut expert_ids = zeroed(sorted_len.div_ceil(block))?;
            let mut num_tokens_post_padded = zeroed(1)?;
            let mut pair_positions = zeroed(ids.len())?;
            let times = times(stream, |stream, _| {
                let mut out = AlignedSlices {
                    sorted_token_ids: sorted_token_ids.slice_mut(),
                    expert_ids: expert_ids.slice_mut(),
                    num_tokens_post_padded: num_tokens_post_padded.slice_mut(),
                    pair_positions: pair_positions.slice_mut(),
                };
                align.launch(stream, ids.slice(), None, &mut workspace.slice_mut(), &mut out)
            })?;
            let numbers = 2 * ids.len() + sorted_len + sorted_len / block;
            report(name, tokens, Floor::bytes(4 * numbers), &times);
        }
        Ok(())
    }

    fn quantize(&self, stream: &Stream, sorted: &Sorted, report: &mut Report<'_>) -> Result<()> {
        let Sorted { tokens, rows, .. } = *sorted;
        let values = upload(stream, &numbers(tokens * HIDDEN))?;
        let mut codes = DeviceBuffer::<u8>::zeroed(stream.context(), rows * HIDDEN)?;
        let mut scales = DeviceBuffer::<f32>::zeroed(stream.context(), rows * HIDDEN / 128)?;
        let (here, apart) = (&self.quantize, &self.quantize_sorted);
        let positions = Some(sorted.positions.slice());
        for (name, quantize, positions, copies) in
            [("quantize", here, None, 1), ("quantize, sorted", apart, positions, TOP_K)]
        {
            let times = times(stream, |stream, _| {
                let input = InputRows { values: values.slice(), rows: tokens, positions };
                let mut out = QuantizedRows {
                    codes: codes.slice_mut(),
                    scales: scales.slice_mut(),
                    layout: ScaleLayout::ByRow,
                    bounds: ScaleBounds::HIDDEN,
                };
                quantize.launch(stream, input, &mut out)
            })?;
            let bytes_of_row = HIDDEN + HIDDEN / 32;
            let bytes = tokens * (2 * HIDDEN + copies * bytes_of_row);
            report(name, tokens, Floor::bytes(bytes), &times);
        }
        Ok(())
    }

    fn activate(&self, stream: &Stream, sorted: &Sorted, report: &mut Report<'_>) -> Result<()> {
        let Sorted { tokens, rows, .. } = *sorted;
        let input = upload(stream, &numbers(rows * 2 * INTERMEDIATE))?;
        let mut codes = DeviceBuffer::<u8>::zeroed(stream.context(), rows * INTERMEDIATE)?;
        let mut scales = DeviceBuffer::<f32>::zeroed(stream.context(), rows * INTERMEDIATE / 128)?;
        let times = times(stream, |stream, _| {
            let positions = Some(sorted.positions.slice());
            let (rows, pairs) = (input.slice(), tokens * TOP_K);
            let input = GateUp { rows, pairs, positions, biases: None };
            let mut out = QuantizedRows {
                codes: codes.slice_mut(),
                scales: scales.slice_mut(),
                layout: ScaleLayout::ByRow,
                bounds: ScaleBounds::ACTIVATED,
            };
            self.activate.launch(stream, input, &mut out)
        })?;
        let bytes_of_pair = 5 * INTERMEDIATE + INTERMEDIATE / 32;
        let floor = Floor::bytes(tokens * TOP_K * bytes_of_pair);
        report("silu and quantize, sorted", tokens, floor, &times);
        Ok(())
    }

    fn combine(&self, stream: &Stream, sorted: &Sorted, report: &mut Report<'_>) -> Result<()> {
        let Sorted { tokens, rows, .. } = *sorted;
        let rows = upload(stream, &numbers(rows * HIDDEN))?;
        let weights = upload(stream, &noise(tokens * TOP_K))?;
        let mut out = DeviceBuffer::<bf16>::zeroed(stream.context(), tokens * HIDDEN)?;
        let operands = CombineOperands {
            rows: rows.slice(),
            selectors: sorted.positions.slice(),
            num_experts: EXPERTS,
            weights: PairWeights::Routed(weights.slice()),
            identity: None,
            biases: None,
        };
        let times = times(stream, |stream, _| {
            self.combine.launch(stream, tokens, &operands, &mut out.slice_mut())
        })?;
        let floor = Floor::bytes(tokens * (TOP_K + 1) * HIDDEN * 2);
        report("combine, sorted", tokens, floor, &times);
        Ok(())
    }
}

/// Where an aligned assignment of random experts puts pairs.
struct Sorted {
    tokens: usize,
    rows: usize,
    positions: DeviceBuffer<i32>,
}

impl Sorted {
    fn new(stream: &Stream, tokens: usize) -> Result<Self> {
        let ids = random_ids(tokens * TOP_K);
        let block = if tokens <= 512 { BLOCKS[0] } else { BLOCKS[1] };
        let mut assignment = Assignment::default();
        let options = AlignOptions::new(EXPERTS, block);
        cpu::align(&ids, &options, &mut Workspace::default(), &mut assignment)?;
        let mut positions = vec![-1; ids.len()];
        for (position, &pair) in (0..).zip(&assignment.sorted_token_ids) {
            if let Some(of_pair) = positions.get_mut(pair as usize) {
                *of_pair = position;
            }
        }
        let rows = assignment.num_tokens_post_padded;
        Ok(Self { tokens, rows, positions: upload(stream, &positions)? })
    }
}

/// Random numbers, the same again after a prime number of them.
pub(super) fn numbers(count: usize) -> Vec<bf16> {
    let period: Vec<bf16> = noise(count.min(999_983)).into_iter().map(bf16::from_f32).collect();
    period.iter().copied().cycle().take(count).collect()
}
