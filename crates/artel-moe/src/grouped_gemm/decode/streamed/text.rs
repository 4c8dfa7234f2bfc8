//! The kernel's text: its beginning, and what several warps do.
//!
//! (PTX ISA 8.0: `mbarrier`, `cp.async.bulk`, `griddepcontrol`.)

use std::fmt::Write as _;

use super::finish::finisher;
use super::layout::{
    ACTIVATED, CODERS, COLUMNS, FIRST_CODER, FIRST_FINISHER, NOTE_BYTES, SUM_STAGES, Sizes,
    THREADS, WARPS,
};
use super::multiply::multiplier;
use super::producer::producer;
use super::quantize::coder;

/// What a thread of a block that has a multiprocessor to itself may have.
const REGISTERS_MAX: usize = 65536 / THREADS;

/// The whole kernel, `stream_entry`: see [`StreamedExperts::launch`](super::cuda::StreamedExperts).
pub(super) fn source(sizes: &Sizes) -> String {
    let mut text = String::from(HEAD);
    let _ = writeln!(text, ".reqntid {THREADS}, 1, 1\n.maxnreg {REGISTERS_MAX}\n{{");
    text.push_str(REGISTERS);
    text.push_str(&begin(sizes));
    text.push_str(&producer(sizes));
    text.push_str(&multiplier(sizes));
    text.push_str(&finisher(sizes));
    text.push_str(&coder(sizes));
    text.push_str("EXIT: ret;\n}\n");
    text
}

const HEAD: &str = ".version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 shared[];
.visible .entry stream_entry(.param .u64 out_pointer, .param .u64 rows_pointer,
    .param .u64 inner_pointer, .param .u64 counters_pointer, .param .u64 x_pointer,
    .param .u64 first_weights, .param .u64 first_scales, .param .u64 second_weights,
    .param .u64 second_scales, .param .u64 ids_pointer, .param .u64 weights_pointer,
    .param .u32 token_count, .param .f32 least_of_x, .param .f32 most_of_x,
    .param .f32 least_of_inner, .param .f32 most_of_inner)
";

const REGISTERS: &str = ".reg .b32 thread, lane, warp, base, tokens, i, x, y, z, at, word;
.reg .b32 slot, phase, barrier, kind, place, task, expert, scale_at0, scale_at1, experts_in_use;
.reg .b64 out, rows, inner, counters, hidden, ids, router_weights, pointer;
.reg .pred p, q, is_first_lane;
";

/// Who one is; barriers, and a table without pairs.
fn begin(sizes: &Sizes) -> String {
    let places = sizes.places();
    let mut text = String::from(
        "mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
mov.u32 base, shared;
setp.eq.u32 is_first_lane, lane, 0;
ld.param.u64 out, [out_pointer];
ld.param.u64 rows, [rows_pointer];
ld.param.u64 inner, [inner_pointer];
ld.param.u64 counters, [counters_pointer];
ld.param.u64 hidden, [x_pointer];
ld.param.u64 ids, [ids_pointer];
ld.param.u64 router_weights, [weights_pointer];
ld.param.u32 tokens, [token_count];
",
    );
    for pointer in ["out", "rows", "inner", "counters", "hidden", "ids", "router_weights"] {
        let _ = writeln!(text, "cvta.to.global.u64 {pointer}, {pointer};");
    }
    text.push_str("setp.ne.u32 p, thread, 0;\n@p bra BARRIERS_MADE;\n");
    let barriers = [
        (places.full, places.stages, sizes.filling_arrivals()),
        (places.empty, places.stages, WARPS + CODERS),
        (places.noted, places.stages, 1),
        (places.sums_full, SUM_STAGES, WARPS),
        (places.sums_empty, SUM_STAGES, 1),
        (places.codes_full, 2, CODERS),
        (places.codes_empty, 2, WARPS),
    ];
    for (first, count, arrivals) in barriers {
        for barrier in (0..count).map(|n| first + 8 * n) {
            let _ = writeln!(text, "mbarrier.init.shared::cta.b64 [shared+{barrier}], {arrivals};");
        }
    }
    let _ = writeln!(
        text,
        "fence.mbarrier_init.release.cluster;
fence.proxy.async;
BARRIERS_MADE: mov.u32 i, thread;
mov.u32 x, -1;
CLEAR: setp.ge.u32 p, i, {experts};
@p bra CLEARED;
shl.b32 at, i, 2;
add.u32 at, at, base;
st.shared.b32 [at+{table}], x;
add.u32 i, i, {THREADS};
bra CLEAR;
CLEARED: bar.sync 0;
mov.u32 slot, 0;
mov.u32 phase, 0;
griddepcontrol.wait;
griddepcontrol.launch_dependents;
setp.lt.u32 p, warp, {WARPS};
@p bra MULTIPLIER;
setp.ge.u32 p, warp, {FIRST_CODER};
@p bra CODER;
setp.ge.u32 p, warp, {FIRST_FINISHER};
@p bra FINISHER;",
        experts = sizes.experts,
        table = places.table,
    );
    text
}

/// The next stage of the ring.
pub(super) fn advance(sizes: &Sizes) -> String {
    format!(
        "add.u32 slot, slot, 1;
setp.eq.u32 q, slot, {};
selp.b32 slot, 0, slot, q;
selp.b32 x, 1, 0, q;
xor.b32 phase, phase, x;
",
        sizes.places().stages
    )
}

/// Waits for the phase `parity` of the barrier at `[{barrier}+{offset}]`.
pub(super) fn wait(label: &str, barrier: &str, offset: usize, parity: &str) -> String {
    format!(
        "{label}: mbarrier.try_wait.parity.shared::cta.b64 p, [{barrier}+{offset}], {parity};
@!p bra {label};
"
    )
}

/// Once for the warp, when all of its lanes are here.
pub(super) fn arrive(barrier: &str, offset: usize) -> String {
    format!(
        "bar.warp.sync 0xffffffff;
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [{barrier}+{offset}];
"
    )
}

/// Waits until something is known of the stage: `kind`, `place`, `task`, `expert`, scales.
pub(super) fn read_note(sizes: &Sizes, label: &str) -> String {
    let places = sizes.places();
    format!(
        "shl.b32 x, slot, 3;
add.u32 barrier, x, base;
{}{}ld.shared.v4.b32 {{kind, place, task, expert}}, [at];
ld.shared.v4.b32 {{scale_at0, scale_at1, experts_in_use, x}}, [at+16];
",
        wait(label, "barrier", places.noted, "phase"),
        of_stage(places.notes, NOTE_BYTES),
    )
}

/// `at` = address of `what`, of which each stage has `bytes`.
pub(super) fn of_stage(what: usize, bytes: usize) -> String {
    format!("mad.lo.u32 at, slot, {bytes}, base;\nadd.u32 at, at, {what};\n")
}

/// Addresses of counters.
pub(super) const ACTIVATED_BYTES: usize = 4 * ACTIVATED;
pub(super) const COLUMN_BYTES: usize = 4 * COLUMNS;
