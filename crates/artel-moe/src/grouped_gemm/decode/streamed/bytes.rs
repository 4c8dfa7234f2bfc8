//! Weights of eight bits that meet activations of sixteen.
//!
//! A group of work is 128 columns of a row, and its halves are what planes are of narrower codes: lane
//! `4 g + t` reads sixteen bytes of each, columns `16 t ..`. An integer with its sign turned over is the lowest
//! bits of a float16 number from 1024 on, of which 1152 are taken off. Sums meet the scales of their groups, of
//! which a lane's halves may have one each. A number of MXFP8 meets its scale before it is multiplied: an e4m3 number
//! times a power of two is exact in float16, counted from the largest of the matrix (groups below its 2^-21th count
//! as zeros).
//!
//! (PTX ISA 8.0: `prmt`, `sub.f16x2`, `cvt.rn.f16x2.e4m3x2`.)

use std::fmt::Write as _;

use super::layout::{Product, WARPS};
use super::multiply::widen;
use super::words::{half_scales, instructions, list, part_rows, product_of};
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::BLOCK;

/// Words of a group that a lane has of a row.
pub(super) const LANE_WORDS: usize = 8;

/// The format of a product, if its weights are such.
pub(super) fn of(product: &Product) -> Option<WordFormat> {
    product.format.filter(|format| matches!(format.code, WordCode::Int8 | WordCode::Mxfp8))
}

/// Words of a group of all strips, and those of their scales.
pub(super) fn load(product: &Product, format: WordFormat, parts: usize, group: usize) -> String {
    let other_rows = if parts == 2 { part_rows(product, parts) } else { 8 };
    let of_word = 4 * part_rows(product, parts);
    let other_scales = if parts == 2 { of_word * product.scale_words() } else { 4 * 8 };
    let (scale_words, group) = (format.scale_words_per_plane(), [group, product.slices * group]);
    let [group, group_in_row] = group;
    let mut text = String::new();
    for (strip, side) in (0..product.own_strips).flat_map(|strip| [(strip, 0), (strip, 1)]) {
        let rows = 16 / parts * (WARPS / product.slices) * strip;
        let place = (rows + side * other_rows) * product.row_bytes() + group_in_row * BLOCK;
        for half in 0..2 {
            let words = list(|n| format!("w{strip}_{group}_{side}_{}", 4 * half + n), 4);
            let place = place + half * BLOCK / 2;
            let _ = writeln!(text, "ld.shared.v4.b32 {{{words}}}, [at+{place}];");
        }
        for half in 0..2 {
            let word = group_in_row * scale_words + half * (scale_words - 1);
            let place = product.task_bytes() + word * of_word + 4 * rows + side * other_scales;
            let _ = writeln!(
                text,
                "ld.shared.b32 s{strip}_{group}_{side}_{half}, [scales_at+{place}];"
            );
        }
    }
    text
}

/// The products of a group, with its scales.
pub(super) fn multiply(product: &Product, group: usize) -> String {
    let mut text = String::new();
    for [word, half, strip] in instructions(product) {
        for side in 0..2 {
            let w = format!("w{strip}_{group}_{side}_{}", 4 * half + word);
            let _ = writeln!(text, "xor.b32 x, {w}, 0x80808080;");
            for (a, bytes) in [(side, "0x4140"), (side + 2, "0x4342")] {
                let _ = writeln!(
                    text,
                    "prmt.b32 a{a}, x, 0x64646464, {bytes};
sub.rn.f16x2 a{a}, a{a}, above;"
                );
            }
        }
        text.push_str(&product_of([strip, group, half], word, word == 0));
    }
    for [side, half, strip] in instructions(product).filter(|[side, ..]| *side < 2) {
        let _ = writeln!(text, "mov.b32 scale, s{strip}_{group}_{side}_{half};");
        for token in 0..2 {
            let n = 2 * side + token;
            let added = match (group, half) {
                (0, 0) => String::from("zero"),
                _ => format!("sum{strip}_{n}"),
            };
            let _ =
                writeln!(text, "fma.rn.f32 sum{strip}_{n}, c{strip}_{half}_{n}, scale, {added};");
        }
    }
    text
}

/// The products of a group of MXFP8, whose weights are multiplied by their scales.
pub(super) fn multiply_floats(product: &Product, group: usize) -> String {
    let sides = (0..product.own_strips).flat_map(|strip| [(strip, 0), (strip, 1)]);
    let mut text: String =
        sides.map(|(strip, side)| half_scales(product, strip, group, side)).collect();
    for [word, half, strip] in instructions(product) {
        for side in 0..2 {
            let w = format!("w{strip}_{group}_{side}_{}", 4 * half + word);
            let both = [format!("a{side}"), format!("a{}", side + 2)];
            text.push_str(&widen(&w, [&both[0], &both[1]]));
            for a in both {
                let _ = writeln!(text, "mul.rn.f16x2 {a}, {a}, s{strip}_{group}_{side}_{half};");
            }
        }
        text.push_str(&product_of([strip, group, half], word, group == 0 && word == 0));
    }
    text
}

/// `above` = 1152 twice.
pub(super) const REGISTERS: &str = ".reg .b32 above;
mov.b32 above, 0x64806480;
";
