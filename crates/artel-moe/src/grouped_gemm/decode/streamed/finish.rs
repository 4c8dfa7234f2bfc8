//! What becomes of sums: activations, rows of pairs, and the sums over a token's experts.

use std::fmt::Write as _;

use super::layout::{
    FINISHERS, FIRST_FINISHER, Product, SUM_BYTES, SUM_HEAD_BYTES, SUM_STAGES, SUMMED, Sizes,
};
use super::text::{ACTIVATED_BYTES, COLUMN_BYTES, arrive, wait};

/// Rows that a lane sums at a time, at most.
const ROWS_AT_ONCE: usize = 32;

/// The warps that finish tasks, in turn.
pub(super) fn finisher(sizes: &Sizes) -> String {
    let places = sizes.places();
    let mut text = format!(
        "FINISHER:
{{
.reg .b32 ring, ring_phase, group_lane, quad_lane, column, count, last;
.reg .b64 row_pointer;
.reg .b16 half, low, high;
.reg .f32 zero, sum0, sum1, sum2, sum3, c0, c1, c2, c3, scale;
mov.f32 zero, 0f00000000;
shr.u32 group_lane, lane, 2;
and.b32 quad_lane, lane, 3;
sub.u32 ring, warp, {FIRST_FINISHER};
mov.u32 ring_phase, 0;
bra FINISH;
FINISHED: add.u32 ring, ring, {FINISHERS};
setp.ge.u32 q, ring, {SUM_STAGES};
@q sub.u32 ring, ring, {SUM_STAGES};
selp.b32 x, 1, 0, q;
xor.b32 ring_phase, ring_phase, x;
FINISH: mad.lo.u32 barrier, ring, 8, base;
"
    );
    text.push_str(&wait("WAIT_SUMS", "barrier", places.sums_full, "ring_phase"));
    let _ = writeln!(
        text,
        "mad.lo.u32 at, ring, {}, base;
ld.shared.v4.b32 {{kind, place, task, experts_in_use}}, [at+{}];
mad.lo.u32 at, lane, 16, at;
setp.eq.u32 p, kind, 2;
@p bra EXIT;
setp.eq.u32 p, kind, 1;
@p bra FINISH_SECOND;",
        sizes.sum_stage_bytes(),
        places.sums
    );
    text.push_str(&finish_first(sizes));
    text.push_str("bra FINISHED;\nFINISH_SECOND:\n");
    text.push_str(&finish_second(sizes));
    text.push_str("bra FINISHED;\n}\n");
    text
}

/// `sum` = what the slices of a strip have, in order.
fn add_slices(sizes: &Sizes, product: &Product, strip: usize) -> String {
    let first = sizes.places().sums + SUM_HEAD_BYTES + strip * product.slices * SUM_BYTES;
    let mut text = format!("ld.shared.v4.f32 {{sum0, sum1, sum2, sum3}}, [at+{first}];\n");
    for slice in 1..product.slices {
        let at = first + slice * SUM_BYTES;
        let _ = writeln!(text, "ld.shared.v4.f32 {{c0, c1, c2, c3}}, [at+{at}];");
        for n in 0..4 {
            let _ = writeln!(text, "add.f32 sum{n}, sum{n}, c{n};");
        }
    }
    text
}

/// `silu(gate) * up` in float32, and word that it is there.
fn finish_first(sizes: &Sizes) -> String {
    let (product, inner) = (&sizes.first, sizes.second.columns);
    let mut text = format!(
        "mad.lo.u32 x, task, {features}, group_lane;
mul.lo.u32 y, place, tokens;
mad.lo.u32 y, quad_lane, 2, y;
mad.lo.u32 y, y, {inner}, x;
mul.wide.u32 pointer, y, 4;
add.u64 pointer, pointer, inner;
",
        features = product.task_rows() / 2,
    );
    for strip in 0..product.strips() {
        text.push_str(&add_slices(sizes, product, strip));
        text.push_str("shl.b32 x, quad_lane, 1;\n");
        for token in 0..2 {
            let (gate, up) = (format!("sum{token}"), format!("sum{}", token + 2));
            // gate / (1 + 2^(-log2(e) * gate)) * up
            let _ = writeln!(
                text,
                "mul.f32 scale, {gate}, 0fBFB8AA3B;
ex2.approx.f32 scale, scale;
add.f32 scale, scale, 0f3F800000;
div.rn.f32 scale, {gate}, scale;
mul.f32 scale, scale, {up};
setp.lt.u32 p, x, tokens;
@p st.global.f32 [pointer+{}], scale;
add.u32 x, x, 1;",
                token * 4 * inner + 32 * strip
            );
        }
    }
    text.push_str(&arrive("barrier", sizes.places().sums_empty));
    let _ = writeln!(
        text,
        "mul.wide.u32 pointer, place, 4;
add.u64 pointer, pointer, counters;
@is_first_lane red.release.gpu.global.add.u32 [pointer+{ACTIVATED_BYTES}], 1;"
    );
    text
}

/// Rows of each expert in sixteen bits. Who is the last to come to a task's columns sums them.
fn finish_second(sizes: &Sizes) -> String {
    let (product, hidden, element) = (&sizes.second, sizes.first.columns, sizes.element);
    let mut text = format!(
        "mul.lo.u32 column, task, {task_rows};
add.u32 x, column, group_lane;
mul.lo.u32 y, place, tokens;
mad.lo.u32 y, quad_lane, 2, y;
mul.wide.u32 pointer, y, {row_bytes};
add.u64 pointer, pointer, rows;
mul.wide.u32 row_pointer, x, 2;
add.u64 pointer, pointer, row_pointer;
",
        task_rows = product.task_rows(),
        row_bytes = 2 * hidden,
    );
    for strip in 0..product.strips() {
        text.push_str(&add_slices(sizes, product, strip));
        text.push_str("shl.b32 x, quad_lane, 1;\n");
        for token in 0..2 {
            let _ = writeln!(text, "setp.lt.u32 p, x, tokens;");
            for row in 0..2 {
                let _ = writeln!(
                    text,
                    "cvt.rn.{element}.f32 half, sum{};
@p st.global.b16 [pointer+{}], half;",
                    token + 2 * row,
                    token * 2 * hidden + 32 * strip + row * 16,
                );
            }
            text.push_str("add.u32 x, x, 1;\n");
        }
    }
    text.push_str(&arrive("barrier", sizes.places().sums_empty));
    let _ = writeln!(
        text,
        "mul.wide.u32 row_pointer, task, 4;
add.u64 row_pointer, row_pointer, counters;
mov.u32 last, 0;
@is_first_lane atom.acq_rel.gpu.global.add.u32 last, [row_pointer+{COLUMN_BYTES}], 1;
bar.warp.sync 0xffffffff;
shfl.sync.idx.b32 last, last, 0, 31, 0xffffffff;
add.u32 last, last, 1;
setp.ne.u32 p, last, experts_in_use;
@p bra FINISHED;
mov.u32 x, 0;
mov.u32 count, 0;
@is_first_lane st.global.b32 [row_pointer+{COLUMN_BYTES}], x;
@is_first_lane atom.acq_rel.gpu.global.add.u32 count, [counters+{}], 1;",
        4 * SUMMED,
    );
    text.push_str(&sum_tokens(sizes));
    text.push_str(&forget(sizes));
    text
}

/// The last of all columns: nobody waits for activations any more.
fn forget(sizes: &Sizes) -> String {
    let mut text = format!(
        "shfl.sync.idx.b32 count, count, 0, 31, 0xffffffff;
setp.ne.u32 p, count, {};
@p bra FINISHED;
mov.u32 x, 0;
@is_first_lane st.global.b32 [counters+{}], x;
mul.wide.u32 pointer, lane, 4;
add.u64 pointer, pointer, counters;
",
        sizes.tasks()[1] - 1,
        4 * SUMMED,
    );
    for first in (0..sizes.pairs_max().next_multiple_of(32)).step_by(32) {
        let _ = writeln!(text, "st.global.b32 [pointer+{}], x;", ACTIVATED_BYTES + 4 * first);
    }
    text
}

/// A task's columns of every token, two a lane: its experts' rows times the router's weights, slot by
/// slot.
fn sum_tokens(sizes: &Sizes) -> String {
    let pairs = sizes.second.task_rows() / 2;
    let at_once = (ROWS_AT_ONCE / sizes.top_k).clamp(1, 4);
    let mut text =
        String::from(".reg .b32 item, items, slot_place, summed;\n.reg .f32 weight, even, odd;\n");
    for n in 0..at_once {
        let _ =
            writeln!(text, ".reg .b32 token{n}, column{n};\n.reg .pred has{n};\n.reg .b64 own{n};");
        for slot in 0..sizes.top_k {
            let _ = writeln!(
                text,
                ".reg .b32 word{n}_{slot}, weight{n}_{slot};\n.reg .pred has{n}_{slot};"
            );
        }
    }
    // What is the last of a single token must not wait for the code of several.
    let _ = writeln!(
        text,
        "mov.u32 item, lane;
mul.lo.u32 items, tokens, {pairs};
setp.gt.u32 p, items, 32;
@p bra SUM_MANY;
{one}bra TOKENS_SUMMED;
SUM_MANY: {many}add.u32 item, item, {step};
sub.u32 x, item, lane;
setp.lt.u32 p, x, items;
@p bra SUM_MANY;
TOKENS_SUMMED: bar.warp.sync 0xffffffff;",
        one = sum_some(sizes, 1),
        many = sum_some(sizes, at_once),
        step = 32 * at_once,
    );
    text
}

/// Sums of some pairs of columns from `item` on, 32 apart.
fn sum_some(sizes: &Sizes, count: usize) -> String {
    let pairs = sizes.second.task_rows() / 2;
    let mut text = String::new();
    for n in 0..count {
        let _ = writeln!(
            text,
            "add.u32 x, item, {ahead};
setp.lt.u32 has{n}, x, items;
div.u32 token{n}, x, {pairs};
mul.lo.u32 y, token{n}, {pairs};
sub.u32 x, x, y;
mad.lo.u32 column{n}, x, 2, column;
mul.wide.u32 own{n}, column{n}, 2;",
            ahead = 32 * n,
        );
        text.push_str(&load_slots(sizes, n));
    }
    for n in 0..count {
        text.push_str(&add_slots(sizes, n));
        let _ = writeln!(
            text,
            "cvt.rn.{element}x2.f32 summed, sum1, sum0;
mul.wide.u32 pointer, token{n}, {row_bytes};
add.u64 pointer, pointer, out;
add.u64 pointer, pointer, own{n};
@has{n} st.global.b32 [pointer], summed;",
            element = sizes.element,
            row_bytes = 2 * sizes.first.columns,
        );
    }
    text
}

/// Rows and weights of all slots of a token.
fn load_slots(sizes: &Sizes, n: usize) -> String {
    let top_k = sizes.top_k;
    let mut text = String::new();
    for slot in 0..top_k {
        let _ = writeln!(
            text,
            "mad.lo.u32 x, token{n}, {top_k}, {slot};
mul.wide.u32 pointer, x, 4;
add.u64 pointer, pointer, router_weights;
mov.b32 weight{n}_{slot}, 0;
@has{n} ld.global.b32 weight{n}_{slot}, [pointer];
shl.b32 x, x, 2;
add.u32 x, x, base;
mov.u32 slot_place, -1;
@has{n} ld.shared.b32 slot_place, [x+{pair_places}];
setp.ge.s32 has{n}_{slot}, slot_place, 0;
mad.lo.u32 x, slot_place, tokens, token{n};
mul.wide.u32 pointer, x, {row_bytes};
add.u64 pointer, pointer, rows;
add.u64 pointer, pointer, own{n};
mov.b32 word{n}_{slot}, 0;
@has{n}_{slot} ld.relaxed.gpu.global.b32 word{n}_{slot}, [pointer];",
            pair_places = sizes.places().pair_places,
            row_bytes = 2 * sizes.first.columns,
        );
    }
    text
}

/// `sum0` and `sum1` = two columns of a token.
fn add_slots(sizes: &Sizes, n: usize) -> String {
    let mut text = String::from("mov.f32 sum0, zero;\nmov.f32 sum1, zero;\n");
    for slot in 0..sizes.top_k {
        if sizes.is_packed {
            let _ = writeln!(text, "shl.b32 weight{n}_{slot}, weight{n}_{slot}, 16;");
        }
        let _ = writeln!(text, "mov.b32 weight, weight{n}_{slot};");
        let _ = if sizes.element == "bf16" {
            writeln!(
                text,
                "shl.b32 x, word{n}_{slot}, 16;
mov.b32 even, x;
and.b32 x, word{n}_{slot}, 0xffff0000;
mov.b32 odd, x;"
            )
        } else {
            writeln!(
                text,
                "mov.b32 {{low, high}}, word{n}_{slot};
cvt.f32.f16 even, low;
cvt.f32.f16 odd, high;"
            )
        };
        let _ = writeln!(
            text,
            "@has{n}_{slot} fma.rn.f32 sum0, even, weight, sum0;
@has{n}_{slot} fma.rn.f32 sum1, odd, weight, sum1;"
        );
    }
    text
}

/// A batch without experts has results nevertheless.
pub(super) fn zeros(sizes: &Sizes) -> String {
    format!(
        "setp.ne.u32 p, experts_in_use, 0;
@p bra EXIT;
mov.u32 y, %ctaid.x;
mad.lo.u32 i, y, 256, thread;
mov.u32 z, %nctaid.x;
shl.b32 z, z, 8;
mul.lo.u32 y, tokens, {sixteens};
mov.u32 x, 0;
ZERO: setp.ge.u32 p, i, y;
@p bra EXIT;
mul.wide.u32 pointer, i, 16;
add.u64 pointer, pointer, out;
st.global.v4.b32 [pointer], {{x, x, x, x}};
add.u32 i, i, z;
bra ZERO;
",
        sixteens = sizes.first.columns * 2 / 16,
    )
}
