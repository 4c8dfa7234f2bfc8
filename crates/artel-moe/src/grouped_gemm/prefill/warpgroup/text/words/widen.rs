//! From words to bfloat16 weights, two in a register.

use std::fmt::Write as _;

use super::integers;
use crate::grouped_gemm::words::{WordCode, WordFormat};

/// What weights of a plane are multiplied with, for this lane's two rows: of each group that an
/// instruction meets one number in both halves of a register, `factor{row}_{group}`.
pub(super) fn factors(format: WordFormat, plane: usize) -> String {
    (0..2)
        .map(|row| match format.code {
            WordCode::Nvfp4 => e4m3_factors(row, plane),
            _ => exponent_factors(row, plane),
        })
        .collect()
}

/// e4m3 scales times 2^118: as bfloat16 their bits are the numbers over 2^120.
fn e4m3_factors(row: usize, plane: usize) -> String {
    let mut text = String::new();
    for pair in 0..4 {
        let word = 2 * plane + pair / 2;
        let select = ["0x4140", "0x4342"][pair % 2];
        let [first, second] = [2 * pair, 2 * pair + 1].map(|group| format!("factor{row}_{group}"));
        let _ = writeln!(
            text,
            "prmt.b32 x, scale{row}_{word}, 0, {select};
shl.b32 x, x, 4;
mov.b32 y, 0x7b007b00;
mul.rn.bf16x2 x, x, y;
mul.rn.bf16x2 x, x, y;
mov.b32 {{half0, half1}}, x;
mov.b32 {first}, {{half0, half0}};
mov.b32 {second}, {{half1, half1}};"
        );
    }
    text
}

/// Powers of two over 2^65, at most 2^127.
fn exponent_factors(row: usize, plane: usize) -> String {
    let mut text = format!("add.u32 x, scale{row}_{plane}, 0x3e3e3e3e;\n");
    for group in 0..4 {
        let _ = writeln!(
            text,
            "prmt.b32 y, x, 0, 0x4{group}4{group};
shl.b32 factor{row}_{group}, y, 7;"
        );
    }
    text
}

/// `a` = the weights of word `word` of row `row` of half `half`: of the lower plane even and odd bytes, and
/// of the upper plane.
pub(super) fn widen(format: WordFormat, half: usize, a: &str, [row, word]: [usize; 2]) -> String {
    let w = format!("word{row}_{word}");
    let group = match format.code {
        WordCode::Int4 => return integers::widen(half, a, &w, row),
        WordCode::Nvfp4 => word,
        _ => word / 2,
    };
    let codes = e2m1(half, a, &w);
    format!("{codes}mul.rn.bf16x2 {a}, {a}, factor{row}_{group};\n")
}

/// e2m1 numbers over 2^126: their sign is bfloat16's, their exponent and mantissa lie at bits 8 to 6.
fn e2m1(half: usize, a: &str, w: &str) -> String {
    match half {
        0 => format!(
            "shl.b32 x, {w}, 4;
and.b32 x, x, 0x01c001c0;
shl.b32 y, {w}, 8;
lop3.b32 {a}, y, 0x80008000, x, 0xea;
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
