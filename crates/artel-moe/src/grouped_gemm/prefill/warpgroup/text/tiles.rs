//! Which tiles there are: from the experts of blocks to first row and height of each tile.

use std::fmt::Write as _;

use super::super::{BLOCK_ROWS, Side};
use super::{Numbers, Sizes};

/// Waits for the kernel before, and only then lets the next one start: that may so read what is older than
/// both before it waits itself.
pub(super) const WAIT_AND_RELEASE: &str =
    "griddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n";

/// What comes before the assignment is read.
fn hand_over(sizes: &Sizes) -> &'static str {
    match sizes.numbers {
        // Whoever needs what the kernel before leaves waits for it later.
        _ if sizes.is_ahead => "",
        Numbers::Halves(_) => WAIT_AND_RELEASE,
        _ => "griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n",
    }
}

/// Where the blocks of each expert begin and end.
pub(super) fn table(sizes: &Sizes) -> String {
    let (experts, first_blocks, ends) = (sizes.experts, sizes.first_blocks(), sizes.block_ends());
    let threads = sizes.threads();
    format!(
        "mov.u32 expert, thread;
CLEAR: setp.ge.u32 p, expert, {experts};
@p bra CLEARED;
shl.b32 at, expert, 2;
add.u32 at, at, base;
mov.u32 x, 0;
st.shared.b32 [at+{first_blocks}], x;
st.shared.b32 [at+{ends}], x;
add.u32 expert, expert, {threads};
bra CLEAR;
CLEARED:
{hand_over}ld.global.b32 blocks, [rows];
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
@p st.shared.b32 [at+{first_blocks}], i;
setp.ne.and.b32 p, expert, z, q;
@p st.shared.b32 [at+{ends}], x;
add.u32 i, i, {threads};
bra RUNS;
RUNS_KNOWN: bar.sync 0;
",
        hand_over = hand_over(sizes),
        block_shift = BLOCK_ROWS.ilog2(),
        zero = zero(sizes),
    )
}

/// The first tile of each expert, and how many there are.
pub(super) fn count_tiles(sizes: &Sizes) -> String {
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

/// Zeros for the rows of block `i`, by one of all blocks of threads. Nobody reads such rows of products of words.
fn zero(sizes: &Sizes) -> String {
    let threads = sizes.threads();
    if matches!(sizes.numbers, Numbers::Words { .. }) {
        return format!("add.u32 i, i, {threads};\nbra RUNS;\n");
    }
    let bytes = BLOCK_ROWS * sizes.features * sizes.out_bytes();
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
ZEROED: add.u32 i, i, {threads};
bra RUNS;
",
        sixteens = bytes / 16,
    )
}

/// `y` = row tiles of the expert that is number `own` of this lane, `at` its place in the table, `p`
/// whether it exists.
fn tiles_of(sizes: &Sizes, of_lane: usize, own: usize) -> String {
    let (experts, first_blocks, ends) = (sizes.experts, sizes.first_blocks(), sizes.block_ends());
    let blocks_max = sizes.blocks_max();
    format!(
        "mad.lo.u32 expert, lane, {of_lane}, {own};
setp.lt.u32 p, expert, {experts};
shl.b32 at, expert, 2;
add.u32 at, at, base;
mov.u32 x, 0;
mov.u32 y, 0;
@p ld.shared.b32 x, [at+{first_blocks}];
@p ld.shared.b32 y, [at+{ends}];
sub.u32 y, y, x;
add.u32 y, y, {};
div.u32 y, y, {blocks_max};
",
        blocks_max - 1
    )
}

/// `expert`, `column`, first `row` and `height` in blocks of `tile`.
pub(super) fn find(sizes: &Sizes) -> String {
    let (columns, experts) = (sizes.column_tiles(), sizes.experts);
    let (first_blocks, ends) = (sizes.first_blocks(), sizes.block_ends());
    let first_tiles = sizes.first_tiles();
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
    let _ = writeln!(
        text,
        "mov.u32 expert, low;
shl.b32 at, expert, 2;
add.u32 at, at, base;
ld.shared.b32 row, [at+{first_blocks}];
ld.shared.b32 y, [at+{ends}];
ld.shared.b32 z, [at+{first_tiles}];
ld.shared.b32 high, [at+{}];
sub.u32 y, y, row;
sub.u32 high, high, z;
sub.u32 middle, row_tile, z;",
        first_tiles + 4,
    );
    text.push_str(&match sizes.side {
        Side::Short => equal_heights(),
        Side::Long => whole_heights(sizes),
    });
    text
}

/// Of the `high` tiles of `y` blocks from `row` on tile number `middle`: the first ones are a block higher.
fn equal_heights() -> String {
    format!(
        "div.u32 height, y, high;
mul.lo.u32 z, height, high;
sub.u32 z, y, z;
mad.lo.u32 row, middle, height, row;
min.u32 x, middle, z;
add.u32 row, row, x;
shl.b32 row, row, {};
setp.lt.u32 p, middle, z;
@p add.u32 height, height, 1;
",
        BLOCK_ROWS.ilog2()
    )
}

/// The same where only the last tile is lower than others: those are multiplied whole.
fn whole_heights(sizes: &Sizes) -> String {
    let blocks_max = sizes.blocks_max();
    format!(
        "mul.lo.u32 x, middle, {blocks_max};
add.u32 row, row, x;
shl.b32 row, row, {};
sub.u32 x, y, x;
min.u32 height, x, {blocks_max};
",
        BLOCK_ROWS.ilog2()
    )
}
