//! The text that adds the parts of a head, a warp for each.
//!
//! A lane has four columns of the head's 128. The sums of parts are under way when their weights are found.
//!
//! (PTX ISA 8.4: `griddepcontrol`, `redux`, `cvt` to `e4m3x2`.)

use std::fmt::Write as _;

use super::Cut as KeyCut;
use crate::linear::single::text::round;

/// Columns of a head.
pub(super) const WIDTH: usize = 128;
/// Parts whose sums are under way at once, at most.
const PARTS_AT_ONCE: usize = 9;

/// `add_entry`: the means of the parts of `heads` heads, of which a block of threads has `block_heads`, or
/// their codes.
pub(super) fn source(keys: KeyCut, [heads, block_heads]: [usize; 2], makes_codes: bool) -> String {
    let mut text = format!(
        ".version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry add_entry(.param .u64 sums_pointer, .param .u64 largests_pointer,
    .param .u64 totals_pointer, .param .u64 lengths_pointer, .param .u64 sinks_pointer,
    .param .u64 out_pointer, .param .u64 codes_pointer, .param .u64 scales_pointer,
    .param .s32 window_value, .param .u32 row_stride, .param .u32 group_stride,
    .param .f32 least_value, .param .f32 most_value)
.reqntid {threads}, 1, 1
{{
.reg .b32 thread, lane, warp, sequence, head, group, i, at, base, table, from, pair0, pair1, whole, bits;
.reg .b64 sums, largests, totals, address, offset, of_parts;
.reg .f32 least, most, top, other, seen, scale;
.reg .b16 low, high;
.reg .s32 length, window, first, share, count, next;
.reg .pred p, is_part;
mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
mov.u32 sequence, %ctaid.x;
mov.u32 head, %ctaid.y;
mad.lo.u32 head, head, {block_heads}, warp;
mad.lo.u32 group, sequence, {heads}, head;
mov.u32 base, shared;
mad.lo.u32 table, warp, {table_bytes}, base;
ld.param.u64 sums, [sums_pointer];
ld.param.u64 largests, [largests_pointer];
ld.param.u64 totals, [totals_pointer];
ld.param.s32 window, [window_value];
ld.param.f32 least, [least_value];
ld.param.f32 most, [most_value];
ld.param.u64 address, [lengths_pointer];
mul.wide.u32 offset, sequence, 4;
add.u64 address, address, offset;
ld.global.s32 length, [address];
{cut}griddepcontrol.launch_dependents;
griddepcontrol.wait;
",
        threads = 32 * block_heads,
        table_bytes = table_bytes(keys),
        cut = keys.text(),
    );
    text.push_str(&first_parts(keys, 0, 0));
    text.push_str(&weights_of_parts(keys, 0));
    text.push_str(&mean_of_parts(keys, 0));
    text.push_str(&round(0));
    text.push_str(&if makes_codes { codes() } else { rows() });
    text.push_str("ret;\n}\n");
    text
}

/// Bytes of shared memory that the weights of the parts of a head take, a lane of the warp each.
pub(crate) fn table_bytes(keys: KeyCut) -> usize {
    4 * keys.parts_max.next_multiple_of(32)
}

/// Stores the lane's four values.
fn rows() -> String {
    format!(
        "mul.wide.u32 offset, group, {bytes};
ld.param.u64 address, [out_pointer];
add.u64 address, address, offset;
mul.wide.u32 offset, lane, 8;
add.u64 address, address, offset;
st.global.v2.b32 [address], {{pair0, pair1}};
",
        bytes = 2 * WIDTH,
    )
}

/// Stores the codes of the lane's four values, and the scale that all lanes share.
fn codes() -> String {
    let mut text = String::from("abs.f32 scale, value0_0;\n");
    for i in 1..4 {
        let _ = writeln!(text, "abs.f32 other, value0_{i};\nmax.f32 scale, scale, other;");
    }
    text.push_str(
        "mov.b32 bits, scale;
redux.sync.max.u32 bits, bits, 0xffffffff;
mov.b32 scale, bits;
div.rn.f32 scale, scale, 0f43E00000;
max.f32 scale, scale, least;
min.f32 scale, scale, most;
",
    );
    for i in 0..4 {
        let _ = writeln!(text, "div.rn.f32 value0_{i}, value0_{i}, scale;");
    }
    let _ = write!(
        text,
        "cvt.rn.satfinite.e4m3x2.f32 low, value0_1, value0_0;
cvt.rn.satfinite.e4m3x2.f32 high, value0_3, value0_2;
mov.b32 bits, {{low, high}};
mul.wide.u32 offset, group, {WIDTH};
ld.param.u64 address, [codes_pointer];
add.u64 address, address, offset;
mul.wide.u32 offset, lane, 4;
add.u64 address, address, offset;
st.global.b32 [address], bits;
setp.eq.u32 p, lane, 0;
ld.param.u32 i, [group_stride];
mul.lo.u32 i, head, i;
ld.param.u32 at, [row_stride];
mad.lo.u32 i, sequence, at, i;
mul.wide.u32 offset, i, 4;
ld.param.u64 address, [scales_pointer];
add.u64 address, address, offset;
@p st.global.f32 [address], scale;
"
    );
    text
}

/// The weights of the parts of the head, zero for those that are not in use, to the warp's table; `seen` is
/// the total weight.
pub(crate) fn weights_of_parts(keys: KeyCut, unit: usize) -> String {
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
            part * WIDTH * 4,
        );
    }
    text
}

/// Asks for the first sums of the head that is `further` than `group`; `pair0` is its first part.
pub(crate) fn first_parts(keys: KeyCut, unit: usize, further: usize) -> String {
    let mut text = format!(
        ".reg .f32 value{unit}_<4>;
add.u32 pair0, group, {};
mul.lo.u32 pair0, pair0, {};
mul.lo.u32 i, pair0, {WIDTH};
mad.lo.u32 i, lane, 4, i;
mul.wide.u32 offset, i, 4;
add.u64 address, sums, offset;
mov.b64 of_parts, address;
mov.s32 next, 0;
",
        further, keys.parts_max,
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
pub(crate) fn mean_of_parts(keys: KeyCut, unit: usize) -> String {
    let at_once = at_once(keys);
    let mut text = format!("mov.u32 from, table;\nPARTS{unit}:\n");
    for part in 0..at_once {
        let _ = writeln!(
            text,
            "add.s32 share, next, {part};
setp.lt.s32 is_part, share, count;
mov.f32 share{unit}_{part}, 0f00000000;
@is_part ld.shared.f32 share{unit}_{part}, [from+{}];",
            part * 4
        );
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
        at_once * WIDTH * 4,
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
