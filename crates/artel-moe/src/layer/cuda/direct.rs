//! Small batches: nothing is sorted. Quantise, both products, and the sum over `k` within the second.

use artel_device::cuda::{Context, DeviceBuffer, DeviceSliceMut, Kernels, Stream};

use super::Step;
use super::shape::{check, decode_shape, decode_tile, word_tile};
use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::config::MoeConfig;
use crate::grouped_gemm::decode::DecodeShape;
use crate::grouped_gemm::decode::cuda::{
    DecodeWorkspace, DirectExperts, DirectForm, DirectOut, DirectStep,
};
use crate::grouped_gemm::decode::streamed::StreamedShape;
use crate::grouped_gemm::decode::streamed::cuda::{StreamedExperts, StreamedWorkspace};
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::grouped_gemm::words::WordShape;
use crate::grouped_gemm::words::cuda::{DirectSums, RowForm, WordExperts, WordForm, WordWorkspace};
use crate::plan::gpu::{ExpertsShape, GemmFamily, Way};
use crate::quant::Format;

/// The launches of one way.
#[derive(Debug, Clone)]
pub(super) struct DirectChain<A: HalfElement> {
    sizes: ExpertsShape,
    experts: Experts<A>,
}

/// Both products.
#[derive(Debug, Clone)]
enum Experts<A: HalfElement> {
    /// On weights as they are stored.
    Numbers { shape: DecodeShape, experts: DirectExperts<A> },
    /// On weights in words.
    Words { shape: WordShape, experts: WordExperts<A> },
    /// Both products in one launch.
    Streamed { shape: StreamedShape, experts: StreamedExperts<A> },
}

impl<A: HalfElement> DirectChain<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        (config, format): (&MoeConfig, Format),
        way: Way,
        tokens_max: usize,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        let sizes = ExpertsShape::of(config, format);
        let tiles = [way.kernels.first.tile, way.kernels.second.tile];
        // The experts of one token differ, so its pairs have nothing to share.
        let shared = tokens_max > 1;
        let is_streamed = way.kernels.first.family == GemmFamily::Streamed;
        let experts = match sizes.word_shape() {
            words if is_streamed => {
                check(config)?;
                let shape = match words {
                    Some(shape) => shape.into(),
                    None => decode_shape(config, format)?.into(),
                };
                let experts = StreamedExperts::load(kernels, shape, tiles[0].columns, ids)?;
                Experts::Streamed { shape, experts }
            }
            Some(shape) => {
                check(config)?;
                let form = WordForm::Direct { shared, ids };
                let experts = WordExperts::load(kernels, shape, form, tiles.map(word_tile))?;
                Experts::Words { shape, experts }
            }
            None => {
                let shape = decode_shape(config, format)?;
                let form = DirectForm { ids, shared, sum: true };
                let tiles = tiles.map(decode_tile);
                let experts = DirectExperts::load(kernels, shape, form, tiles)?;
                Experts::Numbers { shape, experts }
            }
        };
        Ok(Self { sizes, experts })
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
            routing: step.routing,
            tokens: step.tokens,
            experts: step.experts.slices(),
        };
        match (&self.experts, &mut memory.workspace) {
            (Experts::Numbers { experts, .. }, Workspace::Numbers(workspace, rows)) => {
                let mut out = DirectOut::Sum { rows: rows.slice_mut(), out: out.reborrow() };
                experts.launch(stream, &direct, workspace, &mut out)
            }
            (Experts::Words { experts, .. }, Workspace::Words(workspace, rows)) => {
                let mut out = DirectSums { rows: rows.slice_mut(), out: out.reborrow() };
                experts.launch_direct(stream, &direct, workspace, &mut out)
            }
            (Experts::Streamed { experts, .. }, Workspace::Streamed(workspace)) => {
                experts.launch(stream, &direct, workspace, out)
            }
            _ => panic!("this is a bug: the memory of another format"),
        }
    }
}

/// What the launches leave for each other.
#[derive(Debug)]
pub(super) struct DirectMemory<A: HalfElement> {
    workspace: Workspace<A>,
    tokens: usize,
    workspace_rows: usize,
}

/// Memory between the products, and rows of pairs.
#[derive(Debug)]
enum Workspace<A: HalfElement> {
    Numbers(Box<DecodeWorkspace>, DeviceBuffer<A>),
    Words(Box<WordWorkspace>, DeviceBuffer<A>),
    Streamed(Box<StreamedWorkspace<A>>),
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
        let rows = match &chain.experts {
            Experts::Numbers { experts, .. } => experts.workspace_rows(tokens),
            Experts::Words { experts, .. } => experts.rows(tokens)[1],
            Experts::Streamed { .. } => tokens,
        };
        let workspace_rows = rows.max(known_rows);
        if (tokens, workspace_rows) != (known_tokens, known_rows) {
            let ExpertsShape { top_k, hidden_size, .. } = chain.sizes;
            let rows = || context.buffer(tokens * top_k * hidden_size);
            let workspace = match &chain.experts {
                Experts::Numbers { shape, .. } => {
                    let workspace = DecodeWorkspace::new(context, shape, tokens, workspace_rows)?;
                    Workspace::Numbers(Box::new(workspace), rows()?)
                }
                Experts::Words { shape, .. } => {
                    let workspace = WordWorkspace::new(
                        context,
                        shape,
                        RowForm::Parts,
                        [tokens, workspace_rows],
                    )?;
                    Workspace::Words(Box::new(workspace), rows()?)
                }
                Experts::Streamed { shape, .. } => {
                    let workspace = StreamedWorkspace::new(context, *shape, tokens)?;
                    Workspace::Streamed(Box::new(workspace))
                }
            };
            *memory = Some(Self { workspace, tokens, workspace_rows });
        }
        Ok(())
    }
}
