//! Products with one set of sums: those of 16-bit numbers, and of integers, which are exact.

use std::fmt::Write as _;

use super::super::{BLOCK_ROWS, ROW_BYTES};
use super::{Numbers, Sizes, advance, integers};

/// Most rows that one instruction takes; the rest takes a second one. Any other cut makes the assembler
/// wait after every instruction, since results of several loops then overlap in registers.
const INSTRUCTION_ROWS: usize = 256;

/// Bytes of a row that one instruction takes.
const INSTRUCTION_BYTES: usize = 32;

/// The loop over input features for tiles of `height` blocks. A stage is given back when the products
/// of the next are under way.
pub(super) fn multiply(sizes: &Sizes, height: usize) -> String {
    let (kind, name, order) = match sizes.numbers {
        Numbers::Integers { .. } => ("k32.s32.s8.s8".to_owned(), integers::SUM, ""),
        Numbers::Halves(element) => (format!("k16.f32.{element}.{element}"), "sum", ", 1, 1, 0, 0"),
        Numbers::Codes { .. } | Numbers::Words { .. } => {
            panic!("this is a bug: other weights have loops of their own")
        }
    };
    let (full, empty) = (sizes.full(), sizes.empty());
    let rows = height * BLOCK_ROWS;
    let firsts = (0..rows).step_by(INSTRUCTION_ROWS);
    let instructions = firsts.map(|first| (first, (rows - first).min(INSTRUCTION_ROWS)));
    let mut text = format!(
        "HEIGHT{height}: setp.ne.u32 later, step, 0;
shl.b32 x, stage, 3;
add.u32 barrier, x, base;
FULL{height}: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{full}], phase;
@!p bra FULL{height};
mul.wide.u32 offset, stage, {};
add.u64 stage_a, first_a, offset;
add.u64 stage_b, first_b, offset;
wgmma.fence.sync.aligned;
",
        sizes.stage_bytes() / 16
    );
    for part in 0..ROW_BYTES / INSTRUCTION_BYTES {
        for (first, rows) in instructions.clone() {
            let sums = (first / 2..(first + rows) / 2).map(|n| format!("{name}{n}"));
            let sums = sums.collect::<Vec<_>>().join(", ");
            let added = if part == 0 { "later" } else { "1" };
            let _ = writeln!(
                text,
                "add.u64 a, stage_a, {};
add.u64 b, stage_b, {};
wgmma.mma_async.sync.aligned.m64n{rows}{kind} {{{sums}}}, a, b, {added}{order};",
                part * INSTRUCTION_BYTES / 16,
                (part * INSTRUCTION_BYTES + first * ROW_BYTES) / 16,
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
@q mbarrier.arrive.shared::cta.b64 _, [x+{empty}];
mov.u32 released, stage;
{advance}add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra HEIGHT{height};
wgmma.wait_group.sync.aligned 0;
shl.b32 x, released, 3;
add.u32 x, x, base;
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [x+{empty}];
bra MULTIPLIED;",
        advance = advance(sizes),
        steps = sizes.steps(),
    );
    text
}
