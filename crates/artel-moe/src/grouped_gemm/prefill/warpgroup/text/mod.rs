//! The kernel's text.
//!
//! (PTX ISA 8.0: `wgmma`, `mbarrier`, `cp.async.bulk.tensor`, `setmaxnreg`; 8.4 for codes.)

mod codes;
mod epilogue;
mod halves;
mod integers;
mod live;
mod long;
mod producer;
mod tiles;
mod words;

use std::fmt::Write as _;

use super::{BLOCK_ROWS, LONG_FEATURES, LONG_ROWS, ROW_BYTES, Scales, Side, WEIGHTS};
use crate::grouped_gemm::words::WordFormat;

/// Bytes of a block of rows in a stage.
const BLOCK_BYTES: usize = BLOCK_ROWS * ROW_BYTES;
/// Bytes in which each of the eight warps that multiply turns its results around, two blocks in turn.
const TURNED_BYTES: usize = 1024;

/// Registers of a thread that multiplies, and of one that loads: together what a multiprocessor has.
const CONSUMER_REGISTERS: usize = 232;
const PRODUCER_REGISTERS: usize = 40;

/// What the numbers of a product are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// `bf16` or `f16`.
    Halves(&'static str),
    /// Integers of eight bits with a scale a row, in planes `[K / 128, M, 128]` where they are rows, in tiles of
    /// at most so many rows.
    Integers { rows_max: usize },
    /// e4m3 codes, of whose products so many input features are summed in the matrix units.
    Codes { scales: Scales, summed: usize },
    /// Weights of four bits in words, in tiles of at most so many rows.
    Words { format: WordFormat, rows_max: usize, groups: usize },
}

/// What a kernel is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) experts: usize,
    /// Numbers of a row of the result.
    pub(super) features: usize,
    /// Input features.
    pub(super) columns: usize,
    /// 2 where gate and up become one number.
    pub(super) parts: usize,
    pub(super) numbers: Numbers,
    /// Where rows stand.
    pub(super) side: Side,
    /// What is stored: `bf16`, `f16` or `f32`.
    pub(super) out: &'static str,
    /// Whether the assignment was there before the kernel before began: weights are loaded before that ends.
    pub(super) is_ahead: bool,
}

impl Sizes {
    /// Weights of a tile, gate and up together.
    fn weights(&self) -> usize {
        match self.side {
            Side::Short => WEIGHTS / 2 * self.groups(),
            Side::Long => LONG_FEATURES,
        }
    }

    /// Warpgroups that multiply.
    fn groups(&self) -> usize {
        match self.numbers {
            Numbers::Words { groups, .. } => groups,
            _ => 2,
        }
    }

    /// Threads of a block: another warpgroup loads.
    pub(super) fn threads(&self) -> usize {
        128 * (1 + self.groups())
    }

    fn weight_bytes(&self) -> usize {
        self.weights() * ROW_BYTES
    }

    /// Features of a tile's result.
    pub(super) fn tile_features(&self) -> usize {
        self.weights() / self.parts
    }

    pub(super) fn column_tiles(&self) -> usize {
        self.features.div_ceil(self.tile_features())
    }

    /// Input features of a stage.
    pub(super) fn depth(&self) -> usize {
        super::depth(self.number_bytes())
    }

    fn number_bytes(&self) -> usize {
        match self.numbers {
            Numbers::Halves(_) | Numbers::Words { .. } => 2,
            Numbers::Integers { .. } | Numbers::Codes { .. } => 1,
        }
    }

    fn out_bytes(&self) -> usize {
        if self.out == "f32" { 4 } else { 2 }
    }

    fn rows_max(&self) -> usize {
        match (self.numbers, self.side) {
            (Numbers::Words { rows_max, .. } | Numbers::Integers { rows_max }, _) => rows_max,
            (_, Side::Long) => LONG_ROWS,
            (Numbers::Codes { .. }, Side::Short) => super::rows_max(2),
            (Numbers::Halves(_), Side::Short) => super::rows_max(1),
        }
    }

    /// Blocks of a tile of the greatest height.
    fn blocks_max(&self) -> usize {
        self.rows_max() / BLOCK_ROWS
    }

    fn steps(&self) -> usize {
        match self.numbers {
            // Columns are filled up with zeros.
            Numbers::Words { format, .. } => format.padded(self.columns) / self.depth(),
            _ => self.columns.div_ceil(self.depth()),
        }
    }

    /// Scales that change from step to step: those of groups of columns.
    fn group_scales(&self) -> Option<Scales> {
        match self.numbers {
            Numbers::Codes { scales, .. } if scales.grouped => Some(scales),
            _ => None,
        }
    }

    /// Scales that cover all columns.
    fn row_scales(&self) -> Option<Scales> {
        match self.numbers {
            Numbers::Codes { scales, .. } if !scales.grouped => Some(scales),
            _ => None,
        }
    }

    /// Stages of the ring, of weights in words those of rows.
    fn stages(&self) -> usize {
        match (self.numbers, self.side) {
            (Numbers::Words { rows_max, .. }, _) => words::row_stages(rows_max),
            (Numbers::Integers { rows_max }, _) if rows_max <= super::rows_max(2) => 6,
            (Numbers::Halves(_) | Numbers::Integers { .. }, _) => 4,
            // Results stand beside them.
            (_, Side::Long) if long::row_pitch(self) > 0 => 4,
            _ => 5,
        }
    }

    fn stage_bytes(&self) -> usize {
        let of_rows = self.rows_max() * ROW_BYTES;
        match self.numbers {
            Numbers::Words { rows_max, .. } => words::halves_of_stage(rows_max) * of_rows,
            _ => self.weight_bytes() + of_rows,
        }
    }

    /// Where the scales of the stages stand: of weights, and behind them of rows.
    fn scales(&self) -> usize {
        self.stages() * self.stage_bytes()
    }

    fn weight_scale_bytes(&self) -> usize {
        match self.side {
            Side::Short => 16,
            Side::Long => long::SCALE_BYTES,
        }
    }

    fn stage_scale_bytes(&self) -> usize {
        self.group_scales().map_or(0, |_| self.weight_scale_bytes() + 4 * self.rows_max())
    }

    /// Where warps turn results around.
    fn turned(&self) -> usize {
        match self.numbers {
            Numbers::Words { format, .. } => self.word_ring_bytes(format),
            _ => self.scales() + self.stages() * self.stage_scale_bytes(),
        }
    }

    /// Bytes of this of each of eight warps.
    fn turned_bytes(&self) -> usize {
        match self.side {
            Side::Short => TURNED_BYTES,
            Side::Long => LONG_ROWS / 8 * long::row_pitch(self),
        }
    }

    /// Barriers of stages that are full.
    fn full(&self) -> usize {
        self.turned() + 4 * self.groups() * self.turned_bytes()
    }

    /// And of those that are empty.
    fn empty(&self) -> usize {
        self.full() + 8 * self.stages()
    }

    /// The table of experts: first block, end of blocks, first tile.
    fn first_blocks(&self) -> usize {
        match self.numbers {
            Numbers::Words { format, .. } => {
                self.words_empty(format) + 8 * self.word_stages(format)
            }
            _ => self.empty() + 8 * self.stages(),
        }
    }

    /// Bytes of each of the three columns of the table; that of tiles has their number behind it.
    fn table_column(&self) -> usize {
        4 * (self.experts + 1)
    }

    fn block_ends(&self) -> usize {
        self.first_blocks() + self.table_column()
    }

    fn first_tiles(&self) -> usize {
        self.first_blocks() + 2 * self.table_column()
    }

    fn tile_count(&self) -> usize {
        self.first_tiles() + 4 * self.experts
    }

    pub(super) fn shared_bytes(&self) -> usize {
        self.first_blocks() + 3 * self.table_column()
    }
}

/// The whole kernel, `multiply_entry`: tensor maps of weights `[E, N / 8, parts, 8, K]` and rows
/// `[M, K]`, the result `[M, N]`, the expert of each block of rows, and the number of rows in use;
/// of codes and integers also the scales of weights and of rows, and `M`; of words the scales of groups and of parts, and
/// the rows that there is room for; of others last the pair of each row, or no pointer, and how many pairs there
/// are: rows of other numbers are not stored. Weights in words are `[E, parts, N, bytes]`, and their rows, as the results
/// of gates and ups, `[K / 64, M, 64]`.
pub(super) fn source(sizes: &Sizes) -> String {
    let mut text = head(sizes);
    text.push_str(&begin(sizes));
    text.push_str(&tiles::table(sizes));
    text.push_str(&tiles::count_tiles(sizes));
    if let Numbers::Words { format, .. } = sizes.numbers {
        text.push_str(&words::producer(sizes, format));
        text.push_str(&words::consumer(sizes, format));
    } else {
        text.push_str(&producer::producer(sizes));
        text.push_str(&consumer(sizes));
    }
    text.push_str("EXIT: ");
    if sizes.side == Side::Long {
        text.push_str("cp.async.bulk.wait_group.read 0;\n");
    }
    text.push_str("ret;\n}\n");
    text
}

/// Parameters and registers.
fn head(sizes: &Sizes) -> String {
    let (version, scales) = match sizes.numbers {
        Numbers::Halves(_) => ("8.0", ""),
        Numbers::Words { .. } => (
            "8.0",
            ",\n    .param .u64 weight_scales_pointer, .param .u64 part_scales_pointer, .param .u32 row_count",
        ),
        Numbers::Integers { .. } | Numbers::Codes { .. } => (
            "8.4",
            ",\n    .param .u64 weight_scales_pointer, .param .u64 row_scales_pointer, .param .u32 row_count",
        ),
    };
    let mut text = format!(
        ".version {version}
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 shared[];
.visible .entry multiply_entry(.param .align 64 .b8 weight_map[128], .param .align 64 .b8 row_map[128],
    .param .u64 out_pointer, .param .u64 expert_ids_pointer, .param .u64 rows_pointer{scales}{live})
.reqntid {threads}, 1, 1
{{
.reg .b32 thread, lane, warp, group, base, blocks, expert, i, x, y, z, at;
.reg .b32 tile, stride, tiles, row_tile, column, low, high, middle, row, height;
.reg .b32 stage, phase, free, released, barrier, target, step, bytes, turned, from, left;
.reg .b32 packed0, packed1, packed2, packed3, positions;
.reg .b64 expert_ids, out, rows, weights, row_tensor, pointer, second_pointer, next_rows, offset;
.reg .b64 first_a, first_b, stage_a, stage_b, a, b, weight_scales, row_scales;
.reg .pred p, q, later, is_first_lane, is_live;
.reg .f32 gate0, gate1, first_scale, second_scale, scale, shared_scale;
{registers}",
        threads = sizes.threads(),
        live = live::parameters(sizes),
        registers = live::REGISTERS,
    );
    if sizes.side == Side::Long {
        return text + &long::registers();
    }
    if sizes.is_ahead {
        text.push_str(".reg .b32 ahead;\n");
    }
    let mut registers = |name: &str, count: usize| {
        let _ = writeln!(text, ".reg .f32 {name}<{count}>;");
    };
    // As many as the end of a tile looks at.
    registers("sum", sizes.rows_max().next_multiple_of(epilogue::GATED_ROWS) / 2);
    if let Numbers::Words { format, .. } = sizes.numbers {
        text.push_str(&words::registers(sizes, format));
    } else if matches!(sizes.numbers, Numbers::Integers { .. }) {
        text.push_str(&integers::registers(
            sizes.rows_max().next_multiple_of(epilogue::GATED_ROWS),
        ));
    } else if matches!(sizes.numbers, Numbers::Codes { .. }) {
        for height in 1..=sizes.blocks_max() {
            registers(&format!("part{height}_"), height * BLOCK_ROWS / 2);
        }
        registers("scale_of", sizes.rows_max() / 4);
    }
    text
}

/// Who and where one is; the barriers.
fn begin(sizes: &Sizes) -> String {
    let mut text = String::from(
        "mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
shr.u32 group, thread, 7;
mov.u32 base, shared;
setp.eq.u32 is_first_lane, lane, 0;
ld.param.u64 out, [out_pointer];
ld.param.u64 expert_ids, [expert_ids_pointer];
ld.param.u64 rows, [rows_pointer];
cvta.to.global.u64 out, out;
cvta.to.global.u64 expert_ids, expert_ids;
cvta.to.global.u64 rows, rows;
mov.b64 weights, weight_map;
cvta.param.u64 weights, weights;
mov.b64 row_tensor, row_map;
cvta.param.u64 row_tensor, row_tensor;
",
    );
    text.push_str(live::begin(sizes));
    let other_scales = match sizes.numbers {
        Numbers::Halves(_) => None,
        Numbers::Integers { .. } | Numbers::Codes { .. } => Some("row_scales"),
        Numbers::Words { .. } => Some("part_scales"),
    };
    if let Some(other) = other_scales {
        let _ = writeln!(
            text,
            "ld.param.u64 weight_scales, [weight_scales_pointer];
ld.param.u64 {other}, [{other}_pointer];
ld.param.u32 positions, [row_count];
cvta.to.global.u64 weight_scales, weight_scales;
cvta.to.global.u64 {other}, {other};"
        );
    }
    text.push_str("setp.ne.u32 p, thread, 0;\n@p bra BARRIERS_MADE;\n");
    let mut rings = vec![(sizes.full(), sizes.empty(), sizes.stages())];
    if let Numbers::Words { format, .. } = sizes.numbers {
        rings.push((sizes.words_full(), sizes.words_empty(format), sizes.word_stages(format)));
    }
    for (full, empty) in rings.into_iter().flat_map(|(full, empty, stages)| {
        (0..stages).map(move |stage| (full + 8 * stage, empty + 8 * stage))
    }) {
        // The producer fills; each warp has read.
        let _ = writeln!(text, "mbarrier.init.shared::cta.b64 [shared+{full}], 1;");
        let warps = 4 * sizes.groups();
        let _ = writeln!(text, "mbarrier.init.shared::cta.b64 [shared+{empty}], {warps};");
    }
    text.push_str("fence.mbarrier_init.release.cluster;\nfence.proxy.async;\nBARRIERS_MADE:\n");
    text
}

/// The next stage of the ring.
fn advance(sizes: &Sizes) -> String {
    format!(
        "add.u32 stage, stage, 1;
setp.eq.u32 q, stage, {};
selp.b32 stage, 0, stage, q;
selp.b32 x, 1, 0, q;
xor.b32 phase, phase, x;
",
        sizes.stages()
    )
}

/// The warpgroups that multiply: what comes before all tiles, the products, and the end of a tile.
fn consumer(sizes: &Sizes) -> String {
    // Two warpgroups share what stands on the long side.
    let (weights, of_group) = (sizes.weight_bytes(), sizes.weight_bytes() / 2);
    let (first_a, first_b, of_group) = match sizes.side {
        Side::Short => (String::new(), weights, of_group),
        Side::Long => (format!("add.u32 x, x, {weights};\n"), 0, LONG_ROWS / 2 * ROW_BYTES),
    };
    let mut text = format!(
        "CONSUMER: setmaxnreg.inc.sync.aligned.u32 {CONSUMER_REGISTERS};
{wait}sub.u32 group, group, 1;
and.b32 warp, warp, 3;
// Matrices in shared memory: rows of 128 swizzled bytes, 8 rows every 1024 bytes.
mov.b64 offset, 0x4000004000010000;
mad.lo.u32 x, group, {of_group}, base;
{first_a}shr.u32 x, x, 4;
cvt.u64.u32 first_a, x;
or.b64 first_a, first_a, offset;
add.u32 x, base, {first_b};
shr.u32 x, x, 4;
cvt.u64.u32 first_b, x;
or.b64 first_b, first_b, offset;
mad.lo.u32 turned, group, 4, warp;
mad.lo.u32 turned, turned, {turned_bytes}, base;
add.u32 turned, turned, {turned};
{own_row}CONSUME: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}{ask}mov.u32 step, 0;
",
        wait = if sizes.is_ahead { tiles::WAIT_AND_RELEASE } else { "" },
        turned_bytes = sizes.turned_bytes(),
        turned = sizes.turned(),
        own_row = if sizes.side == Side::Long { long::OWN_ROW } else { "" },
        find = tiles::find(sizes),
        ask = live::ask(),
    );
    match (sizes.side, sizes.numbers) {
        (Side::Long, Numbers::Codes { summed, .. }) => {
            text.push_str(&long::multiply(sizes, summed));
            text.push_str(&live::count(sizes));
            text.push_str(&long::epilogue(sizes));
        }
        _ => {
            if matches!(sizes.numbers, Numbers::Integers { .. }) {
                text.push_str(&integers::load_scales(sizes));
            }
            text.push_str(&heights(sizes));
            text.push_str("MULTIPLIED:\n");
            text.push_str(&live::count(sizes));
            text.push_str(&epilogue::epilogue(sizes));
        }
    }
    text.push_str("STORED: add.u32 tile, tile, stride;\nbra CONSUME;\n");
    text
}

/// A loop for each height.
fn heights(sizes: &Sizes) -> String {
    let heights: Vec<_> =
        (1..=sizes.blocks_max()).map(|height| format!("HEIGHT{height}")).collect();
    let mut text = format!(
        "sub.u32 x, height, 1;
HEIGHTS: .branchtargets {};
brx.idx x, HEIGHTS;
",
        heights.join(", ")
    );
    for height in 1..=sizes.blocks_max() {
        text.push_str(&match sizes.numbers {
            Numbers::Halves(_) | Numbers::Integers { .. } => halves::multiply(sizes, height),
            Numbers::Codes { summed, .. } => codes::multiply(sizes, summed, height),
            Numbers::Words { format, .. } => words::multiply(sizes, format, height),
        });
    }
    text
}
