//! Products of weights in words: codes of four bits become bfloat16 in registers, from where the matrix
//! instructions take them.
//!
//! A stage of words has 256 columns in 32 words of a row: two planes of 128, whose even bytes are one half and odd
//! ones the other. Lane `4 g + t` reads sixteen bytes at once, words `4 t` to `4 t + 3` and `16 + 4 t` to `16 + 4 t + 3`
//! of its two rows of weights, so that it needs the scales of these columns and no others. Two of them in turn are what
//! instruction `j` takes of every half of both planes, and rows lie in this order
//! (`words/lanes`). A thread keeps the sixteen words and makes weights of one
//! half while the products of the half before are under way.
//!
//! Of the rows of weights of a warp neighbouring lanes have those that are four apart, which lie in other banks of shared
//! memory. Of gates and ups a warp has the rows whose results are neighbours in the order of the next product's rows:
//! of 32 the even or odd ones of eight and of the eight that are sixteen further on.
//!
//! Weights and rows have rings of their own. A stage of rows meets one stage of words where tiles are low, else a
//! half of one of its planes.

mod integers;
mod order;
mod producer;
mod widen;

use std::fmt::Write as _;

pub(super) use order::{neighbours, ordered_epilogue};
pub(super) use producer::producer;
use widen::{factors, pick, widen};

use super::super::{BLOCK_ROWS, ROW_BYTES};
use super::{
    CONSUMER_REGISTERS, PRODUCER_REGISTERS, Sizes, TURNED_BYTES, advance, epilogue, live, tiles,
};
use crate::grouped_gemm::words::{WordCode, WordFormat};

/// Shared memory that a block of threads may have on Hopper.
const SHARED_BYTES_MAX: usize = 232_448;
/// Bytes of a row of the words of a stage.
const WORD_ROW_BYTES: usize = 128;
/// Halves of the two planes of a stage of words.
const HALVES: usize = 4;
/// Weights that a thread makes at a time: registers of four instructions.
const INSTRUCTIONS: usize = 4;

/// Stages of rows of tiles of at most so many: what leaves room for words that are under way.
pub(super) fn row_stages(rows_max: usize) -> usize {
    match rows_max {
        0..=32 => 4,
        33..=64 => 3,
        65..=192 => 5,
        _ => 4,
    }
}

/// Halves of planes that a stage of rows of tiles of at most so many has.
pub(super) fn halves_of_stage(rows_max: usize) -> usize {
    if rows_max <= 64 { HALVES } else { 1 }
}

impl Sizes {
    /// Bytes of a half of a plane in a stage of rows.
    fn half_bytes(&self) -> usize {
        self.rows_max() * ROW_BYTES
    }

    /// Whether half `half` of a stage of words is the first of a stage of rows.
    fn begins_stage(&self, half: usize) -> bool {
        half.is_multiple_of(halves_of_stage(self.rows_max()))
    }

    /// Whether it is the last one.
    fn ends_stage(&self, half: usize) -> bool {
        self.begins_stage(half + 1)
    }

    /// Bytes in which stages of rows stand.
    fn row_ring_bytes(&self) -> usize {
        self.stages() * self.stage_bytes()
    }

    /// Bytes of the words of a stage.
    fn word_bytes(&self) -> usize {
        self.weights() * WORD_ROW_BYTES
    }

    /// Bytes from one word of scales to the next of the same row.
    fn scale_row_bytes(&self) -> usize {
        4 * self.weights()
    }

    /// Bytes of a stage of words with their scales.
    fn word_stage_bytes(&self, format: WordFormat) -> usize {
        self.word_bytes() + scale_words(format) * self.scale_row_bytes()
    }

    /// Stages of words: as many as there is room for.
    pub(super) fn word_stages(&self, format: WordFormat) -> usize {
        let others =
            self.row_ring_bytes() + 4 * self.groups() * TURNED_BYTES + 3 * self.table_column();
        let barriers = 16 * self.stages();
        (SHARED_BYTES_MAX - others - barriers) / (self.word_stage_bytes(format) + 16)
    }

    /// Bytes of both rings.
    pub(super) fn word_ring_bytes(&self, format: WordFormat) -> usize {
        self.row_ring_bytes() + self.word_stages(format) * self.word_stage_bytes(format)
    }

    /// Barriers of stages of words that are full.
    pub(super) fn words_full(&self) -> usize {
        self.empty() + 8 * self.stages()
    }

    /// And of those that are empty.
    pub(super) fn words_empty(&self, format: WordFormat) -> usize {
        self.words_full() + 8 * self.word_stages(format)
    }

    /// Stages of words of a row.
    fn word_steps(&self, format: WordFormat) -> usize {
        self.columns.div_ceil(format.columns_per_step())
    }
}

/// Words of scales that a row has of a stage: of both planes.
fn scale_words(format: WordFormat) -> usize {
    2 * format.scale_words_per_plane()
}

/// Registers of a thread that multiplies.
pub(super) fn registers(sizes: &Sizes, format: WordFormat) -> String {
    let mut text = String::from(
        ".reg .b32 word_stage, word_phase, own_words, own_scales, steps, pick, stage_low, stage_high;
.reg .b64 part_scales;
.reg .b16 half0, half1;
.reg .f32 unit0, unit1;
",
    );
    for row in 0..2 {
        let _ = writeln!(text, ".reg .b32 {};", list(|n| format!("word{row}_{n}"), 8));
        let scales = list(|n| format!("scale{row}_{n}"), scale_words(format));
        let factors = list(|n| format!("factor{row}_{n}"), 2);
        let _ = writeln!(text, ".reg .b32 {scales}, {factors}, less{row};");
    }
    for set in 0..2 {
        for instruction in 0..INSTRUCTIONS {
            let names = list(|n| format!("a{set}_{instruction}_{n}"), 4);
            let _ = writeln!(text, ".reg .b32 {names};");
        }
    }
    if format.code == WordCode::Int4 {
        text.push_str(&integers::registers(sizes));
    }
    text
}

/// Moves registers between warps where those of the launch do not do.
fn registers_of(sizes: &Sizes, direction: &str) -> String {
    let [more, less] = match (sizes.groups(), sizes.rows_max()) {
        (2, 65..) => [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        (4, 17..) => [112, 32],
        _ => return String::new(),
    };
    let count = if direction == "inc" { more } else { less };
    format!("setmaxnreg.{direction}.sync.aligned.u32 {count};\n")
}

fn list(name: impl Fn(usize) -> String, count: usize) -> String {
    (0..count).map(name).collect::<Vec<_>>().join(", ")
}

/// The warpgroups that multiply.
pub(super) fn consumer(sizes: &Sizes, format: WordFormat) -> String {
    let mut text = format!(
        "CONSUMER: {more_registers}sub.u32 group, group, 1;
and.b32 warp, warp, 3;
// Rows in shared memory: 128 swizzled bytes, 8 rows every 1024 bytes.
mov.b64 offset, 0x4000004000010000;
shr.u32 x, base, 4;
cvt.u64.u32 first_b, x;
or.b64 first_b, first_b, offset;
mad.lo.u32 turned, group, 4, warp;
mad.lo.u32 turned, turned, {TURNED_BYTES}, base;
add.u32 turned, turned, {turned};
// This lane's row of weights, and of it the first sixteen bytes, which stand where their number is flipped by that
// of their row among eight.
{own_row}mad.lo.u32 own_words, x, {WORD_ROW_BYTES}, base;
and.b32 y, x, 7;
and.b32 z, lane, 3;
xor.b32 y, y, z;
mad.lo.u32 own_words, y, 16, own_words;
add.u32 own_words, own_words, {ring};
{pick}mad.lo.u32 own_scales, x, 4, base;
add.u32 own_scales, own_scales, {scales};
mov.u32 word_stage, 0;
mov.u32 word_phase, 0;
// Where nothing is given back yet, the assembler must know something, or it gives back the wrong stage.
mov.u32 released, 0;
// Rows that there is room for are an even number. The assembler must not know that a loop has one turn: without
// it, registers do not do.
and.b32 x, positions, 1;
sub.u32 steps, {steps}, x;
CONSUME: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}mov.u32 step, 0;
{units}",
        more_registers = registers_of(sizes, "inc"),
        turned = sizes.turned(),
        own_row = own_row(sizes),
        ring = sizes.row_ring_bytes(),
        scales = sizes.row_ring_bytes() + sizes.word_bytes(),
        steps = sizes.word_steps(format),
        find = tiles::find(sizes),
        units = units(sizes, format),
        pick = pick(format),
    );
    text.push_str(&super::heights(sizes));
    text.push_str("MULTIPLIED:\n");
    text.push_str(&live::count(sizes));
    text.push_str(&epilogue::epilogue(sizes));
    text.push_str("STORED: add.u32 tile, tile, stride;\nbra CONSUME;\n");
    text
}

/// `x` = this lane's row of weights, of a tile's gates where there are two parts.
fn own_row(sizes: &Sizes) -> String {
    let [of_warp, of_odd_warp] = if sizes.parts == 2 { [8, 1] } else { [32, 16] };
    // Of numbers of lanes divided by four, the lowest bit, the next and the highest.
    let bits = if sizes.parts == 2 { [4, 2, 16] } else { [4, 1, 2] };
    let mut text = format!(
        "mul.lo.u32 x, group, {};
shr.u32 y, warp, 1;
mad.lo.u32 x, y, {of_warp}, x;
and.b32 y, warp, 1;
mad.lo.u32 x, y, {of_odd_warp}, x;
",
        64 / sizes.parts
    );
    for (bit, rows) in bits.into_iter().enumerate() {
        let _ = writeln!(
            text,
            "shr.u32 y, lane, {};
and.b32 y, y, 1;
mad.lo.u32 x, y, {rows}, x;",
            2 + bit
        );
    }
    text
}

/// `unit0` and `unit1`: what sums of this lane's two rows of weights are multiples of.
fn units(sizes: &Sizes, format: WordFormat) -> String {
    match format.code {
        WordCode::Nvfp4 => format!(
            "mul.wide.u32 pointer, expert, {};
add.u64 pointer, pointer, part_scales;
ld.global.f32 unit0, [pointer];
ld.global.f32 unit1, [pointer+{}];
mul.f32 unit0, unit0, 0f43800000;
mul.f32 unit1, unit1, 0f43800000;
",
            4 * sizes.parts,
            4 * (sizes.parts - 1),
        ),
        // What exponents of groups are counted from.
        WordCode::Mxfp4 => String::from("mov.f32 unit0, 0f5F800000;\nmov.f32 unit1, unit0;\n"),
        // Scales come to the sums of each plane.
        _ => String::new(),
    }
}

/// The loop over stages of words for tiles of `height` blocks.
pub(super) fn multiply(sizes: &Sizes, format: WordFormat, height: usize) -> String {
    let mut text = format!("HEIGHT{height}:\n");
    let of_step = match format.code {
        WordCode::Int4 => {
            for sum in 0..height * BLOCK_ROWS / 2 {
                let _ = writeln!(text, "mov.f32 sum{sum}, 0f00000000;");
            }
            integers::multiply_planes(sizes, height)
        }
        _ => {
            let halves = (0..HALVES).map(|half| multiply_half(sizes, format, height, half));
            halves.collect::<String>()
        }
    };
    let _ = writeln!(
        text,
        "STEP{height}: setp.ne.u32 later, step, 0;
shl.b32 x, word_stage, 3;
add.u32 barrier, x, base;
WORDS{height}: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{full}], word_phase;
@!p bra WORDS{height};
{load}{of_step}add.u32 step, step, 1;
setp.lt.u32 p, step, steps;
@p bra STEP{height};",
        full = sizes.words_full(),
        load = load(sizes, format),
    );
    if format.code != WordCode::Int4 {
        text.push_str("wgmma.wait_group.sync.aligned 0;\n");
        text.push_str(&give_back(sizes, "@is_first_lane"));
        for sum in 0..height * BLOCK_ROWS / 2 {
            let _ = writeln!(text, "mul.f32 sum{sum}, sum{sum}, unit{};", sum / 2 % 2);
        }
    }
    text + "bra MULTIPLIED;\n"
}

/// Gives back the stage of words and goes on to the next. Loads may be under way until what they bring is used, and the
/// copy engine does not wait for them without the fence.
fn give_back_words(sizes: &Sizes, format: WordFormat) -> String {
    format!(
        "fence.proxy.async.shared::cta;
bar.warp.sync 0xffffffff;
shl.b32 x, word_stage, 3;
add.u32 x, x, base;
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [x+{empty}];
add.u32 word_stage, word_stage, 1;
setp.eq.u32 q, word_stage, {stages};
selp.b32 word_stage, 0, word_stage, q;
selp.b32 x, 1, 0, q;
xor.b32 word_phase, word_phase, x;
",
        empty = sizes.words_empty(format),
        stages = sizes.word_stages(format),
    )
}

/// Gives back the stage of rows whose products are done, where `condition` holds.
fn give_back(sizes: &Sizes, condition: &str) -> String {
    format!(
        "shl.b32 x, released, 3;
add.u32 x, x, base;
{condition} mbarrier.arrive.shared::cta.b64 _, [x+{}];
",
        sizes.empty()
    )
}

/// The words of a stage and their scales: those of this lane's two rows of weights.
fn load(sizes: &Sizes, format: WordFormat) -> String {
    // Ups stand behind all gates; without them, the other row is the eighth behind.
    let other = if sizes.parts == 2 { sizes.tile_features() } else { 8 };
    let mut text = format!(
        "mad.lo.u32 at, word_stage, {stage}, own_words;
mad.lo.u32 from, word_stage, {stage}, own_scales;
",
        stage = sizes.word_stage_bytes(format),
    );
    for word in 0..scale_words(format) {
        for row in 0..2 {
            let place = word * sizes.scale_row_bytes() + 4 * row * other;
            let _ = writeln!(text, "ld.shared.b32 scale{row}_{word}, [from+{place}];");
        }
    }
    text.push_str("xor.b32 x, at, 64;\n");
    for (words, from) in ["at", "x"].into_iter().enumerate() {
        for row in 0..2 {
            let place = row * other * WORD_ROW_BYTES;
            let names = list(|n| format!("word{row}_{}", 4 * words + n), 4);
            let _ = writeln!(text, "ld.shared.v4.b32 {{{names}}}, [{from}+{place}];");
        }
    }
    text
}

/// The products of one half of a plane. A stage of rows is given back when those of the next are under way.
fn multiply_half(sizes: &Sizes, format: WordFormat, height: usize, half: usize) -> String {
    let mut text = String::new();
    if half.is_multiple_of(2) {
        text.push_str(&factors(format, half / 2));
    }
    text.push_str(&widen_half(format, half));
    let first = if half == 0 { "later" } else { "1" };
    text.push_str(&instructions(sizes, (height, half), "sum", first));
    if half == 0 {
        text.push_str(&give_back_words(sizes, format));
    }
    text.push_str("wgmma.wait_group.sync.aligned 1;\n");
    if sizes.begins_stage(half) {
        text.push_str(&match half {
            0 => give_back(sizes, "and.pred q, later, is_first_lane;\n@q"),
            _ => give_back(sizes, "@is_first_lane"),
        });
    }
    if sizes.ends_stage(half) {
        text.push_str("mov.u32 released, stage;\n");
        text.push_str(&advance(sizes));
    }
    text
}

/// Weights of half `half` of the words, for all instructions.
fn widen_half(format: WordFormat, half: usize) -> String {
    let mut text = String::new();
    for instruction in 0..INSTRUCTIONS {
        for n in 0..4 {
            let (row, word) = (n % 2, 2 * instruction + n / 2);
            let a = format!("a{}_{instruction}_{n}", half % 2);
            text.push_str(&widen(format, half, &a, [row, word]));
        }
    }
    text
}

/// The matrix instructions of a half of a plane, into the registers `into`; `first` says whether the first one
/// adds to these.
fn instructions(sizes: &Sizes, (height, half): (usize, usize), into: &str, first: &str) -> String {
    let rows = height * BLOCK_ROWS;
    let mut text = String::new();
    if sizes.begins_stage(half) {
        let _ = writeln!(
            text,
            "shl.b32 x, stage, 3;
add.u32 barrier, x, base;
FULL{height}_{half}: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{full}], phase;
@!p bra FULL{height}_{half};
mul.wide.u32 offset, stage, {stage};
add.u64 stage_b, first_b, offset;",
            full = sizes.full(),
            stage = sizes.stage_bytes() / 16,
        );
    }
    text.push_str("wgmma.fence.sync.aligned;\n");
    let sums = list(|n| format!("{into}{n}"), rows / 2);
    for instruction in 0..INSTRUCTIONS {
        let added = if instruction == 0 { first } else { "1" };
        // Sixteen columns on, or at the next half. The assembler does it in place, of 32 bits with one instruction.
        let next = if instruction > 0 { 2 } else { sizes.half_bytes() / 16 - 6 };
        if instruction > 0 || !sizes.begins_stage(half) {
            let _ = writeln!(
                text,
                "mov.b64 {{stage_low, stage_high}}, stage_b;
add.u32 stage_low, stage_low, {next};
mov.b64 stage_b, {{stage_low, stage_high}};"
            );
        }
        let _ = writeln!(
            text,
            "wgmma.mma_async.sync.aligned.m64n{rows}k16.f32.bf16.bf16 {{{sums}}}, {{{}}}, stage_b, {added}, 1, 1, 0;",
            list(|n| format!("a{}_{instruction}_{n}", half % 2), 4),
        );
    }
    text + "wgmma.commit_group.sync.aligned;\n"
}
