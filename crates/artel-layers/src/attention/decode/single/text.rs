//! The text of the kernel.
//!
//! A warp has the 16 keys of a block of the cache. Logits are matrix products of keys and the query heads
//! that share them; a product does not depend on the order of its columns, so the columns that an
//! instruction wants of a lane are some that lie beside each other. Values are weighed lane by lane, four
//! columns each.
//!
//! (PTX ISA 8.0: `mma.m16n8k16` of bf16, `griddepcontrol`.)

use std::fmt::Write as _;

use super::Cut;

/// Elements of a head.
pub(super) const HEAD: usize = 128;
/// Query heads of a key-value head at most: columns of a matrix instruction.
pub(super) const HEADS_MAX: usize = 8;
/// Warps of a block.
pub(super) const WARPS: usize = 4;
/// Keys of a warp: a block of the cache.
const KEYS: usize = 16;
/// Bytes of a warp's weights of keys and of its corrections.
const WEIGHTS_BYTES: usize = (KEYS + 1) * HEADS_MAX * 4;
/// Where largest logits, total weights and sums of all warps begin.
const TOPS: usize = 0;
const TOTALS: usize = TOPS + WARPS * HEADS_MAX * 4;
const SUMS: usize = TOTALS + WARPS * HEADS_MAX * 4;
const WEIGHTS: usize = SUMS + WARPS * HEADS_MAX * HEAD * 4;
/// Bytes of shared memory.
pub(super) const SHARED_BYTES: usize = WEIGHTS + WARPS * WEIGHTS_BYTES;

/// The kernel for `heads` query heads of each of `kv_heads`, `attend_entry`.
pub(super) fn source(kv_heads: usize, heads: usize, cut: Cut) -> String {
    let mut text = String::from(HEADER);
    declare(&mut text);
    text.push_str(&cut.text());
    let _ = write!(
        text,
        "mov.u32 part, %ctaid.y;
mad.lo.s32 start, part, share, first;
add.s32 end, start, share;
min.s32 end, end, length;
sub.s32 seen, length, window;
max.s32 seen, seen, 0;
griddepcontrol.launch_dependents;
setp.ge.s32 p, start, end;
@p bra DONE;
sub.s32 newest, length, 1;
mad.lo.s32 key, warp, {KEYS}, start;
min.s32 limit, end, newest;
{}griddepcontrol.wait;
{}mov.s32 seen_now, newest;
mov.s32 limit, end;
{}STEP:
{}",
        load(kv_heads, "seen"),
        queries(heads),
        load_rows("seen_now"),
        logits(),
    );
    text.push_str(&weigh());
    let _ = write!(
        text,
        "add.s32 start, start, {step};
setp.ge.s32 p, start, end;
@p bra MERGE;
add.s32 key, key, {step};
bar.warp.sync 0xffffffff;
{}bra STEP;
MERGE:
{}DONE: ret;
}}
",
        load(kv_heads, "seen"),
        merge(heads, cut.parts_max),
        step = WARPS * KEYS,
    );
    text
}

const HEADER: &str = ".version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry attend_entry(.param .u64 queries_pointer, .param .u64 keys_pointer,
    .param .u64 values_pointer, .param .u64 tables_pointer, .param .u64 lengths_pointer,
    .param .u64 sums_pointer, .param .u64 largests_pointer, .param .u64 totals_pointer,
    .param .s32 window_value, .param .f32 scale_value)
.reqntid 128, 1, 1
{
.reg .b32 thread, lane, warp, row, quarter, head, part, block, i, at, base, table, whole;
.reg .s32 length, window, first, share, count, start, end, seen, seen_now, newest, key, limit, mine;
.reg .b64 address, offset, queries, keys, values, tables, lengths, sums, largests, totals, begin;
.reg .pred p, q, low, high;
.reg .f32 scale, top0, top1, total0, total1, found, other, relative, fresh;
.reg .f32 c0, c1, c2, c3, kept0, kept1, f0, f1, f2, f3;
mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
shr.u32 row, lane, 2;
and.b32 quarter, lane, 3;
mov.u32 head, %ctaid.x;
mov.u32 base, shared;
ld.param.u64 queries, [queries_pointer];
ld.param.u64 keys, [keys_pointer];
ld.param.u64 values, [values_pointer];
ld.param.u64 tables, [tables_pointer];
ld.param.u64 lengths, [lengths_pointer];
ld.param.u64 sums, [sums_pointer];
ld.param.u64 largests, [largests_pointer];
ld.param.u64 totals, [totals_pointer];
ld.param.s32 window, [window_value];
ld.param.f32 scale, [scale_value];
ld.global.s32 length, [lengths];
mov.f32 top0, 0fFF800000;
mov.f32 top1, 0fFF800000;
mov.f32 total0, 0f00000000;
mov.f32 total1, 0f00000000;
";

/// Registers of keys, values, queries and sums; sums are zeros.
fn declare(text: &mut String) {
    for window in 0..4 {
        let _ = writeln!(text, ".reg .b32 q{window}_<4>, low{window}_<4>, high{window}_<4>;");
    }
    let _ = writeln!(text, ".reg .b32 v<{}>;", 2 * KEYS);
    for head in 0..HEADS_MAX {
        let _ = writeln!(text, ".reg .f32 sum{head}_<4>, share{head};");
        for i in 0..4 {
            let _ = writeln!(text, "mov.f32 sum{head}_{i}, 0f00000000;");
        }
    }
}

/// Finds the block of the warp's keys and asks for those from `from` up to `limit`; zeros stand for
/// others.
fn load(kv_heads: usize, from: &str) -> String {
    let mut text = format!(
        "setp.lt.s32 p, key, end;
mov.u32 block, 0;
shr.s32 i, key, {keys_log};
mul.wide.s32 offset, i, 4;
add.u64 address, tables, offset;
@p ld.global.b32 block, [address];
mad.lo.s32 block, block, {kv_heads}, head;
mul.wide.s32 begin, block, {block_bytes};
",
        keys_log = KEYS.ilog2(),
        block_bytes = KEYS * HEAD * 2,
    );
    for window in 0..4 {
        for i in 0..4 {
            let _ = writeln!(text, "mov.b32 low{window}_{i}, 0;\nmov.b32 high{window}_{i}, 0;");
        }
    }
    for number in 0..2 * KEYS {
        let _ = writeln!(text, "mov.b32 v{number}, 0;");
    }
    text.push_str(&load_rows(from));
    text
}

/// Asks for the warp's keys from `from` up to `limit` in the block that was found.
fn load_rows(from: &str) -> String {
    let mut text = format!(
        "mad.lo.u32 i, row, {row_bytes}, 0;
mad.lo.u32 i, quarter, 16, i;
cvt.u64.u32 offset, i;
add.u64 address, keys, begin;
add.u64 address, address, offset;
add.s32 mine, key, row;
setp.lt.s32 low, mine, limit;
setp.ge.and.s32 low, mine, {from}, low;
add.s32 mine, mine, 8;
setp.lt.s32 high, mine, limit;
setp.ge.and.s32 high, mine, {from}, high;
",
        row_bytes = HEAD * 2,
    );
    for window in 0..4 {
        for (half, at) in [("low", 0), ("high", 8 * HEAD * 2)] {
            let name = format!("{half}{window}");
            let _ = writeln!(
                text,
                "@{half} ld.global.L1::no_allocate.v4.b32 {{{name}_0, {name}_1, {name}_2, {name}_3}}, [address+{}];",
                at + 64 * window,
            );
        }
    }
    text.push_str(
        "mul.wide.u32 offset, lane, 8;
add.u64 address, values, begin;
add.u64 address, address, offset;
",
    );
    for number in 0..KEYS {
        let _ = writeln!(
            text,
            "add.s32 mine, key, {number};
setp.lt.s32 p, mine, limit;
setp.ge.and.s32 p, mine, {from}, p;
@p ld.global.L1::no_allocate.v2.b32 {{v{}, v{}}}, [address+{}];",
            2 * number,
            2 * number + 1,
            number * HEAD * 2,
        );
    }
    text
}

/// Asks for the query heads.
fn queries(heads: usize) -> String {
    let mut text = format!(
        "setp.lt.u32 p, row, {heads};
mad.lo.u32 i, head, {heads}, row;
mul.lo.u32 i, i, {row_bytes};
mad.lo.u32 i, quarter, 16, i;
cvt.u64.u32 offset, i;
add.u64 address, queries, offset;
",
        row_bytes = HEAD * 2,
    );
    for window in 0..4 {
        for i in 0..4 {
            let _ = writeln!(text, "mov.b32 q{window}_{i}, 0;");
        }
        let _ = writeln!(
            text,
            "@p ld.global.v4.b32 {{q{window}_0, q{window}_1, q{window}_2, q{window}_3}}, [address+{}];",
            64 * window,
        );
    }
    text
}

/// Logits of the warp's keys, their largest, and their weights to shared memory.
fn logits() -> String {
    let mut text = String::new();
    for i in 0..4 {
        let _ = writeln!(text, "mov.f32 c{i}, 0f00000000;");
    }
    for window in 0..4 {
        for word in [0, 2] {
            let next = word + 1;
            let _ = writeln!(
                text,
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{c0, c1, c2, c3}}, {{low{window}_{word}, high{window}_{word}, low{window}_{next}, high{window}_{next}}}, {{q{window}_{word}, q{window}_{next}}}, {{c0, c1, c2, c3}};"
            );
        }
    }
    text.push_str(
        "add.s32 mine, key, row;
setp.lt.s32 low, mine, end;
setp.ge.and.s32 low, mine, seen, low;
add.s32 mine, mine, 8;
setp.lt.s32 high, mine, end;
setp.ge.and.s32 high, mine, seen, high;
",
    );
    for (i, half) in [(0, "low"), (1, "low"), (2, "high"), (3, "high")] {
        let _ = writeln!(text, "mul.rn.f32 c{i}, c{i}, scale;\n@!{half} mov.f32 c{i}, 0fFF800000;");
    }
    text.push_str(&soften());
    let _ = writeln!(
        text,
        "mad.lo.u32 table, warp, {WEIGHTS_BYTES}, base;
add.u32 table, table, {WEIGHTS};
mad.lo.u32 at, quarter, 8, table;
mad.lo.u32 i, row, {head_bytes}, at;
st.shared.v2.f32 [i], {{c0, c1}};
st.shared.v2.f32 [i+{}], {{c2, c3}};
setp.eq.u32 p, row, 0;
@p st.shared.v2.f32 [at+{}], {{kept0, kept1}};
bar.warp.sync 0xffffffff;",
        8 * HEADS_MAX * 4,
        KEYS * HEADS_MAX * 4,
        head_bytes = HEADS_MAX * 4,
    );
    text
}

/// The largest logit of each head so far, and what logits weigh beside it.
fn soften() -> String {
    let mut text = String::new();
    // Lane `t` of each four has heads `2 t` and `2 t + 1`.
    for head in 0..2 {
        let _ = writeln!(text, "max.f32 found, c{head}, c{};", head + 2);
        for distance in [4, 8, 16] {
            let _ = writeln!(
                text,
                "shfl.sync.bfly.b32 other, found, {distance}, 31, 0xffffffff;
max.f32 found, found, other;"
            );
        }
        let _ = writeln!(
            text,
            "max.f32 fresh, top{head}, found;
setp.eq.f32 p, fresh, 0fFF800000;
selp.f32 relative, 0f00000000, fresh, p;
sub.rn.f32 kept{head}, top{head}, relative;
ex2.approx.f32 kept{head}, kept{head};
mov.f32 top{head}, fresh;
mul.rn.f32 total{head}, total{head}, kept{head};"
        );
        for i in [head, head + 2] {
            let _ = writeln!(
                text,
                "sub.rn.f32 c{i}, c{i}, relative;
ex2.approx.f32 c{i}, c{i};
add.rn.f32 total{head}, total{head}, c{i};"
            );
        }
    }
    text
}

/// `share0` and on from a row of the table.
fn shares(row: usize) -> String {
    let at = row * HEADS_MAX * 4;
    format!(
        "ld.shared.v4.f32 {{share0, share1, share2, share3}}, [table+{at}];
ld.shared.v4.f32 {{share4, share5, share6, share7}}, [table+{}];
",
        at + 16,
    )
}

/// Adds the weighed values.
fn weigh() -> String {
    let mut text = shares(KEYS);
    for head in 0..HEADS_MAX {
        for i in 0..4 {
            let _ = writeln!(text, "mul.rn.f32 sum{head}_{i}, sum{head}_{i}, share{head};");
        }
    }
    for key in 0..KEYS {
        text.push_str(&shares(key));
        for i in 0..4 {
            let pair = 2 * key + i / 2;
            let widen = match i % 2 {
                0 => format!("shl.b32 whole, v{pair}, 16;"),
                _ => format!("and.b32 whole, v{pair}, 0xffff0000;"),
            };
            let _ = writeln!(text, "{widen}\nmov.b32 f{i}, whole;");
        }
        for head in 0..HEADS_MAX {
            for i in 0..4 {
                let _ =
                    writeln!(text, "fma.rn.f32 sum{head}_{i}, share{head}, f{i}, sum{head}_{i};");
            }
        }
    }
    text
}

/// Adds what the warps have seen and stores the part.
fn merge(heads: usize, room: usize) -> String {
    let mut text = String::new();
    for head in 0..2 {
        for distance in [4, 8, 16] {
            let _ = writeln!(
                text,
                "shfl.sync.bfly.b32 other, total{head}, {distance}, 31, 0xffffffff;
add.rn.f32 total{head}, total{head}, other;"
            );
        }
    }
    let _ = writeln!(
        text,
        "setp.eq.u32 p, row, 0;
mad.lo.u32 at, warp, {head_bytes}, base;
mad.lo.u32 at, quarter, 8, at;
@p st.shared.v2.f32 [at+{TOPS}], {{top0, top1}};
@p st.shared.v2.f32 [at+{TOTALS}], {{total0, total1}};
mad.lo.u32 at, warp, {warp_bytes}, base;
mad.lo.u32 at, lane, 16, at;",
        head_bytes = HEADS_MAX * 4,
        warp_bytes = HEADS_MAX * HEAD * 4,
    );
    for head in 0..HEADS_MAX {
        let sums: Vec<String> = (0..4).map(|i| format!("sum{head}_{i}")).collect();
        let _ = writeln!(
            text,
            "st.shared.v4.f32 [at+{}], {{{}}};",
            SUMS + head * HEAD * 4,
            sums.join(", "),
        );
    }
    text.push_str(&add_warps(heads));
    let _ = writeln!(
        text,
        "mad.lo.u32 i, head, {heads}, row;
mad.lo.u32 i, i, {room}, part;
mul.wide.u32 offset, i, 4;
setp.eq.u32 p, quarter, 0;
add.u64 address, largests, offset;
@p st.global.f32 [address], fresh;
add.u64 address, totals, offset;
@p st.global.f32 [address], found;
mul.lo.u32 i, i, {HEAD};
mad.lo.u32 i, quarter, 8, i;
mul.wide.u32 offset, i, 4;
add.u64 address, sums, offset;
st.global.v4.f32 [address], {{all0, all1, all2, all3}};
st.global.v4.f32 [address+16], {{all4, all5, all6, all7}};"
    );
    text
}

/// A thread adds 8 columns of a head of all warps, `all0` and on, with their largest logit `fresh` and their
/// total weight `found`.
fn add_warps(heads: usize) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "bar.sync 0;
shr.u32 row, thread, 4;
and.b32 quarter, thread, 15;
setp.ge.u32 p, row, {heads};
@p bra DONE;
mad.lo.u32 at, row, 4, base;
mov.f32 fresh, 0fFF800000;
.reg .f32 of<{WARPS}>, all<8>;"
    );
    for warp in 0..WARPS {
        let _ = writeln!(
            text,
            "ld.shared.f32 of{warp}, [at+{}];\nmax.f32 fresh, fresh, of{warp};",
            TOPS + warp * HEADS_MAX * 4,
        );
    }
    text.push_str(
        "setp.eq.f32 p, fresh, 0fFF800000;
selp.f32 relative, 0f00000000, fresh, p;
mov.f32 found, 0f00000000;
",
    );
    for warp in 0..WARPS {
        let _ = writeln!(
            text,
            "sub.rn.f32 of{warp}, of{warp}, relative;
ex2.approx.f32 of{warp}, of{warp};
ld.shared.f32 other, [at+{}];
fma.rn.f32 found, other, of{warp}, found;",
            TOTALS + warp * HEADS_MAX * 4,
        );
    }
    for i in 0..8 {
        let _ = writeln!(text, "mov.f32 all{i}, 0f00000000;");
    }
    let _ =
        writeln!(text, "mad.lo.u32 at, row, {}, base;\nmad.lo.u32 at, quarter, 32, at;", HEAD * 4);
    for warp in 0..WARPS {
        for half in 0..2 {
            let _ = writeln!(
                text,
                "ld.shared.v4.f32 {{f0, f1, f2, f3}}, [at+{}];",
                SUMS + warp * HEADS_MAX * HEAD * 4 + 16 * half,
            );
            for i in 0..4 {
                let sum = 4 * half + i;
                let _ = writeln!(text, "fma.rn.f32 all{sum}, f{i}, of{warp}, all{sum};");
            }
        }
    }
    text
}
