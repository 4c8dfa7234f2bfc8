//! Products of INT4: codes become bfloat16 numbers without rounding, whose sums of a plane meet its scale in
//! float32.

use std::fmt::Write as _;

use super::super::super::BLOCK_ROWS;
use super::super::{Sizes, advance};
use super::{give_back_words, instructions, list, widen_half};
use crate::grouped_gemm::words::{WordCode, WordFormat};
use crate::quant::BLOCK;

/// The only format that is served.
const FORMAT: WordFormat = WordFormat { code: WordCode::Int4, group: BLOCK };

/// What the matrix units sum of a plane. Each height has registers of its own: if they shared them, the assembler would
/// take them for results of several loops and make every instruction wait.
pub(super) fn registers(sizes: &Sizes) -> String {
    let mut text =
        String::from(".reg .f32 plane_scale0, plane_scale1;\n.reg .b32 first_barrier;\n");
    for height in 1..=sizes.blocks_max() {
        let names = list(|n| format!("part{height}_{n}"), height * BLOCK_ROWS / 2);
        let _ = writeln!(text, ".reg .f32 {names};");
    }
    text
}

/// Both planes of a stage of words. Weights of the second are made while the products of the first are under way.
pub(super) fn multiply_planes(sizes: &Sizes, height: usize) -> String {
    let mut text = zero_points(0) + &widen_half(FORMAT, 0);
    let part = format!("part{height}_");
    for plane in 0..2 {
        text.push_str(&instructions(sizes, (height, 2 * plane), &part, "0"));
        if plane == 0 {
            text.push_str(&give_back_words(sizes, FORMAT));
        }
        if sizes.ends_stage(2 * plane) {
            text.push_str("mov.b32 first_barrier, barrier;\n");
            text.push_str(&advance(sizes));
        }
        text.push_str(&widen_half(FORMAT, 2 * plane + 1));
        text.push_str(&instructions(sizes, (height, 2 * plane + 1), &part, "1"));
        if sizes.ends_stage(2 * plane + 1) {
            text.push_str(&advance(sizes));
        }
        for row in 0..2 {
            let _ = writeln!(text, "mov.b32 plane_scale{row}, scale{row}_{plane};");
        }
        if plane == 0 {
            text.push_str("wgmma.wait_group.sync.aligned 1;\n");
            text.push_str(&zero_points(1));
            text.push_str(&widen_half(FORMAT, 2));
        }
        text.push_str("wgmma.wait_group.sync.aligned 0;\n");
        let finished = [(2 * plane, "first_barrier"), (2 * plane + 1, "barrier")];
        for (_, barrier) in finished.into_iter().filter(|(half, _)| sizes.ends_stage(*half)) {
            let _ = writeln!(
                text,
                "@is_first_lane mbarrier.arrive.shared::cta.b64 _, [{barrier}+{}];",
                sizes.empty()
            );
        }
        // A zero point in the lowest byte of a scale changes it by less than its rounding to 16 bits.
        for sum in 0..height * BLOCK_ROWS / 2 {
            let row = sum / 2 % 2;
            let _ = writeln!(text, "fma.rn.f32 sum{sum}, {part}{sum}, plane_scale{row}, sum{sum};");
        }
    }
    text
}

/// `less{row}`: what stands for zero above 128, in both halves.
fn zero_points(plane: usize) -> String {
    let of_row = |row| {
        format!(
            "prmt.b32 x, scale{row}_{plane}, 0, 0x4040;
or.b32 less{row}, x, 0x43004300;
"
        )
    };
    (0..2).map(of_row).collect()
}

/// `a` = the codes of `w` in half `half`, less their zero point: both above 128, where bfloat16 counts by one.
pub(super) fn widen(half: usize, a: &str, w: &str, row: usize) -> String {
    let shifted = match [0, 8, 4, 12][half] {
        0 => format!("mov.b32 x, {w};\n"),
        places => format!("shr.u32 x, {w}, {places};\n"),
    };
    format!(
        "{shifted}lop3.b32 x, x, 0x000f000f, 0x43004300, 0xea;
sub.rn.bf16x2 {a}, x, less{row};
"
    )
}
