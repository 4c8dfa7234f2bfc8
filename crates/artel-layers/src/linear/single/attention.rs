//! The text of the kernel that adds parts of attention.

use std::fmt::Write as _;

use super::text::{Cut, GROUP, add, head, multiply, round, to_codes, weights};
use crate::attention::decode::Cut as KeyCut;

/// Parts whose sums are under way at once, at most.
const PARTS_AT_ONCE: usize = 9;

/// `out[part, n]` = the product of a part of the heads, which are the means of parts of attention, and the
/// weights: `project_entry`. A head is a group.
pub(super) fn of_attention(cut: &Cut, keys: KeyCut) -> String {
    let parameters =
        ".param .u64 sums_pointer, .param .u64 largests_pointer, .param .u64 totals_pointer,
    .param .u64 lengths_pointer, .param .u64 weights_pointer, .param .u64 scales_pointer,
    .param .u64 out_pointer, .param .s32 window_value, .param .f32 least_value, .param .f32 most_value";
    let mut text = head("project", parameters, cut);
    text.push_str(
        ".reg .b64 sums, largests, totals, lengths, out, of_parts;
.reg .f32 least, most, top, other, seen, sum_weight, mean;
.reg .b32 pair0, pair1, whole, kept, table, from;
.reg .s32 length, window, first, share, count, next;
.reg .pred is_part;
ld.param.u64 sums, [sums_pointer];
ld.param.u64 largests, [largests_pointer];
ld.param.u64 totals, [totals_pointer];
ld.param.u64 lengths, [lengths_pointer];
ld.param.u64 out, [out_pointer];
ld.param.s32 window, [window_value];
ld.param.f32 least, [least_value];
ld.param.f32 most, [most_value];
",
    );
    text.push_str(&weights(cut));
    let _ = write!(
        text,
        "ld.global.s32 length, [lengths];
{}mad.lo.u32 table, warp, {table_bytes}, base;
add.u32 table, table, {table_at};
griddepcontrol.launch_dependents;
griddepcontrol.wait;
",
        keys.text(),
        table_bytes = 4 * keys.parts_max,
        table_at = cut.shared_bytes(),
    );
    for unit in 0..cut.groups {
        text.push_str(&first_parts(cut, keys, unit));
        text.push_str(&weights_of_parts(keys, unit));
        text.push_str(&mean_of_parts(keys, unit));
        text.push_str(&round(unit));
        text.push_str(&to_codes(unit));
    }
    text.push_str(&multiply(cut));
    text.push_str(&add(
        cut,
        &format!(
            "mad.lo.u32 i, part, {}, i;
mul.wide.u32 offset, i, 4;
add.u64 address, out, offset;
st.global.f32 [address], sum;",
            cut.outputs
        ),
    ));
    text
}

/// Bytes of shared memory of [`of_attention`].
pub(super) fn attention_bytes(cut: &Cut, keys: KeyCut) -> usize {
    cut.shared_bytes() + cut.warps() * 4 * keys.parts_max
}

/// The weights of the parts of a head, zero for those that are not in use, to the warp's table; `seen` is
/// the total weight.
fn weights_of_parts(keys: KeyCut, unit: usize) -> String {
    let chunks = keys.parts_max.div_ceil(32);
    let mut text = format!(
        ".reg .f32 top{unit}_<{chunks}>, total{unit}_<{chunks}>;
mov.f32 top, 0fFF800000;
",
    );
    for chunk in 0..chunks {
        let _ = writeln!(
            text,
            "add.u32 i, lane, {first};
setp.lt.s32 is_part, i, count;
add.u32 i, i, pair0;
mul.wide.u32 offset, i, 4;
mov.f32 top{unit}_{chunk}, 0fFF800000;
mov.f32 total{unit}_{chunk}, 0f00000000;
add.u64 address, largests, offset;
@is_part ld.global.f32 top{unit}_{chunk}, [address];
add.u64 address, totals, offset;
@is_part ld.global.f32 total{unit}_{chunk}, [address];
max.f32 top, top, top{unit}_{chunk};",
            first = 32 * chunk,
        );
    }
    for distance in [16, 8, 4, 2, 1] {
        let _ = writeln!(
            text,
            "shfl.sync.bfly.b32 other, top, {distance}, 31, 0xffffffff;
max.f32 top, top, other;"
        );
    }
    text.push_str(
        "setp.eq.f32 p, top, 0fFF800000;
@p mov.f32 top, 0f00000000;
mov.f32 seen, 0f00000000;
shl.b32 at, lane, 2;
add.u32 at, at, table;
",
    );
    for chunk in 0..chunks {
        let _ = writeln!(
            text,
            "sub.rn.f32 other, top{unit}_{chunk}, top;
ex2.approx.f32 other, other;
fma.rn.f32 seen, other, total{unit}_{chunk}, seen;
st.shared.f32 [at+{}], other;",
            128 * chunk,
        );
    }
    for distance in [16, 8, 4, 2, 1] {
        let _ = writeln!(
            text,
            "shfl.sync.bfly.b32 other, seen, {distance}, 31, 0xffffffff;
add.rn.f32 seen, seen, other;"
        );
    }
    text.push_str("bar.warp.sync 0xffffffff;\n");
    text
}

fn at_once(keys: KeyCut) -> usize {
    PARTS_AT_ONCE.min(keys.parts_max)
}

/// Asks for the sums of parts from `next` on, four columns a lane.
fn load_parts(keys: KeyCut, unit: usize) -> String {
    let mut text = String::new();
    for part in 0..at_once(keys) {
        let name = format!("of{unit}_{part}");
        for i in 0..4 {
            let _ = writeln!(text, "mov.f32 {name}_{i}, 0f00000000;");
        }
        let _ = writeln!(
            text,
            "add.s32 share, next, {part};
setp.lt.s32 is_part, share, count;
@is_part ld.global.v4.f32 {{{name}_0, {name}_1, {name}_2, {name}_3}}, [address+{}];",
            part * GROUP * 4,
        );
    }
    text
}

/// Asks for the first sums; `pair0` is the first part of the head.
fn first_parts(cut: &Cut, keys: KeyCut, unit: usize) -> String {
    let mut text = format!(
        ".reg .f32 value{unit}_<4>;
add.u32 pair0, group, {};
mul.lo.u32 pair0, pair0, {};
mul.lo.u32 i, pair0, {GROUP};
mad.lo.u32 i, lane, 4, i;
mul.wide.u32 offset, i, 4;
add.u64 address, sums, offset;
mov.b64 of_parts, address;
mov.s32 next, 0;
",
        unit * cut.across,
        keys.parts_max,
    );
    for i in 0..4 {
        let _ = writeln!(text, "mov.f32 value{unit}_{i}, 0f00000000;");
    }
    for part in 0..at_once(keys) {
        let _ = writeln!(text, ".reg .f32 of{unit}_{part}_<4>, share{unit}_{part};");
    }
    text.push_str(&load_parts(keys, unit));
    text
}

/// The mean of the values that a head has seen, four columns a lane: `value{unit}_0` and on.
fn mean_of_parts(keys: KeyCut, unit: usize) -> String {
    let at_once = at_once(keys);
    let mut text = format!("mov.u32 from, table;\nPARTS{unit}:\n");
    for part in 0..at_once {
        let _ = writeln!(text, "ld.shared.f32 share{unit}_{part}, [from+{}];", part * 4);
    }
    for part in 0..at_once {
        for i in 0..4 {
            let _ = writeln!(
                text,
                "fma.rn.f32 value{unit}_{i}, of{unit}_{part}_{i}, share{unit}_{part}, value{unit}_{i};"
            );
        }
    }
    let _ = writeln!(
        text,
        "add.s32 next, next, {at_once};
setp.ge.s32 p, next, count;
@p bra SUMMED{unit};
add.u64 of_parts, of_parts, {};
mov.b64 address, of_parts;
add.u32 from, from, {};
{}bra PARTS{unit};
SUMMED{unit}:
setp.eq.f32 p, seen, 0f00000000;",
        at_once * GROUP * 4,
        at_once * 4,
        load_parts(keys, unit),
    );
    for i in 0..4 {
        let _ = writeln!(
            text,
            "div.rn.f32 value{unit}_{i}, value{unit}_{i}, seen;
@p mov.f32 value{unit}_{i}, 0f00000000;"
        );
    }
    text
}
