//! Scales of weights in words on their way into the ring.
//!
//! They lie `[words, rows]` for each part of an expert, so a task's are as many short runs as a row has
//! words: each lane of the warp that loads brings sixteen bytes of one, scales of four rows, and the same
//! of other words, until all are there. The barrier of the stage waits for these copies as it does for
//! the weights.
//!
//! (PTX ISA 8.0: `cp.async`, `cp.async.mbarrier.arrive`.)

use std::fmt::Write as _;

use super::layout::{Product, Sizes};
use super::words::has_part_scales;

/// Scales that one lane brings at a time.
const LANE_SCALES: usize = 4;

/// What a task's note says where scales are no runs of their own.
pub(super) const NO_RUNS: &str = "mov.u32 run0, 0;
mov.u32 scale_at0, 0;
mov.u32 scale_at1, 0;
";

/// Brings the scales of rows `row ..` of `expert` to where the weights at `target` end: those of each part
/// `[words, rows of the task]`, then the scales of the parts.
pub(super) fn copy_word_scales(sizes: &Sizes, product: &Product, parts: usize) -> String {
    let (scales, all_rows) = match parts {
        2 => ("scales1", sizes.second.columns),
        _ => ("scales2", sizes.first.columns),
    };
    let (words, rows) = (product.scale_words(), product.task_rows() / parts);
    let lanes = rows / LANE_SCALES;
    let of_expert = 4 * parts * words * all_rows;
    let mut text = format!(
        "shr.u32 x, lane, {};
and.b32 y, lane, {};
mad.lo.u32 x, x, {all_rows}, row;
mad.lo.u32 x, y, {LANE_SCALES}, x;
mul.wide.u32 scale0, expert, {of_expert};
add.u64 scale0, scale0, {scales};
mul.wide.u32 pointer, x, 4;
add.u64 scale0, scale0, pointer;
mad.lo.u32 x, lane, 16, target;
",
        lanes.ilog2(),
        lanes - 1,
    );
    let runs = words * lanes;
    for part in 0..parts {
        for first in (0..runs).step_by(32) {
            let only = if first + 32 > runs {
                let _ = writeln!(text, "setp.lt.u32 p, lane, {};", runs - first);
                "@p "
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "{only}cp.async.cg.shared.global.L2::128B [x+{}], [scale0+{}], 16;",
                product.task_bytes() + 16 * (part * runs + first),
                4 * all_rows * (part * words + first / lanes),
            );
        }
    }
    if product.format.is_some_and(|format| has_part_scales(format.code)) {
        let _ = writeln!(
            text,
            "mad.lo.u32 y, expert, {parts}, lane;
mul.wide.u32 pointer, y, 4;
add.u64 pointer, pointer, {scales};
add.u64 pointer, pointer, {};
mad.lo.u32 x, lane, 4, target;
setp.lt.u32 p, lane, {parts};
@p cp.async.ca.shared.global [x+{}], [pointer], 4;",
            sizes.experts * of_expert,
            product.task_bytes() + 16 * parts * runs,
        );
    }
    let _ = writeln!(
        text,
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [barrier+{}];",
        sizes.places().full
    );
    text
}
