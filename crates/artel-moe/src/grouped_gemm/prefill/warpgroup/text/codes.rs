//! Products of e4m3 codes.
//!
//! The matrix units align the products of codes to the largest of those they add and drop what lies
//! some 13 bits below. So they sum few input features at once, and float32 sums take what they found
//! times its scales. While one warpgroup adds, the other multiplies.

use std::fmt::Write as _;

use super::super::BLOCK_ROWS;
use super::epilogue::own_feature;
use super::{Scales, Sizes, advance};

/// Input features of an instruction.
const INSTRUCTION_DEPTH: usize = 32;

/// The loop over input features for tiles of `height` blocks, `summed` features at once, from sums of
/// zero. Each height has registers of its own for parts: if they shared them, the assembler would take them
/// for results of several loops and make every instruction wait.
pub(super) fn multiply(sizes: &Sizes, summed: usize, height: usize) -> String {
    let rows = height * BLOCK_ROWS;
    let parts: Vec<_> = (0..rows / 2).map(|n| format!("part{height}_{n}")).collect();
    let parts = parts.join(", ");
    let mut text = format!("HEIGHT{height}:\n");
    for sum in 0..rows / 2 {
        let _ = writeln!(text, "mov.f32 sum{sum}, 0f00000000;");
    }
    if let Some(scales) = sizes.row_scales() {
        text.push_str(&read_scales(sizes, scales, rows));
    }
    let _ = writeln!(
        text,
        "STEP{height}: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
FULL{height}: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{full}], phase;
@!p bra FULL{height};
mul.wide.u32 offset, stage, {stage};
add.u64 stage_a, first_a, offset;
add.u64 stage_b, first_b, offset;",
        full = sizes.full(),
        stage = sizes.stage_bytes() / 16,
    );
    let turns = sizes.depth() / summed;
    for turn in 0..turns {
        text.push_str(&instructions(rows, &parts, turn, summed));
        if turn == 0 && sizes.group_scales().is_some() {
            text.push_str(&load_scales(sizes, rows));
        }
        text.push_str("wgmma.wait_group.sync.aligned 0;\n");
        if turn + 1 == turns {
            text.push_str(&give_back(sizes));
        }
        text.push_str(&add(sizes, height));
    }
    let _ = writeln!(
        text,
        "{advance}add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra STEP{height};",
        advance = advance(sizes),
        steps = sizes.steps(),
    );
    if sizes.row_scales().is_some() {
        text.push_str(&scale(rows));
    }
    text.push_str("bra MULTIPLIED;\n");
    text
}

/// Gives back the stage that `barrier` stands for. The scales that were loaded from it may be under way until they
/// are used, and the copy engine does not wait for them without the fence.
pub(super) fn give_back(sizes: &Sizes) -> String {
    let fence = sizes.group_scales().map_or("", |_| "fence.proxy.async.shared::cta;\n");
    format!(
        "{fence}bar.warp.sync 0xffffffff;
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [barrier+{}];
",
        sizes.empty()
    )
}

/// The products of one sum in the matrix units, `width` wide: `summed` input features of a stage, from zero
/// into the registers `parts`.
pub(super) fn instructions(width: usize, parts: &str, turn: usize, summed: usize) -> String {
    let mut text = String::from("wgmma.fence.sync.aligned;\n");
    for first in (0..summed).step_by(INSTRUCTION_DEPTH) {
        let _ = writeln!(
            text,
            "add.u64 a, stage_a, {at};
add.u64 b, stage_b, {at};
wgmma.mma_async.sync.aligned.m64n{width}k32.f32.e4m3.e4m3 {{{parts}}}, a, b, {added}, 1, 1;",
            at = (turn * summed + first) / 16,
            added = usize::from(first > 0),
        );
    }
    text + "wgmma.commit_group.sync.aligned;\n"
}

/// What the stage has: the scales of this thread's two features, and those of its two rows of each
/// eight.
fn load_scales(sizes: &Sizes, rows: usize) -> String {
    let of_features = match sizes.parts {
        2 => "ld.shared.v2.f32 {first_scale, second_scale}, [x];\n",
        _ => {
            "mad.lo.u32 x, group, 4, x;
ld.shared.f32 first_scale, [x];
mov.f32 second_scale, first_scale;
"
        }
    };
    let mut text = format!(
        "mad.lo.u32 x, stage, {stage}, base;
add.u32 x, x, {scales};
and.b32 y, lane, 3;
mad.lo.u32 at, y, 8, x;
{of_features}",
        stage = sizes.stage_scale_bytes(),
        scales = sizes.scales(),
    );
    for octet in 0..rows / 8 {
        let [first, second] = [2 * octet, 2 * octet + 1].map(|row| format!("scale_of{row}"));
        let _ = writeln!(text, "ld.shared.v2.f32 {{{first}, {second}}}, [at+{}];", 16 + 32 * octet);
    }
    text
}

/// `sum + part * scales`. A thread has two features of two rows in each eight rows.
fn add(sizes: &Sizes, height: usize) -> String {
    let mut text = String::new();
    for sum in 0..height * BLOCK_ROWS / 2 {
        let part = format!("part{height}_{sum}");
        if sizes.group_scales().is_none() {
            let _ = writeln!(text, "add.f32 sum{sum}, sum{sum}, {part};");
            continue;
        }
        let (row, of_feature) = scales_of(sum);
        let _ = writeln!(
            text,
            "mul.f32 scale, scale_of{row}, {of_feature};
fma.rn.f32 sum{sum}, {part}, scale, sum{sum};"
        );
    }
    text
}

/// The scales of a sum: which of the thread's rows it belongs to, and which of its features.
fn scales_of(sum: usize) -> (usize, &'static str) {
    let of_feature = if sum % 4 < 2 { "first_scale" } else { "second_scale" };
    (sum / 4 * 2 + sum % 2, of_feature)
}

/// Scales that cover all input features: those of this thread's two features, and of its two rows of
/// each eight.
fn read_scales(sizes: &Sizes, scales: Scales, rows: usize) -> String {
    let mut text = feature_scales(sizes, scales);
    text.push_str(
        "and.b32 x, lane, 3;
mad.lo.u32 x, x, 2, row;
mad.wide.u32 pointer, x, 4, row_scales;
",
    );
    for octet in 0..rows / 8 {
        let [first, second] = [2 * octet, 2 * octet + 1].map(|row| format!("scale_of{row}"));
        let _ = writeln!(text, "ld.global.v2.f32 {{{first}, {second}}}, [pointer+{}];", 32 * octet);
    }
    text
}

/// `first_scale` and `second_scale` = those of this thread's two features, over all input features.
pub(super) fn feature_scales(sizes: &Sizes, scales: Scales) -> String {
    let step = if sizes.parts == 2 { sizes.features } else { 8 };
    format!(
        "{own_feature}add.u32 y, x, {step};
min.u32 x, x, {last};
min.u32 y, y, {last};
div.u32 x, x, {features};
div.u32 y, y, {features};
mad.lo.u32 x, expert, {of_expert}, x;
mad.lo.u32 y, expert, {of_expert}, y;
mad.wide.u32 pointer, x, 4, weight_scales;
mad.wide.u32 second_pointer, y, 4, weight_scales;
ld.global.f32 first_scale, [pointer];
ld.global.f32 second_scale, [second_pointer];
",
        own_feature = own_feature(sizes),
        last = sizes.parts * sizes.features - 1,
        features = scales.features,
        of_expert = (sizes.parts * sizes.features).div_ceil(scales.features),
    )
}

/// `sum * scales`.
fn scale(rows: usize) -> String {
    let mut text = String::new();
    for sum in 0..rows / 2 {
        let (row, of_feature) = scales_of(sum);
        let _ = writeln!(
            text,
            "mul.f32 scale, scale_of{row}, {of_feature};
mul.f32 sum{sum}, sum{sum}, scale;"
        );
    }
    text
}
