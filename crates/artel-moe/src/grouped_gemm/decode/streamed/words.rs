//! The warps that multiply, on weights in words: codes of four bits become float16 and meet activations in
//! float16, of which a power of two has been taken out.
//!
//! A word has four columns of each of two planes of 128 columns, so a lane's word of row `g` and that of
//! row `g + 8` are weights of two matrix instructions, one a plane. A group of work is 64 bytes of a row:
//! lane `4 g + t` reads sixteen of them, columns `16 t ..` of half a plane and the same of the other plane.
//! Warps take groups in turn.
//!
//! Codes of FP4 become float16 by way of e4m3, and meet their scales before they are multiplied: an
//! e2m1 number times an e4m3 scale is exact in float16, and so is one times a power of two, counted from the
//! largest of the matrix (groups below its 2^-29th count as zeros). INT4 codes are the lowest bits of a
//! float16 number, which so is `n / 2^24`; upper planes are sixteen times that, and their activations a
//! sixteenth. Scales and zero points come to the sums of each group; the zero point times the sum of the
//! activations, which the matrix unit finds, too.
//!
//! (PTX ISA 8.0: `mma.m16n8k16`, `cvt.rn.f16x2.e4m3x2`, `add.s16x2`, `max.s16x2`.)

use std::fmt::Write as _;

use super::bytes;
use super::layout::{Product, SUM_BYTES, SUM_HEAD_BYTES, Sizes, WARPS};
use super::multiply::{claim_sums, give_sums, own_part, widen};
use super::text::{advance, arrive, wait};
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::BLOCK;

/// Bytes of a row of weights that a warp multiplies at a time: 128 columns.
pub(super) const GROUP_BYTES: usize = BLOCK / 2;

/// Activations, words and sums of a lane.
pub(super) fn registers(sizes: &Sizes) -> String {
    let groups = sizes.first.own_groups().max(sizes.second.own_groups());
    let strips = sizes.first.own_strips.max(sizes.second.own_strips);
    let mut text = String::from(
        ".reg .b32 group_lane, quad_lane, ring, ring_phase, known_place, slice, strip;
.reg .b32 buffer, buffer_phase, code_base;
.reg .b32 a0, a1, a2, a3;
.reg .b16 low, high;
.reg .pred has_token;
.reg .b32 scales_at, scale_word, pick, magnitude, own_factor, zeros, ones, other_ones;
.reg .b32 exponent0, exponent1;
.reg .f32 zero, factor0, factor1, scale, minus, part0, part1, inverse, even, odd;
.reg .b64 x_row;
",
    );
    for group in 0..groups {
        for plane in 0..2 {
            let _ = writeln!(text, ".reg .b32 {};", list(|n| format!("x{group}_{plane}_{n}"), 8));
            let _ = writeln!(text, ".reg .f32 x_sum{group}_{plane}_0, x_sum{group}_{plane}_1;");
        }
    }
    for strip in 0..strips {
        let _ = writeln!(text, ".reg .f32 {};", list(|n| format!("sum{strip}_{n}"), 4));
        for group in 0..groups {
            for side in 0..2 {
                let words = bytes::of(&sizes.first).map_or(4, |_| bytes::LANE_WORDS);
                let names = list(|n| format!("w{strip}_{group}_{side}_{n}"), words);
                let scales = list(|n| format!("s{strip}_{group}_{side}_{n}"), 2);
                let _ = writeln!(text, ".reg .b32 {names}, {scales};");
            }
        }
        for plane in 0..2 {
            let names = list(|n| format!("c{strip}_{plane}_{n}"), 4);
            let _ = writeln!(text, ".reg .f32 {names};");
        }
    }
    text
}

pub(super) fn list(name: impl Fn(usize) -> String, count: usize) -> String {
    (0..count).map(name).collect::<Vec<_>>().join(", ")
}

pub(super) fn format_of(product: &Product) -> WordFormat {
    product.format.expect("this is a bug: weights that are not in words")
}

/// The matrix instruction, of float16 numbers.
pub(super) const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";

/// The sums of a stage, to shared memory for the warp that adds up slices. `parts` is 2 where rows
/// `g + 8` are ups.
pub(super) fn multiply(sizes: &Sizes, product: &Product, parts: usize) -> String {
    let places = sizes.places();
    let mut text = own_part(product);
    let _ = writeln!(
        text,
        "{full}mad.lo.u32 at, slot, {stage_bytes}, base;
mad.lo.u32 x, strip, {strip_rows}, group_lane;
mad.lo.u32 scales_at, x, 4, at;
mov.u32 z, at;
mad.lo.u32 at, x, {row_bytes}, at;
mad.lo.u32 at, quad_lane, 16, at;
mad.lo.u32 at, slice, {group_bytes}, at;
mov.u32 zeros, 0;",
        full = wait(&format!("FULL{parts}"), "barrier", places.full, "phase"),
        stage_bytes = places.stage_bytes,
        strip_rows = 16 / parts,
        row_bytes = product.row_bytes(),
        group_bytes = bytes::of(product).map_or(GROUP_BYTES, |_| BLOCK),
    );
    text.push_str(&warp_scales(product, parts));
    text.push_str(&part_scales(product, parts));
    text.push_str(&load_group(product, parts, 0));
    for group in 0..product.own_groups() {
        if group + 1 < product.own_groups() {
            text.push_str(&load_group(product, parts, group + 1));
        }
        text.push_str(&match format_of(product).code {
            WordCode::Int4 => integer_group(product, group),
            WordCode::Int8 => bytes::multiply(product, group),
            WordCode::Mxfp8 => bytes::multiply_floats(product, group),
            _ => float_group(product, group),
        });
    }
    (0..product.own_strips).for_each(|strip| text.push_str(&scale_sums(product, strip)));
    text.push_str(&arrive("barrier", places.empty));
    text.push_str(&advance(sizes));
    text.push_str(&claim_sums(sizes, &format!("SUMS{parts}")));
    text.push_str("mad.lo.u32 at, thread, 16, at;\n");
    for strip in 0..product.own_strips {
        let _ = writeln!(
            text,
            "st.shared.v4.f32 [at+{}], {{{}}};",
            places.sums + SUM_HEAD_BYTES + strip * WARPS * SUM_BYTES,
            list(|n| format!("sum{strip}_{n}"), 4)
        );
    }
    text.push_str(&give_sums(sizes));
    text
}

/// Whether a part of an expert has a scale beside those of its groups.
pub(super) fn has_part_scales(code: WordCode) -> bool {
    matches!(code, WordCode::Mxfp4 | WordCode::Nvfp4 | WordCode::Mxfp8)
}

/// Weight rows of a part of a task.
pub(super) fn part_rows(product: &Product, parts: usize) -> usize {
    product.task_rows() / parts
}

/// `scales_at` of this warp's groups, and `pick`, which takes the two scales of a lane from words of both
/// planes.
fn warp_scales(product: &Product, parts: usize) -> String {
    let format = format_of(product);
    let of_word = 4 * part_rows(product, parts);
    let mut text = String::new();
    if bytes::of(product).is_some() {
        let _ = writeln!(
            text,
            "mad.lo.u32 scales_at, slice, {}, scales_at;",
            of_word * format.scale_words_per_plane()
        );
        if format.code == WordCode::Mxfp8 {
            // Byte t / 2 of a word, and two further that of the other half; in bytes 0 and 2.
            text.push_str("shr.u32 y, quad_lane, 1;\nmad.lo.u32 pick, y, 0x101, 0x600;\n");
        }
        return text;
    }
    if product.slices > 1 {
        text.push_str(&match format.scale_words_per_plane() {
            1 => String::from("and.b32 x, slice, -2;\n"),
            _ => {
                String::from("shr.u32 x, slice, 1;\nand.b32 y, slice, 1;\nmad.lo.u32 x, x, 4, y;\n")
            }
        });
        let _ = writeln!(text, "mad.lo.u32 scales_at, x, {of_word}, scales_at;");
    }
    match format.code {
        // Byte t of both words, in the two lowest bytes.
        WordCode::Nvfp4 => text.push_str("mad.lo.u32 pick, quad_lane, 0x11, 0x40;\n"),
        // Byte t / 2, of the upper half of a plane two further; in bytes 0 and 2.
        WordCode::Mxfp4 => {
            text.push_str("shr.u32 y, quad_lane, 1;\n");
            if product.slices > 1 {
                text.push_str("and.b32 x, slice, 1;\nmad.lo.u32 y, x, 2, y;\n");
            }
            text.push_str("mad.lo.u32 pick, y, 0x101, 0x400;\n");
        }
        _ => {}
    }
    text
}

/// `part0` and `part1`: the scales of the parts behind a task's scales. Of MXFP4 and MXFP8 these are the largest of
/// their groups, from which exponents are counted.
fn part_scales(product: &Product, parts: usize) -> String {
    let code = format_of(product).code;
    if !has_part_scales(code) {
        return String::from("mov.f32 part0, 0f3F800000;\nmov.f32 part1, part0;\n");
    }
    let at = product.task_bytes() + 4 * product.task_rows() * product.scale_words();
    let mut text = if parts == 2 {
        format!("ld.shared.v2.f32 {{part0, part1}}, [z+{at}];\n")
    } else {
        format!("ld.shared.f32 part0, [z+{at}];\nmov.f32 part1, part0;\n")
    };
    // The exponent that the largest scale becomes: numbers of MXFP8 are up to 448 themselves.
    let largest = match code {
        WordCode::Mxfp4 => Some(30),
        WordCode::Mxfp8 => Some(22),
        _ => None,
    };
    if let Some(largest) = largest {
        for part in 0..2 {
            let _ = writeln!(
                text,
                "mov.b32 x, part{part};
shr.u32 x, x, 23;
sub.u32 x, {largest}, x;
prmt.b32 exponent{part}, x, x, 0x1010;"
            );
        }
    }
    text
}

/// Words of a group of all strips, and those of their scales.
fn load_group(product: &Product, parts: usize, group: usize) -> String {
    if let Some(format) = bytes::of(product) {
        return bytes::load(product, format, parts, group);
    }
    let format = format_of(product);
    let other_rows = if parts == 2 { part_rows(product, parts) } else { 8 };
    let of_word = 4 * part_rows(product, parts);
    let other_scales = if parts == 2 { of_word * product.scale_words() } else { 4 * 8 };
    let group_in_row = product.slices * group;
    let mut text = String::new();
    for (strip, side) in (0..product.own_strips).flat_map(|strip| [(strip, 0), (strip, 1)]) {
        let rows = 16 / parts * (WARPS / product.slices) * strip;
        let place = (rows + side * other_rows) * product.row_bytes() + group_in_row * GROUP_BYTES;
        let _ = writeln!(
            text,
            "ld.shared.v4.b32 {{{}}}, [at+{place}];",
            list(|n| format!("w{strip}_{group}_{side}_{n}"), 4)
        );
        for plane in 0..2 {
            let word = match format.scale_words_per_plane() {
                1 => group_in_row / 2 * 2 + plane,
                _ => group_in_row / 2 * 4 + 2 * plane + group_in_row % 2,
            };
            let place = product.task_bytes() + word * of_word + 4 * rows + side * other_scales;
            let _ = writeln!(
                text,
                "ld.shared.b32 s{strip}_{group}_{side}_{plane}, [scales_at+{place}];"
            );
        }
    }
    text
}

/// `s.._0` and `s.._1`: the scales of a lane's weights of both planes, each in both halves of a word.
pub(super) fn half_scales(product: &Product, strip: usize, group: usize, side: usize) -> String {
    let [lower, upper] = [0, 1].map(|plane| format!("s{strip}_{group}_{side}_{plane}"));
    let mut text = format!("prmt.b32 x, {lower}, {upper}, pick;\n");
    match format_of(product).code {
        code @ (WordCode::Mxfp4 | WordCode::Mxfp8) => {
            if code == WordCode::Mxfp4 && product.slices == 1 && group % 2 == 1 {
                // A warp that has both halves of planes.
                text = format!("add.u32 y, pick, 0x202;\nprmt.b32 x, {lower}, {upper}, y;\n");
            }
            let _ = writeln!(
                text,
                "and.b32 x, x, 0x00ff00ff;
add.s16x2 x, x, exponent{side};
max.s16x2 x, x, zeros;
shl.b32 x, x, 10;"
            );
        }
        _ => text.push_str("mov.b32 {low, high}, x;\ncvt.rn.f16x2.e4m3x2 x, low;\n"),
    }
    let _ = writeln!(
        text,
        "mov.b32 {{low, high}}, x;
mov.b32 {lower}, {{low, low}};
mov.b32 {upper}, {{high, high}};"
    );
    text
}

/// Every instruction of a group of all strips: word, plane and strip, so that neighbours have other sums.
pub(super) fn instructions(product: &Product) -> impl Iterator<Item = [usize; 3]> {
    let strips = product.own_strips;
    (0..8 * strips).map(move |n| [n / strips / 2, n / strips % 2, n % strips])
}

/// A group of FP4.
fn float_group(product: &Product, group: usize) -> String {
    let sides = (0..product.own_strips).flat_map(|strip| [(strip, 0), (strip, 1)]);
    let mut text: String =
        sides.map(|(strip, side)| half_scales(product, strip, group, side)).collect();
    for [word, plane, strip] in instructions(product) {
        for side in 0..2 {
            let w = format!("w{strip}_{group}_{side}_{word}");
            let _ = if plane == 0 {
                writeln!(text, "and.b32 x, {w}, 0x9c9c9c9c;")
            } else {
                writeln!(
                    text,
                    "shl.b32 x, {w}, 2;
and.b32 x, x, 0x8c8c8c8c;
shr.u32 y, {w}, 2;
and.b32 y, y, 0x10101010;
or.b32 x, x, y;"
                )
            };
            let (first, second) = (format!("a{side}"), format!("a{}", side + 2));
            text.push_str(&widen("x", [&first, &second]));
            for a in [first, second] {
                let _ = writeln!(text, "mul.rn.f16x2 {a}, {a}, s{strip}_{group}_{side}_{plane};");
            }
        }
        let is_first = group == 0 && word == 0;
        text.push_str(&product_of([strip, group, plane], word, is_first));
    }
    text
}

/// One matrix instruction of `a0` to `a3` and the activations of word `word`, added to the sums of its strip and plane.
pub(super) fn product_of([strip, group, plane]: [usize; 3], word: usize, is_first: bool) -> String {
    let sums = list(|n| format!("c{strip}_{plane}_{n}"), 4);
    let added = if is_first { "zero, zero, zero, zero" } else { &sums };
    format!(
        "{MMA} {{{sums}}}, {{a0, a1, a2, a3}},
    {{x{group}_{plane}_{}, x{group}_{plane}_{}}}, {{{added}}};
",
        2 * word,
        2 * word + 1
    )
}

/// A group of INT4, with its scales.
fn integer_group(product: &Product, group: usize) -> String {
    let mut text = String::new();
    for [word, plane, strip] in instructions(product) {
        let mask = ["0x000f000f", "0x00f000f0"][plane];
        for side in 0..2 {
            let w = format!("w{strip}_{group}_{side}_{word}");
            let _ = writeln!(
                text,
                "and.b32 a{side}, {w}, {mask};
shr.u32 x, {w}, 8;
and.b32 a{}, x, {mask};",
                side + 2
            );
        }
        text.push_str(&product_of([strip, group, plane], word, word == 0));
    }
    for [side, plane, strip] in instructions(product).filter(|[side, ..]| *side < 2) {
        let scale = format!("s{strip}_{group}_{side}_{plane}");
        let _ = writeln!(
            text,
            "and.b32 x, {scale}, 255;
or.b32 x, x, 0x4b000000;
mov.b32 minus, x;
sub.f32 minus, 0f4B000000, minus;
mov.b32 scale, {scale};"
        );
        for token in 0..2 {
            let n = 2 * side + token;
            let added = match (group, plane) {
                (0, 0) => String::from("zero"),
                _ => format!("sum{strip}_{n}"),
            };
            let c = format!("c{strip}_{plane}_{n}");
            let _ = writeln!(
                text,
                "fma.rn.f32 {c}, minus, x_sum{group}_{plane}_{token}, {c};
fma.rn.f32 sum{strip}_{n}, {c}, scale, {added};"
            );
        }
    }
    text
}

/// `sum` times the scales of parts and tokens.
fn scale_sums(product: &Product, strip: usize) -> String {
    let is_float = has_part_scales(format_of(product).code);
    let mut text = String::new();
    for n in 0..4 {
        let sum = format!("sum{strip}_{n}");
        if is_float {
            let _ = writeln!(text, "add.f32 {sum}, c{strip}_0_{n}, c{strip}_1_{n};");
            let _ = writeln!(text, "mul.f32 {sum}, {sum}, part{};", n / 2);
        }
        let _ = writeln!(text, "mul.f32 {sum}, {sum}, factor{};", n % 2);
    }
    text
}
