//! The warps that multiply: weights of a stage, widened to float16, by codes in registers.
//!
//! The matrix instruction takes 16 weight rows, 16 input features and 8 tokens. Which features are
//! neighbours is free as long as both operands agree, so a lane reads sixteen features of a row at once:
//! lane `4 g + t` has features `16 t ..` of each half of a group of 128, of rows `g` and `g + 8` and of
//! token `g`.
//!
//! (PTX ISA 8.0: `mma.m16n8k16`, `cvt.rn.f16x2.e4m3x2`.)

use std::fmt::Write as _;
use std::ops::Range;

use super::bytes;
use super::finish::zeros;
use super::halves::{load_hidden, load_inner};
use super::integers;
use super::layout::{
    CodePlaces, FINISHERS, Product, SUM_BYTES, SUM_HEAD_BYTES, SUM_STAGES, ScaleForm, Sizes,
    TOKENS_MAX, WARPS,
};
use super::quantize::hidden_codes;
use super::rows::hidden_rows;
use super::text::{advance, arrive, read_note, wait};
use super::words;
use crate::quant::BLOCK;

/// Groups whose weights a lane holds at a time.
const GROUPS_AT_ONCE: usize = 4;

/// Codes of hidden states, and both loops.
pub(super) fn multiplier(sizes: &Sizes) -> String {
    let places = sizes.places();
    let mut text = String::from("MULTIPLIER:\n");
    text.push_str(&own_registers(sizes));
    text.push_str(
        "mov.f32 zero, 0f00000000;
shr.u32 group_lane, lane, 2;
and.b32 quad_lane, lane, 3;
setp.lt.u32 has_token, group_lane, tokens;
mov.u32 ring, 0;
mov.u32 ring_phase, 0;
mov.u32 buffer, 0;
mov.u32 buffer_phase, 0;
mov.u32 known_place, -1;
mov.u32 code_base, base;
",
    );
    if sizes.scales == ScaleForm::Words {
        text.push_str(&load_hidden(sizes));
    } else {
        text.push_str(&match sizes.scales {
            ScaleForm::Blocks => hidden_codes(sizes),
            _ => hidden_rows(sizes),
        });
        text.push_str(&load_codes(sizes, &sizes.first, &places.hidden_codes));
        // Their stage is now of the copy engine, which does not see the order of other accesses.
        text.push_str("fence.proxy.async.shared::cta;\n");
        text.push_str(&arrive("base", places.empty + 8 * (places.stages - 1)));
    }
    text.push_str("FIRST:\n");
    text.push_str(&read_note(sizes, "FIRST_NOTE"));
    text.push_str("setp.ne.u32 p, kind, 0;\n@p bra SECOND_NOTED;\n");
    text.push_str(&multiply(sizes, &sizes.first, 2));
    text.push_str("bra FIRST;\nSECOND:\n");
    text.push_str(&read_note(sizes, "SECOND_NOTE"));
    let _ = writeln!(
        text,
        "SECOND_NOTED: setp.eq.u32 p, kind, 2;
@p bra ALL_MULTIPLIED;
setp.eq.u32 p, place, known_place;
@p bra CODES_LOADED;
mov.u32 known_place, place;
mad.lo.u32 code_base, buffer, {}, base;
mad.lo.u32 y, buffer, 8, base;",
        places.codes_bytes
    );
    text.push_str(&wait("WAIT_CODES", "y", places.codes_full, "buffer_phase"));
    text.push_str(&match sizes.scales {
        ScaleForm::Words => load_inner(sizes),
        _ => load_codes(sizes, &sizes.second, &places.codes),
    });
    text.push_str(&arrive("y", places.codes_empty));
    text.push_str(NEXT_BUFFER);
    text.push_str("CODES_LOADED:\n");
    text.push_str(&multiply(sizes, &sizes.second, 1));
    text.push_str("bra SECOND;\nALL_MULTIPLIED:\n");
    // Each finisher is told that there is nothing more.
    for n in 0..FINISHERS {
        text.push_str(&claim_sums(sizes, &format!("LAST_SUMS{n}")));
        text.push_str(&give_sums(sizes));
    }
    text.push_str(&zeros(sizes));
    text
}

/// The other of two buffers of codes.
pub(super) const NEXT_BUFFER: &str = "xor.b32 buffer, buffer, 1;
setp.eq.u32 q, buffer, 0;
selp.b32 x, 1, 0, q;
xor.b32 buffer_phase, buffer_phase, x;
";

/// `at` = the next place for sums, when it is free; the first lane says what they are of.
pub(super) fn claim_sums(sizes: &Sizes, label: &str) -> String {
    let places = sizes.places();
    format!(
        "xor.b32 x, ring_phase, 1;
mad.lo.u32 y, ring, 8, base;
{}mad.lo.u32 at, ring, {}, base;
setp.eq.u32 p, thread, 0;
@p st.shared.v4.b32 [at+{}], {{kind, place, task, experts_in_use}};
",
        wait(label, "y", places.sums_empty, "x"),
        sizes.sum_stage_bytes(),
        places.sums,
    )
}

/// Sums at `y` are there.
pub(super) fn give_sums(sizes: &Sizes) -> String {
    format!(
        "{}add.u32 ring, ring, 1;
setp.eq.u32 q, ring, {SUM_STAGES};
selp.b32 ring, 0, ring, q;
selp.b32 x, 1, 0, q;
xor.b32 ring_phase, ring_phase, x;
",
        arrive("y", sizes.places().sums_full)
    )
}

/// What a lane has of weights, activations and sums.
fn own_registers(sizes: &Sizes) -> String {
    match sizes.scales {
        ScaleForm::Words if bytes::of(&sizes.first).is_some() => {
            words::registers(sizes) + bytes::REGISTERS
        }
        ScaleForm::Words => words::registers(sizes),
        ScaleForm::Integers => registers(sizes) + integers::REGISTERS,
        ScaleForm::Blocks | ScaleForm::Channels | ScaleForm::Matrices => registers(sizes),
    }
}

/// Codes and sums of a lane.
fn registers(sizes: &Sizes) -> String {
    let groups = sizes.first.own_groups().max(sizes.second.own_groups());
    let mut text = String::from(
        ".reg .b32 group_lane, quad_lane, ring, ring_phase, known_place, slice, strip;
.reg .b32 buffer, buffer_phase, code_base;
.reg .b32 a0, a1, a2, a3;
.reg .b16 low, high;
.reg .f32 zero, sum0, sum1, sum2, sum3, scale, other_scale, factor;
.reg .pred has_token;
",
    );
    for group in 0..groups {
        for word in 0..8 {
            let _ = writeln!(text, ".reg .b32 low_code{group}_{word}, high_code{group}_{word};");
        }
        let _ = writeln!(text, ".reg .f32 row_scale{group}_0, row_scale{group}_1;");
    }
    for group in 0..groups.min(GROUPS_AT_ONCE) {
        for n in 0..4 {
            let _ = writeln!(text, ".reg .f32 c{group}_{n};");
        }
        for half in 0..2 {
            for word in 0..8 {
                let _ = writeln!(text, ".reg .b32 w{group}_{half}_{word};");
            }
        }
    }
    text
}

/// `slice` and `strip` of this warp in one product.
pub(super) fn own_part(product: &Product) -> String {
    format!(
        "and.b32 slice, warp, {};
shr.u32 strip, warp, {};
",
        product.slices - 1,
        product.slices.ilog2()
    )
}

/// Four codes of e4m3 as two words of two float16 numbers.
pub(super) fn widen(word: &str, [low, high]: [&str; 2]) -> String {
    format!(
        "mov.b32 {{low, high}}, {word};
cvt.rn.f16x2.e4m3x2 {low}, low;
cvt.rn.f16x2.e4m3x2 {high}, high;
"
    )
}

/// The codes behind `code_base` of this lane's token, widened, and scales of the two tokens whose sums it has;
/// codes of no token are zeros.
fn load_codes(sizes: &Sizes, product: &Product, places: &CodePlaces) -> String {
    let own = product.own_groups();
    let mut text = own_part(product);
    let _ = writeln!(
        text,
        "shl.b32 at, quad_lane, 4;
add.u32 at, at, code_base;
mad.lo.u32 at, group_lane, {}, at;
mad.lo.u32 at, slice, {}, at;",
        product.code_stride(),
        own * BLOCK,
    );
    for group in 0..own {
        for half in 0..2 {
            let words: Vec<String> =
                (0..4).map(|n| format!("low_code{group}_{}", 4 * half + n)).collect();
            for word in &words {
                let _ = writeln!(text, "mov.b32 {word}, 0;");
            }
            let place = places.codes + group * BLOCK + half * 64;
            let words = words.join(", ");
            let _ = writeln!(text, "@has_token ld.shared.v4.b32 {{{words}}}, [at+{place}];");
        }
    }
    for group in (0..own).filter(|_| sizes.scales != ScaleForm::Integers) {
        for word in 0..8 {
            let low = format!("low_code{group}_{word}");
            let high = format!("high_code{group}_{word}");
            text.push_str(&widen(&low, [&low, &high]));
        }
    }
    // Tokens 2 t and 2 t + 1.
    match sizes.scales {
        ScaleForm::Blocks => {
            let of_token = 4 * product.groups();
            let _ = writeln!(
                text,
                "mad.lo.u32 at, quad_lane, {}, code_base;\nmad.lo.u32 at, slice, {}, at;",
                2 * of_token,
                4 * own,
            );
            for group in 0..own {
                let at = places.group_scales + 4 * group;
                let _ = writeln!(
                    text,
                    "ld.shared.f32 row_scale{group}_0, [at+{at}];
ld.shared.f32 row_scale{group}_1, [at+{}];",
                    at + of_token
                );
            }
        }
        _ => {
            let _ = writeln!(
                text,
                "shl.b32 at, quad_lane, 3;
add.u32 at, at, code_base;
ld.shared.v2.f32 {{row_scale0_0, row_scale0_1}}, [at+{}];",
                places.row_scales
            );
        }
    }
    text
}

/// The sums of a stage, to shared memory for the warp that adds up slices. `parts` is 2 where rows
/// `g + 8` are ups.
fn multiply(sizes: &Sizes, product: &Product, parts: usize) -> String {
    if sizes.scales == ScaleForm::Words {
        return words::multiply(sizes, product, parts);
    }
    let places = sizes.places();
    let own = product.own_groups();
    let mut text = own_part(product);
    let _ = writeln!(
        text,
        "{full}mad.lo.u32 at, slot, {stage_bytes}, base;
shl.b32 x, quad_lane, 4;
add.u32 at, at, x;
mad.lo.u32 x, strip, {strip_rows}, group_lane;
mad.lo.u32 at, x, {columns}, at;
mad.lo.u32 at, slice, {slice_bytes}, at;",
        full = wait(&format!("FULL{parts}"), "barrier", places.full, "phase"),
        stage_bytes = places.stage_bytes,
        strip_rows = 16 / parts,
        columns = product.columns,
        slice_bytes = own * BLOCK,
    );
    for n in 0..4 {
        let _ = writeln!(text, "mov.f32 sum{n}, zero;");
    }
    if sizes.scales == ScaleForm::Integers {
        text.push_str(&integers::begin());
    }
    for first in (0..own).step_by(GROUPS_AT_ONCE) {
        let groups = first..own.min(first + GROUPS_AT_ONCE);
        text.push_str(&load_weights(product, parts, groups.clone()));
        text.push_str(&match sizes.scales {
            ScaleForm::Integers => integers::products(groups.clone()),
            _ => products(groups.clone()),
        });
        for group in groups {
            text.push_str(&add_group(sizes, product, parts, group, group - first));
        }
    }
    if sizes.scales == ScaleForm::Integers {
        text.push_str(&integers::end());
    }
    if sizes.scales != ScaleForm::Blocks {
        text.push_str(&scale_sums(sizes, parts));
    }
    text.push_str(&arrive("barrier", places.empty));
    text.push_str(&advance(sizes));
    text.push_str(&claim_sums(sizes, &format!("SUMS{parts}")));
    let _ = writeln!(
        text,
        "mad.lo.u32 at, thread, 16, at;
st.shared.v4.f32 [at+{}], {{sum0, sum1, sum2, sum3}};",
        places.sums + SUM_HEAD_BYTES
    );
    text.push_str(&give_sums(sizes));
    text
}

/// Weights of some groups, at `at`.
fn load_weights(product: &Product, parts: usize, groups: Range<usize>) -> String {
    let mut text = String::new();
    // Ups lie behind all gates.
    let other_rows = if parts == 2 { product.task_rows() / 2 } else { 8 };
    for (n, group) in groups.enumerate() {
        for row in 0..2 {
            for half in 0..2 {
                let words: Vec<String> =
                    (0..4).map(|word| format!("w{n}_{row}_{}", 4 * half + word)).collect();
                let place = row * other_rows * product.columns + group * BLOCK + half * 64;
                let words = words.join(", ");
                let _ = writeln!(text, "ld.shared.v4.b32 {{{words}}}, [at+{place}];");
            }
        }
    }
    text
}

/// `c` of some groups: weights by codes.
fn products(groups: Range<usize>) -> String {
    let mut text = String::new();
    for word in 0..8 {
        for (n, group) in groups.clone().enumerate() {
            text.push_str(&widen(&format!("w{n}_0_{word}"), ["a0", "a2"]));
            text.push_str(&widen(&format!("w{n}_1_{word}"), ["a1", "a3"]));
            let into = format!("{{c{n}_0, c{n}_1, c{n}_2, c{n}_3}}");
            let added =
                if word == 0 { "{zero, zero, zero, zero}".to_owned() } else { into.clone() };
            let _ = writeln!(
                text,
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {into}, {{a0, a1, a2, a3}},
    {{low_code{group}_{word}, high_code{group}_{word}}}, {added};"
            );
        }
    }
    text
}

/// Adds the products of one group, times its scales where it has some of its own.
fn add_group(sizes: &Sizes, product: &Product, parts: usize, group: usize, n: usize) -> String {
    if sizes.scales == ScaleForm::Integers {
        return integers::add_group(n);
    }
    if sizes.scales != ScaleForm::Blocks {
        let sums = (0..4).map(|i| format!("add.f32 sum{i}, sum{i}, c{n}_{i};\n"));
        return sums.collect();
    }
    let mut text = format!(
        "mad.lo.u32 x, slice, {}, scale_at0;
ld.shared.f32 scale, [x+{}];
",
        4 * product.own_groups(),
        4 * group
    );
    let other = if parts == 2 {
        let _ = writeln!(
            text,
            "mad.lo.u32 x, slice, {}, scale_at1;
ld.shared.f32 other_scale, [x+{}];",
            4 * product.own_groups(),
            4 * group
        );
        "other_scale"
    } else {
        "scale"
    };
    for (i, scale) in ["scale", "scale", other, other].into_iter().enumerate() {
        let _ = writeln!(
            text,
            "mul.f32 factor, {scale}, row_scale{group}_{};
fma.rn.f32 sum{i}, c{n}_{i}, factor, sum{i};",
            i % 2
        );
    }
    text
}

/// Scales of weight rows and of tokens, which come last.
fn scale_sums(sizes: &Sizes, parts: usize) -> String {
    let mut text = match (sizes.scales, parts) {
        (ScaleForm::Channels | ScaleForm::Integers, 2) => String::from(
            "mad.lo.u32 x, strip, 8, group_lane;
shl.b32 x, x, 2;
add.u32 y, x, scale_at1;
add.u32 x, x, scale_at0;
ld.shared.f32 scale, [x];
ld.shared.f32 other_scale, [y];
",
        ),
        (ScaleForm::Channels | ScaleForm::Integers, _) => String::from(
            "mad.lo.u32 x, strip, 16, group_lane;
shl.b32 x, x, 2;
add.u32 x, x, scale_at0;
ld.shared.f32 scale, [x];
ld.shared.f32 other_scale, [x+32];
",
        ),
        (_, 2) => String::from(
            "ld.shared.f32 scale, [scale_at0];\nld.shared.f32 other_scale, [scale_at0+4];\n",
        ),
        _ => String::from("ld.shared.f32 scale, [scale_at0];\nmov.f32 other_scale, scale;\n"),
    };
    for (i, scale) in ["scale", "scale", "other_scale", "other_scale"].into_iter().enumerate() {
        let _ = writeln!(
            text,
            "mul.f32 factor, {scale}, row_scale0_{};
mul.f32 sum{i}, sum{i}, factor;",
            i % 2
        );
    }
    text
}

/// Tokens that one instruction takes are the lanes' groups.
const _: () = assert!(TOKENS_MAX == 8 && SUM_BYTES * WARPS == 16 * 256);
