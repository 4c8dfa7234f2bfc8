//! What the kernel is made for, how its work is cut, and where everything lies in shared memory.

pub(super) use super::TOKENS_MAX;
use crate::quant::BLOCK;

/// Warps that multiply. Behind them one loads, some finish tasks, and some make codes.
pub(super) const WARPS: usize = 8;
pub(super) const FINISHERS: usize = 3;
pub(super) const CODERS: usize = 4;
pub(super) const FIRST_FINISHER: usize = WARPS + 1;
pub(super) const FIRST_CODER: usize = FIRST_FINISHER + FINISHERS;
pub(super) const THREADS: usize = 32 * (FIRST_CODER + CODERS);
/// Shared memory that a block of threads may have on Hopper.
const SHARED_BYTES_MAX: usize = 232_448;
/// Stages of the ring. A fourth one does not help: a single token takes 21.9 us instead of 20.9.
const STAGES: usize = 3;
/// Where each counter begins, in words of 4 bytes: tasks given out, blocks of threads that have all
/// of theirs, column tiles that are summed, finished parts of the first product for each expert, and
/// experts that have come to each column tile. All are 0 between launches.
pub(super) const TICKET: usize = 0;
pub(super) const FINISHED: usize = 32;
pub(super) const SUMMED: usize = 64;
pub(super) const ACTIVATED: usize = 96;
pub(super) const COLUMNS: usize = 256;
/// Most experts of a token, so that counters of all experts of a batch fit.
const TOP_K_MAX: usize = 16;
/// All counters there may be.
pub(super) const COUNTERS: usize = 4096;
/// Sums that warps leave for a finisher: what of, then four numbers a lane. So many lie in a ring.
pub(super) const SUM_BYTES: usize = 512;
pub(super) const SUM_HEAD_BYTES: usize = 128;
pub(super) const SUM_STAGE_BYTES: usize = SUM_HEAD_BYTES + WARPS * SUM_BYTES;
pub(super) const SUM_STAGES: usize = 4;
/// Most groups of 128 columns of one row that a warp keeps in registers.
const OWN_ROW_GROUPS: usize = 16;
/// What says what is in a stage.
pub(super) const NOTE_BYTES: usize = 32;

/// What a scale of the weights covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScaleForm {
    /// 128 rows and columns; activations have a scale for 128 columns.
    Blocks,
    /// A row; activations have one a row.
    Channels,
    /// Gate, up or the second matrix; activations have one a row.
    Matrices,
}

/// How one product is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// Input features.
    pub(super) columns: usize,
    /// Warps that share the input features of the same weight rows.
    pub(super) slices: usize,
}

impl Product {
    fn new(columns: usize) -> Self {
        let groups = columns / BLOCK;
        let slices = [8, 4, 2, 1].into_iter().find(|slices| groups.is_multiple_of(*slices));
        Self { columns, slices: slices.unwrap_or(1) }
    }

    /// Groups of 128 input features.
    pub(super) fn groups(&self) -> usize {
        self.columns / BLOCK
    }

    /// Groups of one warp.
    pub(super) fn own_groups(&self) -> usize {
        self.groups() / self.slices
    }

    /// Strips of 16 weight rows that a task has.
    pub(super) fn strips(&self) -> usize {
        WARPS / self.slices
    }

    /// Weight rows of a task.
    pub(super) fn task_rows(&self) -> usize {
        16 * self.strips()
    }

    /// Bytes from row to row of codes: two tokens that are read together lie in different banks.
    pub(super) fn code_stride(&self) -> usize {
        self.columns + 64
    }
}

/// What a kernel is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) experts: usize,
    pub(super) top_k: usize,
    /// The first product, of `H` columns.
    pub(super) first: Product,
    /// The second product, of `I` columns.
    pub(super) second: Product,
    pub(super) scales: ScaleForm,
    /// `bf16` or `f16`.
    pub(super) element: &'static str,
    /// Ids and weights lie in one word.
    pub(super) is_packed: bool,
}

/// Where everything lies in shared memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) stages: usize,
    pub(super) stage_bytes: usize,
    /// The ring of sums.
    pub(super) sums: usize,
    /// Codes of hidden states with their scales, in the last stage before it is used.
    pub(super) hidden_codes: CodePlaces,
    /// Codes of activations of two experts.
    pub(super) codes: CodePlaces,
    pub(super) codes_bytes: usize,
    /// First pair of each expert, then its place among the experts of the batch.
    pub(super) table: usize,
    /// The experts of the batch.
    pub(super) chosen: usize,
    /// Place of each pair's expert among them.
    pub(super) pair_places: usize,
    pub(super) notes: usize,
    /// Barriers of stages: filled, read, and noted.
    pub(super) full: usize,
    pub(super) empty: usize,
    pub(super) noted: usize,
    /// Barriers of sums and of codes: there, and read.
    pub(super) sums_full: usize,
    pub(super) sums_empty: usize,
    pub(super) codes_full: usize,
    pub(super) codes_empty: usize,
    pub(super) end: usize,
}

/// Codes of all tokens, their scales by group and by row.
#[derive(Debug, Clone, Copy)]
pub(super) struct CodePlaces {
    pub(super) codes: usize,
    pub(super) group_scales: usize,
    pub(super) row_scales: usize,
    pub(super) end: usize,
}

impl CodePlaces {
    fn new(codes: usize, product: &Product) -> Self {
        let group_scales = codes + TOKENS_MAX * product.code_stride();
        let row_scales = group_scales + 4 * TOKENS_MAX * product.groups();
        Self { codes, group_scales, row_scales, end: row_scales + 4 * TOKENS_MAX }
    }
}

impl Sizes {
    pub(super) fn new(
        [experts, top_k, hidden, inner]: [usize; 4],
        scales: ScaleForm,
        element: &'static str,
        is_packed: bool,
    ) -> Self {
        let (first, second) = (Product::new(hidden), Product::new(inner));
        Self { experts, top_k, first, second, scales, element, is_packed }
    }

    /// Whether the kernel can be made.
    pub(super) fn fits(&self) -> bool {
        let Self { first, second, .. } = self;
        let [hidden, inner] = [first.columns, second.columns];
        let narrow = |product: &Product| product.groups() <= 32 && product.own_groups() <= 8;
        // Scales are copied by sixteen bytes.
        let scales = match self.scales {
            ScaleForm::Matrices => self.experts.is_multiple_of(4),
            _ => self.scale_runs().iter().all(|run| (self.experts * run[1]).is_multiple_of(16)),
        };
        hidden.is_multiple_of(BLOCK)
            && inner.is_multiple_of(BLOCK)
            && [hidden, inner].iter().all(|&columns| columns > 0)
            && [first, second].into_iter().all(narrow)
            && second.groups() <= OWN_ROW_GROUPS
            && scales
            && self.top_k <= TOP_K_MAX
            && COLUMNS + hidden / 16 <= COUNTERS
            && self.places().end <= SHARED_BYTES_MAX
    }

    /// Pairs of the largest batch.
    pub(super) fn pairs_max(&self) -> usize {
        TOKENS_MAX * self.top_k
    }

    /// Tasks of one expert in the first and in the second product.
    pub(super) fn tasks(&self) -> [usize; 2] {
        let (inner, hidden) = (self.second.columns, self.first.columns);
        [2 * inner / self.first.task_rows(), hidden / self.second.task_rows()]
    }

    /// Bytes of scales that a task reads at once, and those of an expert, for both products.
    pub(super) fn scale_runs(&self) -> [[usize; 2]; 2] {
        let (inner, hidden) = (self.second.columns, self.first.columns);
        let [of_hidden, of_inner] = [hidden / BLOCK, inner / BLOCK];
        match self.scales {
            ScaleForm::Blocks => [
                [4 * of_hidden, 8 * of_inner * of_hidden],
                [4 * of_inner, 4 * of_hidden * of_inner],
            ],
            ScaleForm::Channels => {
                [[32 * self.first.strips(), 8 * inner], [64 * self.second.strips(), 4 * hidden]]
            }
            ScaleForm::Matrices => [[8, 8], [4, 4]],
        }
    }

    /// Bytes that a run of scales of each product takes in a stage: it begins within sixteen bytes.
    pub(super) fn scale_rooms(&self) -> [usize; 2] {
        self.scale_runs().map(|[run, _]| run.next_multiple_of(16) + 16)
    }

    /// Where the scales of a stage begin.
    pub(super) fn stage_scales(&self, product: &Product) -> usize {
        product.task_rows() * product.columns
    }

    pub(super) fn places(&self) -> Places {
        let stages = STAGES;
        let [first_room, second_room] = self.scale_rooms();
        let first_bytes = self.stage_scales(&self.first) + 2 * first_room;
        let second_bytes = self.stage_scales(&self.second) + second_room;
        let hidden_bytes = CodePlaces::new(0, &self.first).end;
        let stage_bytes = first_bytes.max(second_bytes).max(hidden_bytes).next_multiple_of(128);
        let sums = stages * stage_bytes;
        let codes = CodePlaces::new(sums + SUM_STAGES * SUM_STAGE_BYTES, &self.second);
        let codes_bytes = (codes.end - codes.codes).next_multiple_of(16);
        let table = codes.codes + 2 * codes_bytes;
        let chosen = table + 4 * self.experts;
        let pair_places = chosen + 4 * self.pairs_max();
        let notes = (pair_places + 4 * self.pairs_max()).next_multiple_of(16);
        let full = notes + NOTE_BYTES * stages;
        let empty = full + 8 * stages;
        let noted = empty + 8 * stages;
        let sums_full = noted + 8 * stages;
        let sums_empty = sums_full + 8 * SUM_STAGES;
        let codes_full = sums_empty + 8 * SUM_STAGES;
        let codes_empty = codes_full + 16;
        Places {
            stages,
            stage_bytes,
            sums,
            hidden_codes: CodePlaces::new((stages - 1) * stage_bytes, &self.first),
            codes,
            codes_bytes,
            table,
            chosen,
            pair_places,
            notes,
            full,
            empty,
            noted,
            sums_full,
            sums_empty,
            codes_full,
            codes_empty,
            end: codes_empty + 16,
        }
    }
}
