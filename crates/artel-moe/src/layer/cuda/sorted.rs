//! Larger batches: pairs are sorted by expert, so that each weight is read once for all its rows.

mod gemm;
mod prefill;

use artel_device::cuda::{Context, DeviceBuffer, DeviceSlice, DeviceSliceMut, Kernels, Stream};
use prefill::{PrefillChain, PrefillMemory, SortedPairs};

use super::shape::{check, decode_shape, decode_tile, word_tile};
use super::{Step, expert_map};
use crate::MoeError;
use crate::assignment::cuda::{Align, AlignedSlices, IdForm};
use crate::assignment::{AlignOptions, LocalExperts, NonLocalExperts, PaddedLength};
use crate::combine::cuda::{
    Combine, CombineForm, CombineOperands, RowBiases, RowOrder, WeightForm,
};
use crate::config::{MoeConfig, Parallelism};
use crate::grouped_gemm::decode::cuda::{
    AlignedExperts, AlignedStep, BlockSlices, DecodeWorkspace,
};
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::grouped_gemm::prefill::warpgroup::words::WordsTile;
use crate::grouped_gemm::words::WordCode;
use crate::grouped_gemm::words::cuda::{RowForm, WordExperts, WordForm, WordWorkspace};
use crate::grouped_gemm::words::integers::cuda::IntegerExperts;
use crate::grouped_gemm::words::warpgroup::cuda::WarpgroupExperts;
use crate::plan::gpu::{ExpertsShape, GemmFamily, GpuPath, GpuProduct, Tile, Way};
use crate::quant::Format;

/// The launches of one way: sort, both products, combine.
#[derive(Debug, Clone)]
pub(super) struct SortedChain<A: HalfElement> {
    sizes: ExpertsShape,
    block_size: usize,
    expert_map: Option<Vec<i32>>,
    align: Align,
    products: Products<A>,
    combine: Combine<A>,
}

/// Both products over sorted pairs.
#[derive(Debug, Clone)]
enum Products<A: HalfElement> {
    /// Few rows an expert: rows are gathered by the first product.
    Decode(Box<AlignedExperts<A>>),
    /// Many rows an expert: rows are brought into order first.
    Prefill(Box<PrefillChain<A>>),
    /// Weights in words: rows are brought into order when they are split.
    Words(Box<WordExperts<A>>),
    /// The same where an expert has many rows.
    Warpgroup(Box<WarpgroupExperts<A>>),
    /// Many rows an expert, of integers, which are brought into order likewise.
    Integers(Box<IntegerExperts<A>>),
}

impl<A: HalfElement> Products<A> {
    fn load(
        kernels: &mut Kernels,
        (config, format): (&MoeConfig, Format),
        way: Way,
        block_size: usize,
    ) -> Result<Self, MoeError> {
        let sizes = ExpertsShape::of(config, format);
        let tiles = [way.kernels.first, way.kernels.second];
        Ok(match (tiles.map(|kernel| kernel.family), sizes.word_shape()) {
            ([GemmFamily::Warpgroup, GemmFamily::Warpgroup], Some(shape))
                if shape.formats[0].code != WordCode::Int8Rows =>
            {
                let tile = |of: usize, parts| {
                    let Tile { rows, columns, .. } = tiles[of].tile;
                    WordsTile { rows, weights: parts * columns }
                };
                let experts = WarpgroupExperts::load(kernels, shape, [tile(0, 2), tile(1, 1)])?;
                Products::Warpgroup(Box::new(experts))
            }
            ([GemmFamily::Warpgroup, GemmFamily::Warpgroup], Some(shape)) => {
                let layout =
                    |product| sizes.stack_layout(product).ok_or_else(|| sizes.without_kernels());
                let [w13, w2] = [layout(GpuProduct::GateUp)?, layout(GpuProduct::Down)?];
                let experts = IntegerExperts::load(
                    kernels,
                    shape,
                    [&w13, &w2],
                    tiles.map(|kernel| kernel.tile.rows),
                )?;
                Products::Integers(Box::new(experts))
            }
            ([first, second], Some(shape)) if first == second => {
                let tiles = tiles.map(|kernel| word_tile(kernel.tile));
                let form = match first {
                    GemmFamily::Decode => WordForm::Aligned,
                    GemmFamily::Prefill => WordForm::Widened,
                    _ => return Err(sizes.without_kernels()),
                };
                let experts = WordExperts::load(kernels, shape, form, tiles)?;
                Products::Words(Box::new(experts))
            }
            ([GemmFamily::Decode, GemmFamily::Decode], None) => {
                let tiles = tiles.map(|kernel| decode_tile(kernel.tile));
                let shape = decode_shape(config, format)?;
                Products::Decode(Box::new(AlignedExperts::load(kernels, shape, tiles)?))
            }
            (
                [first @ (GemmFamily::Prefill | GemmFamily::Warpgroup | GemmFamily::Long), second],
                None,
            ) if first == second => {
                Products::Prefill(Box::new(PrefillChain::load(kernels, &sizes, way, block_size)?))
            }
            _ => return Err(MoeError::config("kernels of a way", way, "of one family")),
        })
    }
}

impl<A: HalfElement> SortedChain<A> {
    pub(super) fn load(
        kernels: &mut Kernels,
        (config, format): (&MoeConfig, Format),
        way: Way,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        let GpuPath::Aligned { block_size } = way.path else {
            return Err(MoeError::config("path", way.path, "an aligned one"));
        };
        check(config)?;
        let sizes = ExpertsShape::of(config, format);
        let experts = match config.parallelism() {
            Parallelism::Expert(map) => LocalExperts::Mapped(map, NonLocalExperts::Drop),
            Parallelism::Single | Parallelism::Tensor { .. } => LocalExperts::All,
        };
        let options = AlignOptions {
            experts,
            padded_length: PaddedLength::WholeBlocks,
            ..AlignOptions::new(config.shape().num_experts, block_size)
        };
        let products = Products::load(kernels, (config, format), way, block_size)?;
        let form = CombineForm {
            top_k: sizes.top_k,
            hidden_size: sizes.hidden_size,
            order: RowOrder::Sorted,
            weights: match ids {
                IdForm::Plain => WeightForm::Routed,
                IdForm::Packed => WeightForm::Packed,
            },
            identity: false,
            biased: sizes.gating.biases.then_some(block_size),
        };
        Ok(Self {
            sizes,
            block_size,
            expert_map: expert_map(config).map(<[i32]>::to_vec),
            align: Align::load(kernels, &options, ids)?,
            products,
            combine: Combine::load(kernels, form)?,
        })
    }

    pub(super) fn launch(
        &self,
        stream: &Stream,
        step: &Step<'_, A>,
        memory: &mut SortedMemory<A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        self.launch_pairs(stream, step, memory)?;
        let operands = CombineOperands {
            rows: memory.rows.slice(),
            selectors: memory.pair_positions.slice(),
            num_experts: self.sizes.local_experts,
            weights: step.routing.pair_weights(),
            identity: None,
            biases: step
                .experts
                .slices()
                .w2
                .biases
                .map(|biases| RowBiases { expert_ids: memory.expert_ids.slice(), biases }),
        };
        self.combine.launch(stream, step.tokens, &operands, out)
    }

    /// Whether hidden states are read as [`CodedRows`](crate::grouped_gemm::decode::cuda::CodedRows).
    pub(super) fn reads_codes(&self) -> bool {
        matches!(&self.products, Products::Decode(experts) if experts.reads_codes())
    }

    /// Whether rows of pairs are all that their sum needs.
    pub(super) fn leaves_pairs(&self) -> bool {
        !self.sizes.gating.biases
    }

    /// Leaves the rows of all pairs at their positions.
    pub(super) fn launch_pairs(
        &self,
        stream: &Stream,
        step: &Step<'_, A>,
        memory: &mut SortedMemory<A>,
    ) -> Result<(), MoeError> {
        let blocks = self.sort(stream, step, memory)?;
        let sorted = BlockSlices {
            sorted_token_ids: memory.sorted_token_ids.slice(),
            expert_ids: memory.expert_ids.slice(),
            num_tokens_post_padded: memory.num_tokens_post_padded.slice(),
            blocks,
        };
        match &self.products {
            Products::Decode(experts) => {
                let workspace = memory.decode.as_mut().expect("this is a bug: no memory");
                let step = aligned_step(step, sorted);
                experts.launch(stream, &step, workspace, &mut memory.rows.slice_mut())?;
            }
            Products::Words(experts) => {
                let words = match experts.form().rows() {
                    RowForm::Parts => &mut memory.words,
                    RowForm::Halves => &mut memory.halves,
                };
                let workspace = words.as_mut().expect("this is a bug: no memory");
                let (step, rows) = (aligned_step(step, sorted), &mut memory.rows.slice_mut());
                experts.launch_sorted(stream, &step, workspace, rows)?;
            }
            Products::Warpgroup(experts) => {
                let workspace = memory.halves.as_mut().expect("this is a bug: no memory");
                let (step, rows) = (aligned_step(step, sorted), &mut memory.rows.slice_mut());
                experts.launch(stream, &step, workspace, rows)?;
            }
            Products::Integers(experts) => {
                let workspace = memory.words.as_mut().expect("this is a bug: no memory");
                let (step, rows) = (aligned_step(step, sorted), &mut memory.rows.slice_mut());
                experts.launch(stream, &step, workspace, rows)?;
            }
            Products::Prefill(products) => {
                let prefill = memory.prefill.as_mut().expect("this is a bug: no memory");
                let positions = memory.pair_positions.slice();
                let pairs = SortedPairs { blocks: sorted, positions };
                products.launch(stream, step, pairs, prefill, &mut memory.rows.slice_mut())?;
            }
        }
        Ok(())
    }

    /// Sorts the pairs; the number of blocks that there can be.
    fn sort(
        &self,
        stream: &Stream,
        step: &Step<'_, A>,
        memory: &mut SortedMemory<A>,
    ) -> Result<usize, MoeError> {
        let pairs = step.tokens * self.sizes.top_k;
        let mut sorted = AlignedSlices {
            sorted_token_ids: memory.sorted_token_ids.slice_mut(),
            expert_ids: memory.expert_ids.slice_mut(),
            num_tokens_post_padded: memory.num_tokens_post_padded.slice_mut(),
            pair_positions: memory.pair_positions.slice_mut(),
        };
        let map: Option<DeviceSlice<'_, i32>> = memory.expert_map.as_ref().map(DeviceBuffer::slice);
        let workspace = &mut memory.align.slice_mut();
        let ids = step.routing.numbers().range(0, pairs)?;
        self.align.launch(stream, ids, map, workspace, &mut sorted)?;
        Ok(self.align.sorted_len(pairs)?.div_ceil(self.block_size))
    }
}

/// One step of the kernels that read blocks of pairs.
fn aligned_step<'a, A: HalfElement>(
    step: &Step<'a, A>,
    blocks: BlockSlices<'a>,
) -> AlignedStep<'a, A> {
    let Step { hidden_states, codes, tokens, .. } = *step;
    AlignedStep { hidden_states, codes, tokens, blocks, experts: step.experts.slices() }
}

/// What the launches leave for each other: enough for every sorted way of a plan.
#[derive(Debug)]
pub(super) struct SortedMemory<A: HalfElement> {
    expert_map: Option<DeviceBuffer<i32>>,
    sorted_token_ids: DeviceBuffer<i32>,
    expert_ids: DeviceBuffer<i32>,
    num_tokens_post_padded: DeviceBuffer<i32>,
    pair_positions: DeviceBuffer<i32>,
    align: DeviceBuffer<i32>,
    rows: DeviceBuffer<A>,
    decode: Option<DecodeWorkspace>,
    words: Option<WordWorkspace>,
    halves: Option<WordWorkspace>,
    prefill: Option<PrefillMemory<A>>,
    sizes: Sizes,
}

/// The largest of each that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sizes {
    tokens: usize,
    positions: usize,
    blocks: usize,
    align: usize,
    decode: Option<[usize; 2]>,
    words: Option<usize>,
    halves: Option<usize>,
    prefill: Option<usize>,
}

impl<A: HalfElement> SortedMemory<A> {
    /// Rows of pairs, and where those of each token are.
    pub(super) fn pairs(&self) -> (DeviceSlice<'_, A>, DeviceSlice<'_, i32>) {
        (self.rows.slice(), self.pair_positions.slice())
    }

    /// Makes room for what `chain` needs for `tokens` tokens beside what is there.
    pub(super) fn grow(
        memory: &mut Option<Self>,
        context: &Context,
        chain: &SortedChain<A>,
        tokens: usize,
    ) -> Result<(), MoeError> {
        let known = memory.as_ref().map_or(Sizes::default(), |memory| memory.sizes);
        let sizes = known.with(chain, tokens)?;
        if sizes == known {
            return Ok(());
        }
        // What is there goes first: both together might not fit.
        drop(memory.take());
        let ExpertsShape { top_k, hidden_size, .. } = chain.sizes;
        let map = chain.expert_map.as_deref();
        let decode =
            sizes.decode.zip(chain.sizes.decode_shape()).map(|([tokens, positions], shape)| {
                DecodeWorkspace::new(context, &shape, tokens, positions)
            });
        let words = |rows: Option<usize>, form| {
            let words = rows.zip(chain.sizes.word_shape());
            words.map(|(rows, shape)| WordWorkspace::new(context, &shape, form, [rows; 2]))
        };
        let (parts, halves) =
            (words(sizes.words, RowForm::Parts), words(sizes.halves, RowForm::Halves));
        let prefill =
            sizes.prefill.map(|positions| PrefillMemory::new(context, &chain.sizes, positions));
        *memory = Some(Self {
            expert_map: map.map(|map| DeviceBuffer::from_host(context, map)).transpose()?,
            sorted_token_ids: context.buffer(sizes.positions)?,
            expert_ids: context.buffer(sizes.blocks)?,
            num_tokens_post_padded: context.buffer(1)?,
            pair_positions: context.buffer(sizes.tokens * top_k)?,
            align: context.buffer(sizes.align)?,
            // Zeros where nothing is written: positions that pad a block are read with the others.
            rows: DeviceBuffer::zeroed(context, sizes.positions * hidden_size)?,
            decode: decode.transpose()?,
            words: parts.transpose()?,
            halves: halves.transpose()?,
            prefill: prefill.transpose()?,
            sizes,
        });
        Ok(())
    }
}

impl Sizes {
    fn with<A: HalfElement>(self, chain: &SortedChain<A>, tokens: usize) -> Result<Self, MoeError> {
        let pairs = tokens * chain.sizes.top_k;
        let positions = chain.align.sorted_len(pairs)?;
        let Self { mut decode, mut prefill, mut words, mut halves, .. } = self;
        match chain.products {
            Products::Words(ref experts) => {
                let rows = match experts.form().rows() {
                    RowForm::Parts => &mut words,
                    RowForm::Halves => &mut halves,
                };
                *rows = Some(positions.max(rows.unwrap_or_default()));
            }
            Products::Warpgroup(_) => {
                halves = Some(positions.max(halves.unwrap_or_default()));
            }
            Products::Integers(_) => {
                words = Some(positions.max(words.unwrap_or_default()));
            }
            Products::Decode(..) => {
                let [known_tokens, known_positions] = decode.unwrap_or_default();
                decode = Some([tokens.max(known_tokens), positions.max(known_positions)]);
            }
            Products::Prefill(_) => {
                prefill = Some(positions.max(prefill.unwrap_or_default()));
            }
        }
        Ok(Self {
            tokens: tokens.max(self.tokens),
            positions: positions.max(self.positions),
            blocks: positions.div_ceil(chain.block_size).max(self.blocks),
            align: chain.align.workspace_len(pairs).max(self.align),
            decode,
            words,
            halves,
            prefill,
        })
    }
}
