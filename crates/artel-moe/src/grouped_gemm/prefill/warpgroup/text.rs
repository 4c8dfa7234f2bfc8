//! The kernel's text.
//!
//! (PTX ISA 8.0: `wgmma`, `mbarrier`, `cp.async.bulk.tensor`, `setmaxnreg`.)

use std::fmt::Write as _;

use super::epilogue::{gated_epilogue, plain_epilogue};
use super::{BLOCK_ROWS, DEPTH, ROWS_MAX, THREADS, WEIGHTS};

/// Stages of the ring.
const STAGES: usize = 4;
/// Bytes of a row of a stage.
const ROW_BYTES: usize = DEPTH * 2;
const WEIGHT_BYTES: usize = WEIGHTS * ROW_BYTES;
const STAGE_BYTES: usize = WEIGHT_BYTES + ROWS_MAX * ROW_BYTES;
/// Where each of the eight warps that multiply turns its results around.
const TURNED: usize = STAGES * STAGE_BYTES;
pub(super) const TURNED_BYTES: usize = 1024;
/// Barriers of stages that are full, then of those that are empty.
const FULL: usize = TURNED + 8 * TURNED_BYTES;
const EMPTY: usize = FULL + 8 * STAGES;
/// The table of experts: first block, end of blocks, first tile.
const TABLE: usize = EMPTY + 8 * STAGES;
/// Blocks of a tile of the greatest height.
const BLOCKS_MAX: usize = ROWS_MAX / BLOCK_ROWS;
/// Most rows that one instruction takes; the rest takes a second one. Any other cut makes the assembler
/// wait after every instruction, since results of several loops then overlap in registers.
const INSTRUCTION_ROWS: usize = 256;

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
    /// `bf16` or `f16`.
    pub(super) element: &'static str,
}

impl Sizes {
    /// Features of a tile's result.
    pub(super) fn tile_features(&self) -> usize {
        WEIGHTS / self.parts
    }

    pub(super) fn column_tiles(&self) -> usize {
        self.features.div_ceil(self.tile_features())
    }

    fn steps(&self) -> usize {
        self.columns.div_ceil(DEPTH)
    }

    /// Bytes of each of the three columns of the table; that of tiles has their number behind it.
    fn table_column(&self) -> usize {
        4 * (self.experts + 1)
    }

    fn block_ends(&self) -> usize {
        TABLE + self.table_column()
    }

    fn first_tiles(&self) -> usize {
        TABLE + 2 * self.table_column()
    }

    fn tile_count(&self) -> usize {
        self.first_tiles() + 4 * self.experts
    }

    pub(super) fn shared_bytes(&self) -> usize {
        TABLE + 3 * self.table_column()
    }
}

/// The whole kernel, `multiply_entry`: tensor maps of weights `[E, N / 8, parts, 8, K]` and rows
/// `[M, K]`, the result `[M, N]`, the expert of each block of rows, and the number of rows in use.
pub(super) fn source(sizes: &Sizes) -> String {
    let mut text = String::new();
    text.push_str(HEAD);
    for register in 0..ROWS_MAX / 2 {
        let _ = writeln!(text, ".reg .f32 sum{register};");
    }
    text.push_str(&begin());
    text.push_str(&table(sizes));
    text.push_str(&count_tiles(sizes));
    text.push_str(&producer(sizes));
    text.push_str(&consumer(sizes));
    text.push_str("EXIT: ret;\n}\n");
    text
}

const HEAD: &str = ".version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 shared[];
.visible .entry multiply_entry(.param .align 64 .b8 weight_map[128], .param .align 64 .b8 row_map[128],
    .param .u64 out_pointer, .param .u64 expert_ids_pointer, .param .u64 rows_pointer)
.reqntid 384, 1, 1
{
.reg .b32 thread, lane, warp, group, base, blocks, expert, i, x, y, z, at;
.reg .b32 tile, stride, tiles, row_tile, column, low, high, middle, row, height;
.reg .b32 stage, phase, free, released, barrier, target, step, bytes, turned, from, left;
.reg .b32 packed0, packed1, packed2, packed3;
.reg .b64 expert_ids, out, rows, weights, row_tensor, pointer, next_rows, offset;
.reg .b64 first_a, first_b, stage_a, stage_b, a, b;
.reg .pred p, q, later, is_first_lane, is_live;
.reg .f32 gate0, gate1, up0, up1;
";

/// Who and where one is; the barriers.
fn begin() -> String {
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
setp.ne.u32 p, thread, 0;
@p bra BARRIERS_MADE;
",
    );
    for stage in 0..STAGES {
        let (full, empty) = (FULL + 8 * stage, EMPTY + 8 * stage);
        // The producer fills; each of eight warps has read.
        let _ = writeln!(text, "mbarrier.init.shared::cta.b64 [shared+{full}], 1;");
        let _ = writeln!(text, "mbarrier.init.shared::cta.b64 [shared+{empty}], 8;");
    }
    text.push_str("fence.mbarrier_init.release.cluster;\nfence.proxy.async;\nBARRIERS_MADE:\n");
    text
}

/// Where the blocks of each expert begin and end.
fn table(sizes: &Sizes) -> String {
    let (experts, ends) = (sizes.experts, sizes.block_ends());
    format!(
        "mov.u32 expert, thread;
CLEAR: setp.ge.u32 p, expert, {experts};
@p bra CLEARED;
shl.b32 at, expert, 2;
add.u32 at, at, base;
mov.u32 x, 0;
st.shared.b32 [at+{TABLE}], x;
st.shared.b32 [at+{ends}], x;
add.u32 expert, expert, {THREADS};
bra CLEAR;
CLEARED:
griddepcontrol.launch_dependents;
griddepcontrol.wait;
ld.global.b32 blocks, [rows];
shr.u32 blocks, blocks, {block_shift};
bar.sync 0;
// A block whose neighbour is of another expert begins or ends a run.
mov.u32 i, thread;
RUNS: setp.ge.u32 p, i, blocks;
@p bra RUNS_KNOWN;
mul.wide.u32 pointer, i, 4;
add.u64 pointer, pointer, expert_ids;
ld.global.b32 expert, [pointer];
mov.b32 y, -2;
mov.b32 z, -2;
setp.ne.u32 p, i, 0;
@p ld.global.b32 y, [pointer+-4];
add.u32 x, i, 1;
setp.lt.u32 p, x, blocks;
@p ld.global.b32 z, [pointer+4];
setp.lt.u32 q, expert, {experts};
@q bra HAS_EXPERT;
{zero}HAS_EXPERT: shl.b32 at, expert, 2;
add.u32 at, at, base;
setp.ne.and.b32 p, expert, y, q;
@p st.shared.b32 [at+{TABLE}], i;
setp.ne.and.b32 p, expert, z, q;
@p st.shared.b32 [at+{ends}], x;
add.u32 i, i, {THREADS};
bra RUNS;
RUNS_KNOWN: bar.sync 0;
",
        block_shift = BLOCK_ROWS.ilog2(),
        zero = zero(sizes),
    )
}

/// The first tile of each expert, and how many there are.
fn count_tiles(sizes: &Sizes) -> String {
    let (experts, first_tiles) = (sizes.experts, sizes.first_tiles());
    let mut text = String::from(
        "// One warp adds up tiles; each lane has some experts one after the other.
setp.ne.u32 p, warp, 0;
@p bra COUNTED;
mov.u32 z, 0;
",
    );
    let of_lane = experts.div_ceil(32);
    for own in 0..of_lane {
        text.push_str(&tiles_of(sizes, of_lane, own));
        text.push_str("add.u32 z, z, y;\n");
    }
    text.push_str("mov.u32 i, z;\n");
    for distance in [1, 2, 4, 8, 16] {
        let _ = writeln!(text, "shfl.sync.up.b32 y|p, i, {distance}, 0, 0xffffffff;");
        text.push_str("@p add.u32 i, i, y;\n");
    }
    text.push_str("sub.u32 i, i, z;\n");
    for own in 0..of_lane {
        text.push_str(&tiles_of(sizes, of_lane, own));
        let _ = writeln!(text, "@p st.shared.b32 [at+{first_tiles}], i;\nadd.u32 i, i, y;");
    }
    let (count, columns) = (sizes.tile_count(), sizes.column_tiles());
    let _ = writeln!(
        text,
        "setp.eq.u32 p, lane, 31;
@p st.shared.b32 [shared+{count}], i;
COUNTED: bar.sync 0;
ld.shared.b32 tiles, [shared+{count}];
mul.lo.u32 tiles, tiles, {columns};
mov.u32 tile, %ctaid.x;
mov.u32 stride, %nctaid.x;
mov.u32 stage, 0;
mov.u32 phase, 0;"
    );
    text
}

/// Zeros for the rows of block `i`, by one of all blocks of threads.
fn zero(sizes: &Sizes) -> String {
    let bytes = BLOCK_ROWS * sizes.features * 2;
    format!(
        "mov.u32 y, %nctaid.x;
rem.u32 x, i, y;
mov.u32 y, %ctaid.x;
setp.ne.u32 p, x, y;
@p bra ZEROED;
mul.wide.u32 pointer, i, {bytes};
add.u64 pointer, pointer, out;
mov.u32 x, 0;
mov.u32 y, {sixteens};
ZERO: st.global.v4.b32 [pointer], {{x, x, x, x}};
add.u64 pointer, pointer, 16;
sub.u32 y, y, 1;
setp.ne.u32 p, y, 0;
@p bra ZERO;
ZEROED: add.u32 i, i, {THREADS};
bra RUNS;
",
        sixteens = bytes / 16,
    )
}

/// `y` = row tiles of the expert that is number `own` of this lane, `at` its place in the table, `p`
/// whether it exists.
fn tiles_of(sizes: &Sizes, of_lane: usize, own: usize) -> String {
    let (experts, ends) = (sizes.experts, sizes.block_ends());
    format!(
        "mad.lo.u32 expert, lane, {of_lane}, {own};
setp.lt.u32 p, expert, {experts};
shl.b32 at, expert, 2;
add.u32 at, at, base;
mov.u32 x, 0;
mov.u32 y, 0;
@p ld.shared.b32 x, [at+{TABLE}];
@p ld.shared.b32 y, [at+{ends}];
sub.u32 y, y, x;
add.u32 y, y, {};
div.u32 y, y, {BLOCKS_MAX};
",
        BLOCKS_MAX - 1
    )
}

/// `expert`, `column`, first `row` and `height` in blocks of `tile`.
fn find(sizes: &Sizes) -> String {
    let (columns, experts) = (sizes.column_tiles(), sizes.experts);
    let (ends, first_tiles) = (sizes.block_ends(), sizes.first_tiles());
    let mut text = format!(
        "div.u32 row_tile, tile, {columns};
mul.lo.u32 x, row_tile, {columns};
sub.u32 column, tile, x;
mov.u32 low, 0;
mov.u32 high, {experts};
"
    );
    for _ in 0..experts.next_power_of_two().ilog2() {
        let _ = writeln!(
            text,
            "add.u32 middle, low, high;
shr.u32 middle, middle, 1;
shl.b32 at, middle, 2;
add.u32 at, at, base;
ld.shared.b32 y, [at+{first_tiles}];
setp.le.u32 p, y, row_tile;
selp.b32 low, middle, low, p;
selp.b32 high, high, middle, p;"
        );
    }
    // Of `high` tiles of the expert this is number `middle`; the first ones are a block higher.
    let _ = writeln!(
        text,
        "mov.u32 expert, low;
shl.b32 at, expert, 2;
add.u32 at, at, base;
ld.shared.b32 row, [at+{TABLE}];
ld.shared.b32 y, [at+{ends}];
ld.shared.b32 z, [at+{first_tiles}];
ld.shared.b32 high, [at+{}];
sub.u32 y, y, row;
sub.u32 high, high, z;
sub.u32 middle, row_tile, z;
div.u32 height, y, high;
mul.lo.u32 z, height, high;
sub.u32 z, y, z;
mad.lo.u32 row, middle, height, row;
min.u32 x, middle, z;
add.u32 row, row, x;
shl.b32 row, row, {};
setp.lt.u32 p, middle, z;
@p add.u32 height, height, 1;",
        first_tiles + 4,
        BLOCK_ROWS.ilog2()
    );
    text
}

/// The next stage of the ring.
fn advance() -> String {
    format!(
        "add.u32 stage, stage, 1;
setp.eq.u32 q, stage, {STAGES};
selp.b32 stage, 0, stage, q;
selp.b32 x, 1, 0, q;
xor.b32 phase, phase, x;
"
    )
}

/// The warp that loads: lane 0 the weights, and each lane a block of rows.
fn producer(sizes: &Sizes) -> String {
    let block_bytes = BLOCK_ROWS * ROW_BYTES;
    format!(
        "setp.ne.u32 p, group, 0;
@p bra CONSUMER;
setmaxnreg.dec.sync.aligned.u32 40;
setp.ne.u32 p, warp, 0;
@p bra EXIT;
PRODUCE: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}mad.lo.u32 bytes, height, {block_bytes}, {WEIGHT_BYTES};
mad.lo.u32 y, lane, {BLOCK_ROWS}, row;
setp.lt.u32 is_live, lane, height;
mul.lo.u32 z, column, {feature_groups};
mov.u32 i, 0;
mov.u32 step, 0;
FILL: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
xor.b32 free, phase, 1;
WAIT_EMPTY: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{EMPTY}], free;
@!p bra WAIT_EMPTY;
add.u32 barrier, barrier, {FULL};
@is_first_lane mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], bytes;
bar.warp.sync 0xffffffff;
mad.lo.u32 target, stage, {STAGE_BYTES}, base;
mul.lo.u32 x, step, {DEPTH};
@is_first_lane cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [weights, {{x, i, i, z, expert}}], [barrier];
mad.lo.u32 target, lane, {block_bytes}, target;
add.u32 target, target, {WEIGHT_BYTES};
@is_live cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [row_tensor, {{x, y}}], [barrier];
bar.warp.sync 0xffffffff;
{advance}add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra FILL;
add.u32 tile, tile, stride;
bra PRODUCE;
",
        find = find(sizes),
        feature_groups = sizes.tile_features() / 8,
        advance = advance(),
        steps = sizes.steps(),
    )
}

/// The warpgroups that multiply: a loop for each height, and the end of a tile.
fn consumer(sizes: &Sizes) -> String {
    let heights: Vec<String> = (1..=BLOCKS_MAX).map(|height| format!("HEIGHT{height}")).collect();
    let mut text = format!(
        "CONSUMER: setmaxnreg.inc.sync.aligned.u32 232;
sub.u32 group, group, 1;
and.b32 warp, warp, 3;
// Matrices in shared memory: rows of 128 swizzled bytes, 8 rows every 1024 bytes.
mov.b64 offset, 0x4000004000010000;
mad.lo.u32 x, group, {own_weights}, base;
shr.u32 x, x, 4;
cvt.u64.u32 first_a, x;
or.b64 first_a, first_a, offset;
add.u32 x, base, {WEIGHT_BYTES};
shr.u32 x, x, 4;
cvt.u64.u32 first_b, x;
or.b64 first_b, first_b, offset;
mad.lo.u32 turned, group, 4, warp;
mad.lo.u32 turned, turned, {TURNED_BYTES}, base;
add.u32 turned, turned, {TURNED};
CONSUME: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}mov.u32 step, 0;
sub.u32 x, height, 1;
HEIGHTS: .branchtargets {heights};
brx.idx x, HEIGHTS;
",
        own_weights = WEIGHT_BYTES / 2,
        find = find(sizes),
        heights = heights.join(", "),
    );
    for height in 1..=BLOCKS_MAX {
        text.push_str(&multiply(sizes, height));
    }
    text.push_str("MULTIPLIED:\n");
    text.push_str(&match sizes.parts {
        2 => gated_epilogue(sizes),
        _ => plain_epilogue(sizes),
    });
    text.push_str("STORED: add.u32 tile, tile, stride;\nbra CONSUME;\n");
    text
}

/// The loop over input features for tiles of `height` blocks. A stage is given back when the products
/// of the next are under way.
fn multiply(sizes: &Sizes, height: usize) -> String {
    let (rows, element) = (height * BLOCK_ROWS, sizes.element);
    let firsts = (0..rows).step_by(INSTRUCTION_ROWS);
    let instructions = firsts.map(|first| (first, (rows - first).min(INSTRUCTION_ROWS)));
    let mut text = format!(
        "HEIGHT{height}: setp.ne.u32 later, step, 0;
shl.b32 x, stage, 3;
add.u32 barrier, x, base;
FULL{height}: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{FULL}], phase;
@!p bra FULL{height};
mul.wide.u32 offset, stage, {};
add.u64 stage_a, first_a, offset;
add.u64 stage_b, first_b, offset;
wgmma.fence.sync.aligned;
",
        STAGE_BYTES / 16
    );
    for part in 0..DEPTH / 16 {
        for (first, rows) in instructions.clone() {
            let sums = (first / 2..(first + rows) / 2).map(|n| format!("sum{n}"));
            let sums = sums.collect::<Vec<_>>().join(", ");
            let added = if part == 0 { "later" } else { "1" };
            let _ = writeln!(
                text,
                "add.u64 a, stage_a, {};
add.u64 b, stage_b, {};
wgmma.mma_async.sync.aligned.m64n{rows}k16.f32.{element}.{element} {{{sums}}}, a, b, {added}, 1, 1, 0, 0;",
                2 * part,
                2 * part + first * ROW_BYTES / 16,
            );
        }
    }
    let _ = writeln!(
        text,
        "wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 1;
and.pred q, later, is_first_lane;
shl.b32 x, released, 3;
add.u32 x, x, base;
@q mbarrier.arrive.shared::cta.b64 _, [x+{EMPTY}];
mov.u32 released, stage;
{advance}add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra HEIGHT{height};
wgmma.wait_group.sync.aligned 0;
shl.b32 x, released, 3;
add.u32 x, x, base;
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [x+{EMPTY}];
bra MULTIPLIED;",
        advance = advance(),
        steps = sizes.steps(),
    );
    text
}
