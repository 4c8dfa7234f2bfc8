//! From words to bfloat16 weights, two in a register.

use super::integers;
use crate::grouped_gemm::words::{WordCode, WordFormat};

/// `pick`: which bytes of scales this lane's words meet. `z` is its number among four.
pub(super) fn pick(format: WordFormat) -> &'static str {
    match format.code {
        // Sixteen bytes are a group: byte z of both words of a plane. Above it stands its sign, which is zero.
        WordCode::Nvfp4 => "mad.lo.u32 pick, z, 0x1111, 0xc480;\n",
        // Half a group: bytes z / 2 and 2 + z / 2 of a word, with zeros above them.
        WordCode::Mxfp4 => "shr.u32 y, z, 1;\nmad.lo.u32 pick, y, 0x0101, 0x4240;\n",
        _ => "",
    }
}

/// What weights of a plane are multiplied with, for this lane's two rows: of the words that were read at once one
/// number in both halves of a register, `factor{row}_{number of words / 4}`.
pub(super) fn factors(format: WordFormat, plane: usize) -> String {
    let of_row = |row| {
        let halves = match format.code {
            WordCode::Nvfp4 => e4m3_factors(row, plane),
            _ => exponent_factors(row, plane),
        };
        format!(
            "{halves}mov.b32 {{half0, half1}}, x;
mov.b32 factor{row}_0, {{half0, half0}};
mov.b32 factor{row}_1, {{half1, half1}};
"
        )
    };
    (0..2).map(of_row).collect()
}

/// `x` = two e4m3 scales times 2^118: as bfloat16 their bits are the numbers over 2^120.
fn e4m3_factors(row: usize, plane: usize) -> String {
    let [first, second] = [2 * plane, 2 * plane + 1].map(|word| format!("scale{row}_{word}"));
    format!(
        "prmt.b32 x, {first}, {second}, pick;
shl.b32 x, x, 4;
mov.b32 y, 0x7b007b00;
mul.rn.bf16x2 x, x, y;
mul.rn.bf16x2 x, x, y;
"
    )
}

/// `x` = two powers of two over 2^65, at most 2^127.
fn exponent_factors(row: usize, plane: usize) -> String {
    format!(
        "add.u32 x, scale{row}_{plane}, 0x3e3e3e3e;
prmt.b32 x, x, 0, pick;
shl.b32 x, x, 7;
"
    )
}

/// `a` = the weights of word `word` of row `row` of half `half`: of the lower plane even and odd bytes, and
/// of the upper plane.
pub(super) fn widen(format: WordFormat, half: usize, a: &str, [row, word]: [usize; 2]) -> String {
    let w = format!("word{row}_{word}");
    if format.code == WordCode::Int4 {
        return integers::widen(half, a, &w, row);
    }
    let codes = e2m1(half, a, &w);
    format!("{codes}mul.rn.bf16x2 {a}, {a}, factor{row}_{};\n", word / 4)
}

/// e2m1 numbers over 2^126: their sign is bfloat16's, their exponent and mantissa lie at bits 8 to 6.
fn e2m1(half: usize, a: &str, w: &str) -> String {
    match half {
        // By four and by eight places at once: what is added to a sign stays below it.
        0 => format!(
            "and.b32 x, {w}, 0x009c009c;
mul.lo.u32 x, x, 0x110;
and.b32 {a}, x, 0x81c081c0;
"
        ),
        1 => format!(
            "shr.u32 x, {w}, 6;
shl.b32 x, x, 2;
and.b32 x, x, 0x01c001c0;
lop3.b32 {a}, {w}, 0x80008000, x, 0xea;
"
        ),
        // Their parts are in three places.
        2 => format!(
            "shl.b32 x, {w}, 6;
and.b32 x, x, 0x00c000c0;
shl.b32 y, {w}, 2;
lop3.b32 x, y, 0x01000100, x, 0xea;
shl.b32 y, {w}, 10;
lop3.b32 {a}, y, 0x80008000, x, 0xea;
"
        ),
        _ => format!(
            "shr.u32 y, {w}, 6;
shl.b32 x, y, 4;
and.b32 x, x, 0x00c000c0;
lop3.b32 x, y, 0x01000100, x, 0xea;
shl.b32 y, {w}, 2;
lop3.b32 {a}, y, 0x80008000, x, 0xea;
"
        ),
    }
}
