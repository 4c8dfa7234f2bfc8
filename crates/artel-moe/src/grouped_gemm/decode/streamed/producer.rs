//! The warp that loads weights into the ring.
//!
//! (PTX ISA 8.0: `cp.async.bulk`, `mbarrier`.)

use std::fmt::Write as _;

use super::layout::{FINISHED, NOTE_BYTES, Product, ScaleForm, Sizes, TICKET};
use super::scales::{NO_RUNS, copy_word_scales};
use super::text::{advance, of_stage};
use crate::quant::BLOCK;

/// The warp that loads: finds out which experts the batch has, then draws tasks until none is left.
pub(super) fn producer(sizes: &Sizes) -> String {
    let places = sizes.places();
    let mut text = String::from(
        ".reg .b32 ticket, next, left, first_total, total, bytes, target, parity, row, offset;
.reg .b32 run0, run1;
.reg .b64 weights1, scales1, weights2, scales2, scale0, scale1;
.reg .b64 policy;
.reg .pred is_second;
// Weights are read once: what is read again shall not make room for them.
createpolicy.fractional.L2::evict_first.b64 policy, 1.0;
ld.param.u64 weights1, [first_weights];
ld.param.u64 scales1, [first_scales];
ld.param.u64 weights2, [second_weights];
ld.param.u64 scales2, [second_scales];
cvta.to.global.u64 weights1, weights1;
cvta.to.global.u64 scales1, scales1;
cvta.to.global.u64 weights2, weights2;
cvta.to.global.u64 scales2, scales2;
mov.u32 ticket, 0;
mov.u32 next, 0;
",
    );
    let left = sizes.first_stages();
    let _ = writeln!(
        text,
        "mov.u32 left, {left};
@is_first_lane atom.relaxed.gpu.global.add.u32 ticket, [counters+{ticket}], {left};
@is_first_lane atom.relaxed.gpu.global.add.u32 next, [counters+{ticket}], 1;",
        ticket = 4 * TICKET,
    );
    text.push_str(&find_experts(sizes));
    let [first_tasks, second_tasks] = sizes.tasks();
    let _ = writeln!(
        text,
        "mul.lo.u32 first_total, experts_in_use, {first_tasks};
mad.lo.u32 total, experts_in_use, {second_tasks}, first_total;
shfl.sync.idx.b32 ticket, ticket, 0, 31, 0xffffffff;
DRAW: setp.ne.u32 p, left, 0;
@p bra DRAWN;
shfl.sync.idx.b32 ticket, next, 0, 31, 0xffffffff;
mov.u32 left, 1;
@is_first_lane atom.relaxed.gpu.global.add.u32 next, [counters+{ticket}], 1;
DRAWN: sub.u32 left, left, 1;
setp.eq.u32 q, slot, {left};
selp.b32 x, 0, 1, q;
xor.b32 parity, phase, x;
shl.b32 x, slot, 3;
add.u32 barrier, x, base;
WAIT_EMPTY: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{empty}], parity;
@!p bra WAIT_EMPTY;
mad.lo.u32 target, slot, {stage_bytes}, base;
setp.ge.u32 p, ticket, total;
@p bra NOTHING_LEFT;
setp.ge.u32 is_second, ticket, first_total;
@is_second bra LOAD_SECOND;",
        ticket = 4 * TICKET,
        empty = places.empty,
        stage_bytes = places.stage_bytes,
    );
    text.push_str(&load_first(sizes));
    text.push_str("LOAD_SECOND:\n");
    text.push_str(&load_second(sizes));
    let _ = write!(text, "LOADED: {}", advance(sizes));
    text.push_str("add.u32 ticket, ticket, 1;\nbra DRAW;\n");
    text.push_str(&nothing_left(sizes));
    text
}

/// Every expert of the batch gets a place, in the order of the first pair that has it.
fn find_experts(sizes: &Sizes) -> String {
    let places = sizes.places();
    let (experts, top_k) = (sizes.experts, sizes.top_k);
    let of_lane = sizes.pairs_max().div_ceil(32);
    let mut text = String::from(".reg .b32 pairs, pair, leaders, before, found;\n");
    for n in 0..of_lane {
        let _ = writeln!(text, ".reg .b32 id{n}, own_place{n};\n.reg .pred has{n}, leads{n};");
    }
    let _ = writeln!(text, "mul.lo.u32 pairs, tokens, {top_k};");
    for n in 0..of_lane {
        let _ = writeln!(
            text,
            "add.u32 pair, lane, {};
setp.lt.u32 p, pair, pairs;
mov.u32 id{n}, -1;
mul.wide.u32 pointer, pair, 4;
add.u64 pointer, pointer, ids;
@p ld.global.b32 id{n}, [pointer];",
            32 * n
        );
    }
    for n in 0..of_lane {
        if sizes.is_packed {
            let _ = writeln!(text, "shr.s32 id{n}, id{n}, 16;");
        }
        let _ = writeln!(
            text,
            "setp.lt.u32 has{n}, id{n}, {experts};
shl.b32 at, id{n}, 2;
add.u32 at, at, base;
add.u32 pair, lane, {};
@has{n} red.shared.min.u32 [at+{}], pair;",
            32 * n,
            places.table
        );
    }
    text.push_str(&give_places(sizes, of_lane));
    text.push_str(&places_of_pairs(sizes, of_lane));
    text
}

/// Who stands in the table leads its expert's pairs.
fn give_places(sizes: &Sizes, of_lane: usize) -> String {
    let places = sizes.places();
    let mut text = String::from("bar.warp.sync 0xffffffff;\nmov.u32 experts_in_use, 0;\n");
    for n in 0..of_lane {
        let _ = writeln!(
            text,
            "shl.b32 at, id{n}, 2;
add.u32 at, at, base;
add.u32 pair, lane, {first};
mov.u32 found, -1;
@has{n} ld.shared.b32 found, [at+{table}];
setp.eq.and.u32 leads{n}, found, pair, has{n};
vote.sync.ballot.b32 leaders, leads{n}, 0xffffffff;
mov.u32 before, %lanemask_lt;
and.b32 before, before, leaders;
popc.b32 before, before;
add.u32 own_place{n}, before, experts_in_use;
popc.b32 leaders, leaders;
add.u32 experts_in_use, experts_in_use, leaders;
shl.b32 x, own_place{n}, 2;
add.u32 x, x, base;
@leads{n} st.shared.b32 [x+{chosen}], id{n};",
            first = 32 * n,
            table = places.table,
            chosen = places.chosen,
        );
    }
    text
}

/// The place of each pair's expert, -1 where it has none.
fn places_of_pairs(sizes: &Sizes, of_lane: usize) -> String {
    let places = sizes.places();
    let mut text = String::from("bar.warp.sync 0xffffffff;\n");
    for n in 0..of_lane {
        let _ = writeln!(
            text,
            "shl.b32 at, id{n}, 2;
add.u32 at, at, base;
@leads{n} st.shared.b32 [at+{}], own_place{n};",
            places.table
        );
    }
    text.push_str("bar.warp.sync 0xffffffff;\n");
    for n in 0..of_lane {
        let _ = writeln!(
            text,
            "shl.b32 at, id{n}, 2;
add.u32 at, at, base;
mov.u32 found, -1;
@has{n} ld.shared.b32 found, [at+{table}];
add.u32 pair, lane, {first};
setp.lt.u32 p, pair, pairs;
shl.b32 x, pair, 2;
add.u32 x, x, base;
@p st.shared.b32 [x+{pair_places}], found;",
            first = 32 * n,
            table = places.table,
            pair_places = places.pair_places,
        );
    }
    text.push_str("bar.warp.sync 0xffffffff;\n");
    text
}

/// `run` = bytes that bring `bytes` bytes of scales from `source`, which becomes a multiple of
/// sixteen, and `note` = where they lie in shared memory, `part` scale rooms behind the rows.
fn scale_run(
    sizes: &Sizes,
    product: &Product,
    bytes: usize,
    [source, run, note]: [&str; 3],
    part: usize,
) -> String {
    format!(
        "cvt.u32.u64 x, {source};
and.b32 x, x, 15;
add.u32 {note}, target, {};
add.u32 {note}, {note}, x;
add.u32 {run}, x, {};
and.b32 {run}, {run}, -16;
and.b64 {source}, {source}, -16;
",
        product.task_bytes() + part * sizes.scale_rooms()[0],
        bytes + 15,
    )
}

/// Says what is in the stage and how much comes: `kind` 0 or 1.
fn note(sizes: &Sizes, product: &Product, kind: usize) -> String {
    let places = sizes.places();
    format!(
        "{notes}mov.u32 kind, {kind};
@is_first_lane st.shared.v4.b32 [at], {{kind, place, task, expert}};
@is_first_lane st.shared.v4.b32 [at+16], {{scale_at0, scale_at1, experts_in_use, kind}};
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [barrier+{noted}];
add.u32 bytes, run0, {rows};
@is_first_lane mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier+{full}], bytes;
bar.warp.sync 0xffffffff;
add.u32 at, barrier, {full};
",
        notes = of_stage(places.notes, NOTE_BYTES),
        noted = places.noted,
        full = places.full,
        rows = product.task_bytes(),
    )
}

/// `target` of a copy is shared memory, `source` global memory.
fn copy(target: &str, source: &str, bytes: &str) -> String {
    format!(
        "@is_first_lane cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
    [{target}], [{source}], {bytes}, [at], policy;
"
    )
}

/// Gates, their ups, and the scales of both. Rows of a task lie behind each other, so one copy brings them.
fn load_first(sizes: &Sizes) -> String {
    let (product, inner) = (&sizes.first, sizes.second.columns);
    let [first_tasks, _] = sizes.tasks();
    let features = product.task_rows() / 2;
    let mut text = format!(
        "div.u32 place, ticket, {first_tasks};
mul.lo.u32 x, place, {first_tasks};
sub.u32 task, ticket, x;
shl.b32 x, place, 2;
add.u32 x, x, base;
ld.shared.b32 expert, [x+{chosen}];
mul.lo.u32 row, task, {features};
",
        chosen = sizes.places().chosen,
    );
    text.push_str(&match sizes.scales {
        ScaleForm::Words => NO_RUNS.to_owned(),
        _ => first_scales(sizes),
    });
    text.push_str(&note(sizes, product, 0));
    if sizes.scales != ScaleForm::Words {
        text.push_str("sub.u32 run0, run0, run1;\n");
    }
    let _ = writeln!(
        text,
        "mad.lo.u32 x, expert, {all}, row;
mul.wide.u32 pointer, x, {columns};
add.u64 pointer, pointer, weights1;",
        all = 2 * inner,
        columns = product.row_bytes(),
    );
    let bytes = features * product.row_bytes();
    text.push_str(&copy("target", "pointer", &bytes.to_string()));
    let _ = writeln!(
        text,
        "add.u64 pointer, pointer, {};\nadd.u32 x, target, {bytes};",
        inner * product.row_bytes()
    );
    text.push_str(&copy("x", "pointer", &bytes.to_string()));
    text.push_str(&match sizes.scales {
        ScaleForm::Words => copy_word_scales(sizes, product, 2),
        _ => copy_scales(product, Some(sizes.scale_rooms()[0])),
    });
    text.push_str("bra LOADED;\n");
    text
}

/// Where the scales of a task's gates and ups are, and how many bytes bring them: `run0` together.
fn first_scales(sizes: &Sizes) -> String {
    let (product, inner) = (&sizes.first, sizes.second.columns);
    let [run, of_expert] = sizes.scale_runs()[0];
    let mut text = format!(
        "mul.wide.u32 scale0, expert, {of_expert};
add.u64 scale0, scale0, scales1;
"
    );
    // From a gate's scales to those of its up.
    let to_up = match sizes.scales {
        ScaleForm::Blocks => {
            let _ = writeln!(text, "div.u32 x, row, {BLOCK};\nmul.wide.u32 pointer, x, {run};");
            inner / BLOCK * run
        }
        ScaleForm::Channels | ScaleForm::Integers => {
            text.push_str("mul.wide.u32 pointer, row, 4;\n");
            4 * inner
        }
        ScaleForm::Matrices | ScaleForm::Words => {
            text.push_str("mov.b64 pointer, 0;\n");
            0
        }
    };
    text.push_str("add.u64 scale0, scale0, pointer;\n");
    let _ = writeln!(text, "add.u64 scale1, scale0, {to_up};");
    text.push_str(&scale_run(sizes, product, run, ["scale0", "run0", "scale_at0"], 0));
    text.push_str(&scale_run(sizes, product, run, ["scale1", "run1", "scale_at1"], 1));
    text.push_str("add.u32 run0, run0, run1;\n");
    text
}

/// Scales, behind the rows; of a second part as far behind those of the first as it says.
fn copy_scales(product: &Product, second_part: Option<usize>) -> String {
    let mut text = format!("add.u32 x, target, {};\n", product.task_bytes());
    text.push_str(&copy("x", "scale0", "run0"));
    if let Some(behind) = second_part {
        let _ = writeln!(text, "add.u32 x, x, {behind};");
        text.push_str(&copy("x", "scale1", "run1"));
    }
    text
}

/// Rows of the second weights, and their scales.
fn load_second(sizes: &Sizes) -> String {
    let (product, hidden) = (&sizes.second, sizes.first.columns);
    let [_, second_tasks] = sizes.tasks();
    let mut text = format!(
        "sub.u32 x, ticket, first_total;
div.u32 place, x, {second_tasks};
mul.lo.u32 y, place, {second_tasks};
sub.u32 task, x, y;
shl.b32 x, place, 2;
add.u32 x, x, base;
ld.shared.b32 expert, [x+{chosen}];
mul.lo.u32 row, task, {rows};
",
        chosen = sizes.places().chosen,
        rows = product.task_rows(),
    );
    text.push_str(&match sizes.scales {
        ScaleForm::Words => NO_RUNS.to_owned(),
        _ => second_scales(sizes),
    });
    text.push_str(&note(sizes, product, 1));
    let _ = writeln!(
        text,
        "mad.lo.u32 x, expert, {hidden}, row;
mul.wide.u32 pointer, x, {columns};
add.u64 pointer, pointer, weights2;",
        columns = product.row_bytes(),
    );
    text.push_str(&copy("target", "pointer", &product.task_bytes().to_string()));
    text.push_str(&match sizes.scales {
        ScaleForm::Words => copy_word_scales(sizes, product, 1),
        _ => copy_scales(product, None),
    });
    text
}

/// The same of a task of the second product as [`first_scales`].
fn second_scales(sizes: &Sizes) -> String {
    let product = &sizes.second;
    let [run, of_expert] = sizes.scale_runs()[1];
    let mut text = format!(
        "mul.wide.u32 scale0, expert, {of_expert};
add.u64 scale0, scale0, scales2;
"
    );
    match sizes.scales {
        ScaleForm::Blocks => {
            let _ = writeln!(text, "div.u32 x, row, {BLOCK};\nmul.wide.u32 pointer, x, {run};");
        }
        ScaleForm::Channels | ScaleForm::Integers => {
            text.push_str("mul.wide.u32 pointer, row, 4;\n");
        }
        ScaleForm::Matrices | ScaleForm::Words => text.push_str("mov.b64 pointer, 0;\n"),
    }
    text.push_str("add.u64 scale0, scale0, pointer;\nmov.u32 scale_at1, 0;\n");
    text.push_str(&scale_run(sizes, product, run, ["scale0", "run0", "scale_at0"], 0));
    text
}

/// Tells the others, and takes the tickets back when all blocks of threads have come here: then
/// nobody draws any more.
fn nothing_left(sizes: &Sizes) -> String {
    let places = sizes.places();
    format!(
        "NOTHING_LEFT:
{notes}mov.u32 kind, 2;
@is_first_lane st.shared.v4.b32 [at], {{kind, kind, kind, kind}};
@is_first_lane st.shared.v4.b32 [at+16], {{kind, kind, experts_in_use, kind}};
@is_first_lane mbarrier.arrive.shared::cta.b64 _, [barrier+{noted}];
// The ticket that was drawn ahead has arrived.
setp.ge.and.u32 p, next, total, is_first_lane;
@!p bra EXIT;
atom.acq_rel.gpu.global.add.u32 x, [counters+{finished}], 1;
mov.u32 y, %nctaid.x;
sub.u32 y, y, 1;
setp.ne.u32 p, x, y;
@p bra EXIT;
mov.u32 x, 0;
st.global.b32 [counters+{ticket}], x;
st.global.b32 [counters+{finished}], x;
bra EXIT;
",
        notes = of_stage(places.notes, NOTE_BYTES),
        noted = places.noted,
        finished = 4 * FINISHED,
        ticket = 4 * TICKET,
    )
}
