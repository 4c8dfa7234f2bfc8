//! Small batches: nothing is sorted. Quantise, both products, and the sum over `k` within the second.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSliceMut, Kernels, Stream};

use super::Step;
use super::shape::{decode_shape, decode_tile};
use crate::MoeError;
use crate::config::MoeConfig;
use crate::grouped_gemm::decode::DecodeShape;
use crate::grouped_gemm::decode::cuda::{
    DecodeWorkspace, DirectExperts, DirectForm, DirectOut, DirectStep,
};
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::plan::gpu::Way;
use crate::quant::Format;

/// The launches of one way.
#[derive(Debug, Clone)]
pub(super) struct DirectChain<A: HalfElement> {
    shape: DecodeShape,
    experts: DirectExperts<A>,
}

impl<A: HalfElement> DirectChain<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        config: &MoeConfig,
        format: Format,
        way: Way,
        tokens_max: usize,
    ) -> Result<Self, MoeError> {
        let shape = decode_shape(config, format)?;
        let tiles = [way.kernels.first.tile, way.kernels.second.tile].map(decode_tile);
        // The experts of one token differ, so its pairs have nothing to share.
        let form = DirectForm { packed: false, shared: tokens_max > 1, sum: true };
        Ok(Self { shape, experts: DirectExperts::load(kernels, shape, form, tiles)? })
    }

    pub(super) fn launch(
        &self,
        stream: &Stream,
        step: &Step<'_, A>,
        memory: &mut DirectMemory<A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let direct = DirectStep {
            hidden_states: step.hidden_states,
            ids: step.routing.ids,
            tokens: step.tokens,
            experts: step.experts.slices(),
        };
        let mut out = DirectOut::Sum {
            rows: memory.rows.slice_mut(),
            weights: step.routing.weights,
            out: out.reborrow(),
        };
        self.experts.launch(stream, &direct, &mut memory.workspace, &mut out)
    }
}

/// What the launches leave for each other.
#[derive(Debug)]
pub(super) struct DirectMemory<A: HalfElement> {
    workspace: DecodeWorkspace,
    rows: DeviceBuffer<A>,
    tokens: usize,
    workspace_rows: usize,
}

impl<A: HalfElement> DirectMemory<A> {
    /// Makes room for what `chain` needs for `tokens` tokens beside what is there.
    pub(super) fn grow(
        memory: &mut Option<Self>,
        context: &Context,
        chain: &DirectChain<A>,
        tokens: usize,
    ) -> Result<(), MoeError> {
        let (known_tokens, known_rows) =
            memory.as_ref().map_or((0, 0), |memory| (memory.tokens, memory.workspace_rows));
        let tokens = tokens.max(known_tokens);
        let workspace_rows = chain.experts.workspace_rows(tokens).max(known_rows);
        if (tokens, workspace_rows) != (known_tokens, known_rows) {
            let DecodeShape { top_k, hidden_size, .. } = chain.shape;
            *memory = Some(Self {
                workspace: DecodeWorkspace::new(context, &chain.shape, tokens, workspace_rows)?,
                rows: context.buffer(tokens * top_k * hidden_size)?,
                tokens,
                workspace_rows,
            });
        }
        Ok(())
    }
}
