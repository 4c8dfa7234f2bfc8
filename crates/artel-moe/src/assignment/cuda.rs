//! The aligned form on the GPU: a stable counting sort. Nothing depends on the order in which blocks
//! of a launch run.
//!
//! Few pairs take two launches, each of which looks at all pairs for every run (`by_runs`). Many
//! take three, which look at all runs for each chunk of pairs (`by_chunks`).

use artel_device::cuda::{Arguments, DeviceSlice, DeviceSliceMut, Kernels, Stream};

use super::by_chunks::cuda::ByChunks;
use super::by_runs::cuda::{ByRuns, PAIRS_MAX};
use super::{AlignOptions, LocalExperts, NonLocalExperts, PaddedLength};
use crate::MoeError;

/// Most pairs that are sorted run by run.
pub const FEW_PAIRS_MAX: usize = PAIRS_MAX;

/// Largest block of the aligned form on a GPU.
pub const BLOCK_SIZE_MAX: usize = 512;

/// Results of one launch. `sorted_token_ids` and `expert_ids` are written whole, the part that is
/// not in use with the sentinel and -1.
#[derive(Debug)]
pub struct AlignedSlices<'a> {
    /// As long as [`Align::sorted_len`] says.
    pub sorted_token_ids: DeviceSliceMut<'a, i32>,
    /// One for each block of `sorted_token_ids`, the last block perhaps being cut short.
    pub expert_ids: DeviceSliceMut<'a, i32>,
    /// One number.
    pub num_tokens_post_padded: DeviceSliceMut<'a, i32>,
    /// `[T * K]`: where each pair stands in `sorted_token_ids`; -1 for dropped pairs.
    pub pair_positions: DeviceSliceMut<'a, i32>,
}

/// Where ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// Plain ids.
    Plain,
    /// The high halves of packed pairs.
    Packed,
}

impl IdForm {
    /// As a constant of kernels.
    pub(crate) fn packed(self) -> i32 {
        i32::from(self == Self::Packed)
    }
}

/// The aligned form for one set of options, any number of pairs.
#[derive(Debug, Clone)]
pub struct Align {
    few: ByRuns,
    many: ByChunks,
    num_experts: usize,
    num_runs: usize,
    block_size: usize,
    padded_length: PaddedLength,
    is_mapped: bool,
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) num_runs: usize,
    pub(super) block_size: i32,
    /// Whether ids are the high halves of packed pairs.
    pub(super) packed: i32,
    /// Whether runs are the local ids of an expert map.
    pub(super) mapped: i32,
    /// Whether blocks are named by an expert map.
    pub(super) named: i32,
}

/// One batch, its lengths checked.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) stream: &'a Stream,
    pub(super) ids: DeviceSlice<'a, i32>,
    pub(super) expert_map: Option<DeviceSlice<'a, i32>>,
    pub(super) workspace: &'a DeviceSliceMut<'a, i32>,
    pub(super) out: &'a AlignedSlices<'a>,
    pub(super) pairs: usize,
    pub(super) num_experts: usize,
    pub(super) num_runs: usize,
    pub(super) num_blocks: usize,
    pub(super) sorted_len: usize,
}

impl Align {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when one is missing and cannot be made, [`MoeError::Config`] for a block
    /// size outside 1 to [`BLOCK_SIZE_MAX`], [`MoeError::Shape`] for an expert map of another length.
    pub fn load(
        kernels: &mut Kernels,
        options: &AlignOptions<'_>,
        ids: IdForm,
    ) -> Result<Self, MoeError> {
        options.check()?;
        let AlignOptions { num_experts, block_size, padded_length, .. } = *options;
        if block_size > BLOCK_SIZE_MAX {
            let allowed = format!("1 to {BLOCK_SIZE_MAX} on a GPU");
            return Err(MoeError::config("block_size", block_size, allowed));
        }
        let (num_runs, mapped, named) = match options.experts {
            LocalExperts::All => (num_experts, 0, 0),
            LocalExperts::Mapped(map, NonLocalExperts::Drop) => (map.num_local(), 1, 0),
            LocalExperts::Mapped(_, NonLocalExperts::ZeroBlocks) => (num_experts, 0, 1),
        };
        let packed = ids.packed();
        let form = Form { num_runs, block_size: block_size as i32, packed, mapped, named };
        Ok(Self {
            few: ByRuns::load(kernels, &form)?,
            many: ByChunks::load(kernels, &form)?,
            num_experts,
            num_runs,
            block_size,
            padded_length,
            is_mapped: mapped + named > 0,
        })
    }

    /// Length of `sorted_token_ids` for `pairs` pairs.
    ///
    /// # Errors
    /// [`MoeError::Config`] for lengths beyond what kernels count.
    pub fn sorted_len(&self, pairs: usize) -> Result<usize, MoeError> {
        let options = AlignOptions {
            padded_length: self.padded_length,
            ..AlignOptions::new(self.num_experts, self.block_size)
        };
        let sorted_len = options.sorted_len(pairs)?;
        // Kernels count rows and numbers of working memory in 32 bits, a tile beyond the last.
        let allowed = i32::MAX as usize / 2;
        if sorted_len > allowed || self.many.workspace_len(pairs) > allowed {
            let allowed = format!("at most {allowed} with its counts (use smaller batches)");
            return Err(MoeError::config("rows of an assignment", sorted_len, allowed));
        }
        Ok(sorted_len)
    }

    /// Numbers of working memory that `pairs` pairs need.
    pub fn workspace_len(&self, pairs: usize) -> usize {
        if pairs <= FEW_PAIRS_MAX {
            self.few.workspace_len()
        } else {
            self.many.workspace_len(pairs)
        }
    }

    /// Sorts the pairs of `ids`. `expert_map` is read when the options map experts.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice is too short or the launch fails, [`MoeError::Config`] as
    /// [`sorted_len`](Self::sorted_len).
    ///
    /// # Panics
    /// When the options map experts and there is no map, or the other way about.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: DeviceSlice<'_, i32>,
        expert_map: Option<DeviceSlice<'_, i32>>,
        workspace: &mut DeviceSliceMut<'_, i32>,
        out: &mut AlignedSlices<'_>,
    ) -> Result<(), MoeError> {
        assert_eq!(expert_map.is_some(), self.is_mapped, "this is a bug: a map and its use");
        if let Some(map) = expert_map {
            map.expect_len("expert_map", self.num_experts)?;
        }
        let (pairs, sorted_len) = (ids.len(), self.sorted_len(ids.len())?);
        let num_blocks = sorted_len.div_ceil(self.block_size);
        out.sorted_token_ids.expect_len("sorted_token_ids", sorted_len)?;
        out.expert_ids.expect_len("expert_ids", num_blocks)?;
        out.num_tokens_post_padded.expect_len("num_tokens_post_padded", 1)?;
        out.pair_positions.expect_len("pair_positions", pairs)?;
        workspace.expect_len("workspace of the assignment", self.workspace_len(pairs))?;
        let Self { num_experts, num_runs, .. } = *self;
        let step = Step {
            stream,
            ids,
            expert_map,
            workspace,
            out,
            pairs,
            num_experts,
            num_runs,
            num_blocks,
            sorted_len,
        };
        if pairs <= FEW_PAIRS_MAX {
            // SAFETY: the lengths are checked above.
            unsafe { self.few.launch(&step) }
        } else {
            // SAFETY: as above.
            unsafe { self.many.launch(&step) }
        }
    }
}

impl Step<'_> {
    /// Appends the map, or nothing in its place.
    pub(super) fn expert_map(&self, arguments: Arguments) -> Arguments {
        match self.expert_map {
            None => arguments.no_slice(),
            Some(map) => arguments.slice(map),
        }
    }
}

impl AlignedSlices<'_> {
    /// Appends all results.
    pub(super) fn slices(&self, arguments: Arguments) -> Arguments {
        arguments
            .slice_mut(&self.sorted_token_ids)
            .slice_mut(&self.expert_ids)
            .slice_mut(&self.num_tokens_post_padded)
            .slice_mut(&self.pair_positions)
    }
}

/// The names of these in kernels.
pub(super) const RESULTS: [&str; 4] =
    ["sorted_token_ids", "expert_ids", "num_tokens_post_padded", "pair_positions"];
