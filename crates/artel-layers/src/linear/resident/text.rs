//! The kernel's text.
//!
//! Weights and rows lie in shared memory in tiles of 128 inputs, as the matrix instructions of a warpgroup
//! read them: 8 rows of 128 bytes, whose sixteen bytes change places by the number of the row. Rows are on
//! the side of 64. While a group of inputs is added up times its scales, the next one is multiplied.
//!
//! (PTX ISA 8.4: `wgmma` of e4m3, `cp.async`, `fence.proxy.async`, `griddepcontrol`.)

use std::fmt::Write as _;

use super::{Cut, FEW_ROWS_MAX, GROUP};

/// Rows that the threads load at once, eight of them sixteen bytes each of the same row.
const ROWS_AT_ONCE: usize = 32;
/// Inputs of a matrix instruction.
const DEPTH: usize = 32;

/// `multiply_entry`: parts `[parts, part rows, N]`, codes and scales of rows, those of weights, the rows in
/// use, the rows of a part, and from one group's scales of rows to the next one's.
pub(super) fn source(cut: &Cut) -> String {
    let mut text = begin(cut);
    text.push_str(&load_weights(cut));
    text.push_str(&load_rows(cut));
    text.push_str(&products(cut, 0));
    for group in 0..cut.groups() {
        let is_last = group + 1 == cut.groups();
        if !is_last {
            text.push_str(&products(cut, group + 1));
        }
        let _ = writeln!(text, "wgmma.wait_group.sync.aligned {};", usize::from(!is_last));
        text.push_str(&add(cut, group));
    }
    text.push_str(&store(cut));
    text.push_str("ret;\n}\n");
    text
}

/// Who one is, and where one's numbers lie.
fn begin(cut: &Cut) -> String {
    let Cut { inputs, columns, .. } = *cut;
    let (groups, own) = (cut.groups(), cut.own_columns());
    format!(
        ".version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 shared[];
.visible .entry multiply_entry(.param .u64 out_pointer, .param .u64 rows_pointer,
    .param .u64 row_scales_pointer, .param .u64 weights_pointer, .param .u64 weight_scales_pointer,
    .param .u32 tokens_value, .param .u32 part_rows_value, .param .u32 scale_rows_value)
.reqntid {threads}, 1, 1
{{
.reg .b32 thread, lane, warp, warpgroup, base, tokens, part, first, first_group, row, column, i, at, edge;
.reg .b64 out, rows, row_scales, weights, weight_scales, address, offset, source;
.reg .b64 rows_tile, weights_tile, a, b, first_out, second_out;
.reg .pred p, q;
.reg .f32 low0, low1, high0, high1, factor0, factor1;
.reg .f32 sum<{sums}>, even<{sums}>, odd<{sums}>;
.reg .f32 low_scale<{groups}>, high_scale<{groups}>, first_scale<{groups}>, second_scale<{groups}>;
mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
shr.u32 warpgroup, warp, 2;
and.b32 warp, warp, 3;
mov.u32 base, shared;
mov.u32 part, %ctaid.z;
mul.lo.u32 first_group, part, {groups};
mov.u32 first, %ctaid.x;
mul.lo.u32 first, first, {columns};
ld.param.u64 out, [out_pointer];
ld.param.u64 rows, [rows_pointer];
ld.param.u64 row_scales, [row_scales_pointer];
ld.param.u64 weights, [weights_pointer];
ld.param.u64 weight_scales, [weight_scales_pointer];
ld.param.u32 tokens, [tokens_value];
shr.u32 row, thread, 3;
and.b32 column, thread, 7;
and.b32 i, row, 7;
xor.b32 i, i, column;
shl.b32 i, i, 4;
mad.lo.u32 at, row, {GROUP}, i;
add.u32 at, at, base;
mul.wide.u32 source, row, {inputs};
mul.lo.u32 i, first_group, {GROUP};
mad.lo.u32 i, column, 16, i;
cvt.u64.u32 offset, i;
add.u64 source, source, offset;
mad.lo.u32 first, warpgroup, {own}, first;
",
        threads = super::THREADS,
        sums = own / 2,
    )
}

/// Asks for the weights of the block and for their scales: those of the outputs of a warpgroup are two at
/// most, which change at output `edge`.
fn load_weights(cut: &Cut) -> String {
    let Cut { inputs, outputs, columns, .. } = *cut;
    let own = cut.own_columns();
    let mut text = format!(
        "mov.u32 i, %ctaid.x;
mul.lo.u32 i, i, {columns};
mul.wide.u32 offset, i, {inputs};
add.u64 address, weights, source;
add.u64 address, address, offset;
"
    );
    for turn in 0..columns / ROWS_AT_ONCE {
        for group in 0..cut.groups() {
            let _ = writeln!(
                text,
                "cp.async.cg.shared.global [at+{}], [address+{}], 16;",
                group * columns * GROUP + turn * ROWS_AT_ONCE * GROUP,
                group * GROUP,
            );
        }
        let _ = writeln!(text, "add.u64 address, address, {};", ROWS_AT_ONCE * inputs);
    }
    let _ = write!(
        text,
        "shr.u32 i, first, {group_log};
shl.b32 edge, i, {group_log};
add.u32 edge, edge, {GROUP};
sub.u32 edge, edge, first;
mad.lo.u32 i, i, {scales}, first_group;
mul.wide.u32 offset, i, 4;
add.u64 address, weight_scales, offset;
add.u32 i, first, {last};
min.u32 i, i, {last_output};
shr.u32 i, i, {group_log};
mad.lo.u32 i, i, {scales}, first_group;
mul.wide.u32 offset, i, 4;
add.u64 offset, weight_scales, offset;
",
        group_log = GROUP.ilog2(),
        scales = inputs / GROUP,
        last = own - 1,
        last_output = outputs - 1,
    );
    for group in 0..cut.groups() {
        let _ = writeln!(
            text,
            "ld.global.nc.f32 low_scale{group}, [address+{at}];
ld.global.nc.f32 high_scale{group}, [offset+{at}];",
            at = 4 * group
        );
    }
    text + "griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n"
}

/// Asks for the rows in use, one group of inputs after the other, and for the scales of the thread's two
/// rows.
fn load_rows(cut: &Cut) -> String {
    let inputs = cut.inputs;
    let mut text = format!(
        "add.u64 address, rows, source;
setp.lt.u32 p, row, tokens;
add.u32 i, row, {ROWS_AT_ONCE};
setp.lt.u32 q, i, tokens;
"
    );
    for group in 0..cut.groups() {
        for (turn, live) in ["p", "q"].into_iter().enumerate() {
            let _ = writeln!(
                text,
                "@{live} cp.async.cg.shared.global [at+{}], [address+{}], 16;",
                cut.rows_at() + group * FEW_ROWS_MAX * GROUP + turn * ROWS_AT_ONCE * GROUP,
                turn * ROWS_AT_ONCE * inputs + group * GROUP,
            );
        }
        text.push_str("cp.async.commit_group;\n");
    }
    text.push_str(
        "shr.u32 row, lane, 2;
mad.lo.u32 row, warp, 16, row;
ld.param.u32 i, [scale_rows_value];
mul.wide.u32 offset, i, 4;
mad.lo.u32 i, first_group, i, row;
mul.wide.u32 address, i, 4;
add.u64 address, address, row_scales;
",
    );
    for group in 0..cut.groups() {
        let _ = writeln!(
            text,
            "ld.global.f32 first_scale{group}, [address];
ld.global.f32 second_scale{group}, [address+32];
add.u64 address, address, offset;"
        );
    }
    let _ = writeln!(
        text,
        "mov.b64 offset, 0x4000004000010000;
add.u32 i, base, {rows_at};
shr.u32 i, i, 4;
cvt.u64.u32 rows_tile, i;
add.u64 rows_tile, rows_tile, offset;
mad.lo.u32 i, warpgroup, {own_bytes}, base;
shr.u32 i, i, 4;
cvt.u64.u32 weights_tile, i;
add.u64 weights_tile, weights_tile, offset;",
        rows_at = cut.rows_at(),
        own_bytes = cut.own_columns() * GROUP,
    );
    for sum in 0..cut.own_columns() / 2 {
        let _ = writeln!(text, "mov.f32 sum{sum}, 0f00000000;");
    }
    text
}

fn names(cut: &Cut, group: usize) -> &'static str {
    debug_assert!(group < cut.groups());
    if group.is_multiple_of(2) { "even" } else { "odd" }
}

/// Starts the products of a group of inputs.
fn products(cut: &Cut, group: usize) -> String {
    let own = cut.own_columns();
    let name = names(cut, group);
    let parts: Vec<String> = (0..own / 2).map(|n| format!("{name}{n}")).collect();
    let parts = parts.join(", ");
    let mut text = format!(
        "cp.async.wait_group {};
fence.proxy.async.shared::cta;
bar.sync 0;
wgmma.fence.sync.aligned;
",
        cut.groups() - 1 - group
    );
    for step in 0..GROUP / DEPTH {
        let _ = writeln!(
            text,
            "add.u64 a, rows_tile, {a};
add.u64 b, weights_tile, {b};
wgmma.mma_async.sync.aligned.m64n{own}k32.f32.e4m3.e4m3 {{{parts}}}, a, b, {added}, 1, 1;",
            a = (group * FEW_ROWS_MAX * GROUP + step * DEPTH) / 16,
            b = (group * cut.columns * GROUP + step * DEPTH) / 16,
            added = usize::from(step > 0),
        );
    }
    text + "wgmma.commit_group.sync.aligned;\n"
}

/// `sum + product * scales`. A thread has two outputs of each eight, of two rows.
fn add(cut: &Cut, group: usize) -> String {
    let name = names(cut, group);
    let mut text = String::new();
    for (row, of_row) in ["first", "second"].into_iter().enumerate() {
        for of_outputs in ["low", "high"] {
            let _ = writeln!(
                text,
                "mul.rn.f32 {of_outputs}{row}, {of_row}_scale{group}, {of_outputs}_scale{group};"
            );
        }
    }
    for octet in 0..cut.own_columns() / 8 {
        let _ = writeln!(
            text,
            "setp.gt.u32 p, edge, {};
selp.f32 factor0, low0, high0, p;
selp.f32 factor1, low1, high1, p;",
            8 * octet
        );
        for n in 0..4 {
            let (sum, row) = (4 * octet + n, n / 2);
            let _ = writeln!(text, "fma.rn.f32 sum{sum}, {name}{sum}, factor{row}, sum{sum};");
        }
    }
    text
}

/// Stores the rows in use of the part.
fn store(cut: &Cut) -> String {
    let outputs = cut.outputs;
    let mut text = format!(
        "setp.lt.u32 p, row, tokens;
ld.param.u32 i, [part_rows_value];
mad.lo.u32 i, part, i, row;
mul.wide.u32 first_out, i, {row_bytes};
and.b32 i, lane, 3;
mad.lo.u32 i, i, 2, first;
mul.wide.u32 offset, i, 4;
add.u64 first_out, first_out, offset;
add.u64 first_out, first_out, out;
add.u64 second_out, first_out, {next_row};
add.u32 i, row, 8;
setp.lt.u32 q, i, tokens;
",
        row_bytes = 4 * outputs,
        next_row = 8 * 4 * outputs,
    );
    for octet in 0..cut.own_columns() / 8 {
        let at = 4 * octet;
        let _ = writeln!(
            text,
            "@p st.global.v2.f32 [first_out+{bytes}], {{sum{at}, sum{}}};
@q st.global.v2.f32 [second_out+{bytes}], {{sum{}, sum{}}};",
            at + 1,
            at + 2,
            at + 3,
            bytes = 32 * octet,
        );
    }
    text
}
