//! What the kernel is made for, how its work is cut, and where everything lies in shared memory.

pub(super) use super::TOKENS_MAX;
use crate::grouped_gemm::words::{WordCode, WordFormat};
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
/// Strips that a warp may have of a task of weights in words: tasks of one or two tokens are small, so
/// that all blocks of threads have as many.
pub(super) const WORD_STRIPS: [usize; 2] = [1, 2];
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
    /// A row; weights and activations are integers.
    Integers,
    /// Groups of columns of weights in words; activations keep sixteen bits.
    Words,
}

/// How one product is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// Input features.
    pub(super) columns: usize,
    /// How weights lie that are no codes of FP8.
    pub(super) format: Option<WordFormat>,
    /// Warps that share the input features of the same weight rows.
    pub(super) slices: usize,
    /// Strips of 16 weight rows that a warp has of a task.
    pub(super) own_strips: usize,
}

impl Product {
    fn new(columns: usize, format: Option<WordFormat>, own_strips: usize) -> Self {
        let product = Self { columns, format, slices: 1, own_strips };
        let groups = product.groups();
        let slices = [8, 4, 2, 1].into_iter().find(|slices| groups.is_multiple_of(*slices));
        Self { slices: slices.unwrap_or(1), ..product }
    }

    /// Groups of 128 input features; of words with those that fill the last step.
    pub(super) fn groups(&self) -> usize {
        self.format.map_or(self.columns, |format| format.padded(self.columns)) / BLOCK
    }

    /// Groups of one warp.
    pub(super) fn own_groups(&self) -> usize {
        self.groups() / self.slices
    }

    /// Strips of 16 weight rows that a task has.
    pub(super) fn strips(&self) -> usize {
        WARPS / self.slices * self.own_strips
    }

    /// Weight rows of a task.
    pub(super) fn task_rows(&self) -> usize {
        16 * self.strips()
    }

    /// Bytes of a weight row.
    pub(super) fn row_bytes(&self) -> usize {
        let of_words = |format: WordFormat| 4 * self.groups() * BLOCK / format.columns_per_word();
        self.format.map_or(self.columns, of_words)
    }

    /// Bytes of the weights of a task.
    pub(super) fn task_bytes(&self) -> usize {
        self.task_rows() * self.row_bytes()
    }

    /// Words of scales that a weight row has.
    pub(super) fn scale_words(&self) -> usize {
        self.format.map_or(0, |format| self.groups() * format.scale_words_per_plane())
    }

    /// Bytes from row to row of activations: rows that are read together lie in different banks.
    pub(super) fn code_stride(&self) -> usize {
        if self.format.is_some() { 2 * self.groups() * BLOCK + 16 } else { self.columns + 64 }
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
    /// Codes of hidden states with their scales, in the last stage before it is used; there are none for
    /// weights in words.
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
        let of_groups = if product.format.is_some() { 0 } else { product.groups() };
        let row_scales = group_scales + 4 * TOKENS_MAX * of_groups;
        Self { codes, group_scales, row_scales, end: row_scales + 4 * TOKENS_MAX }
    }
}

impl Sizes {
    pub(super) fn new(
        [experts, top_k, hidden, inner]: [usize; 4],
        (scales, formats): (ScaleForm, Option<[WordFormat; 2]>),
        own_strips: usize,
        (element, is_packed): (&'static str, bool),
    ) -> Self {
        let product = |columns, product: usize| {
            Product::new(columns, formats.map(|formats| formats[product]), own_strips)
        };
        let (first, second) = (product(hidden, 0), product(inner, 1));
        Self { experts, top_k, first, second, scales, element, is_packed }
    }

    /// Whether the kernel can be made.
    pub(super) fn fits(&self) -> bool {
        let Self { first, second, .. } = self;
        let [hidden, inner] = [first.columns, second.columns];
        let fits = match self.scales {
            ScaleForm::Words => self.fit_words(),
            _ => self.fit_codes(),
        };
        fits && (2 * inner).is_multiple_of(first.task_rows())
            && hidden.is_multiple_of(second.task_rows())
            && [hidden, inner].iter().all(|&columns| columns > 0)
            && second.groups() <= OWN_ROW_GROUPS
            && self.top_k <= TOP_K_MAX
            && COLUMNS + hidden / 16 <= COUNTERS
            && self.places().end <= SHARED_BYTES_MAX
    }

    fn fit_codes(&self) -> bool {
        let Self { first, second, .. } = self;
        let narrow = |product: &&Product| product.groups() <= 32 && product.own_groups() <= 8;
        // Scales are copied by sixteen bytes.
        let scales = match self.scales {
            ScaleForm::Matrices => self.experts.is_multiple_of(4),
            _ => self.scale_runs().iter().all(|run| (self.experts * run[1]).is_multiple_of(16)),
        };
        let whole = |product: &&Product| product.columns.is_multiple_of(BLOCK);
        scales && [first, second].iter().all(|product| narrow(product) && whole(product))
    }

    /// A lane loads sixteen columns at a time, and registers hold so many activations.
    fn fit_words(&self) -> bool {
        let known = |product: &Product| {
            let code = product.format.map(|format| format.code);
            !matches!(code, None | Some(WordCode::Int8Rows))
        };
        [self.first, self.second].iter().all(|product| {
            known(product) && product.columns.is_multiple_of(16) && product.own_groups() <= 3
        })
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
            ScaleForm::Channels | ScaleForm::Integers => {
                [[32 * self.first.strips(), 8 * inner], [64 * self.second.strips(), 4 * hidden]]
            }
            ScaleForm::Matrices => [[8, 8], [4, 4]],
            ScaleForm::Words => [[0; 2]; 2],
        }
    }

    /// Bytes that a run of scales of each product takes in a stage: it begins within sixteen bytes.
    pub(super) fn scale_rooms(&self) -> [usize; 2] {
        self.scale_runs().map(|[run, _]| run.next_multiple_of(16) + 16)
    }

    /// Bytes of the scales of a stage of each product: of words those of all rows, and one for each part.
    fn scale_bytes(&self) -> [usize; 2] {
        let of_words = [self.first, self.second]
            .map(|product| 4 * product.task_rows() * product.scale_words());
        match self.scales {
            ScaleForm::Words => of_words.map(|bytes| bytes + 16),
            _ => {
                let [first, second] = self.scale_rooms();
                [2 * first, second]
            }
        }
    }

    /// Arrivals that say that copies into a stage have begun: of words every lane copies scales.
    pub(super) fn filling_arrivals(&self) -> usize {
        if self.scales == ScaleForm::Words { 33 } else { 1 }
    }

    /// What a stage of the ring of sums takes.
    pub(super) fn sum_stage_bytes(&self) -> usize {
        let strips = self.first.own_strips.max(self.second.own_strips);
        SUM_HEAD_BYTES + strips * WARPS * SUM_BYTES
    }

    /// The stages of the ring that hold weights from the beginning: hidden states become codes in the last
    /// one, unless they keep sixteen bits.
    pub(super) fn first_stages(&self) -> usize {
        let stages = self.places().stages;
        if self.scales == ScaleForm::Words { stages } else { stages - 1 }
    }

    pub(super) fn places(&self) -> Places {
        let is_words = self.scales == ScaleForm::Words;
        // Of four bits two small stages and three large ones are fastest: what is drawn late is dealt out evenly.
        let is_narrow = self.first.format.is_some_and(|format| format.columns_per_word() > 4);
        let stages = if is_narrow { self.first.own_strips + 1 } else { STAGES };
        let [first_scales, second_scales] = self.scale_bytes();
        let first_bytes = self.first.task_bytes() + first_scales;
        let second_bytes = self.second.task_bytes() + second_scales;
        let hidden_bytes = if is_words { 0 } else { CodePlaces::new(0, &self.first).end };
        let stage_bytes = first_bytes.max(second_bytes).max(hidden_bytes).next_multiple_of(128);
        let sums = stages * stage_bytes;
        let codes = CodePlaces::new(sums + SUM_STAGES * self.sum_stage_bytes(), &self.second);
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
