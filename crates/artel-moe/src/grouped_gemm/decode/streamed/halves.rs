//! Activations of weights in words as float16 in registers, with a power of two for each token.
//!
//! Every warp that multiplies takes the columns of its own groups: hidden states as the router had them, of
//! which it finds the power of two itself; activations of an expert from shared memory, where the warps
//! that make codes of FP8 left them over one of the row.
//!
//! (PTX ISA 8.0: `max.u16x2`, `shfl`.)

use std::fmt::Write as _;

use super::bytes;
use super::layout::{Product, Sizes};
use super::multiply::own_part;
use super::quantize::{INVERSE, POWER_OF_TWO};
use super::words::{GROUP_BYTES, MMA, format_of, list};
use crate::grouped_gemm::words::WordCode;
use crate::quant::BLOCK;

/// First of sixteen columns of a lane, in group `group` of its warp, beside what depends on the warp.
fn first_column(product: &Product, group: usize, plane: usize) -> usize {
    let group = product.slices * group;
    if bytes::of(product).is_some() {
        return group * BLOCK + plane * BLOCK / 2;
    }
    group / 2 * 2 * BLOCK + group % 2 * GROUP_BYTES + plane * BLOCK
}

/// `i` = the part of a lane's columns that depends on lane and warp.
fn lane_column(product: &Product) -> String {
    let mut text = own_part(product);
    text.push_str("shl.b32 i, quad_lane, 4;\n");
    if bytes::of(product).is_some() {
        let _ = writeln!(text, "mad.lo.u32 i, slice, {BLOCK}, i;");
        return text;
    }
    if product.slices > 1 {
        let _ = writeln!(
            text,
            "shr.u32 x, slice, 1;
mad.lo.u32 i, x, {}, i;
and.b32 x, slice, 1;
mad.lo.u32 i, x, {GROUP_BYTES}, i;",
            2 * BLOCK
        );
    }
    text
}

/// Hidden states of this lane's token over a power of two, and that of the tokens whose sums it has.
pub(super) fn load_hidden(sizes: &Sizes) -> String {
    let product = &sizes.first;
    let mut text = lane_column(product);
    let _ = writeln!(
        text,
        "mul.wide.u32 x_row, group_lane, {};
add.u64 x_row, x_row, hidden;
mul.wide.u32 pointer, i, 2;
add.u64 x_row, x_row, pointer;
mov.u32 magnitude, 0;",
        2 * product.columns
    );
    for_numbers(product, |group, plane| {
        let column = first_column(product, group, plane);
        text.push_str(&zeros_of(group, plane));
        let has = column_guard(product, column);
        text.push_str(&has);
        for half in 0..2 {
            let names = list(|n| format!("x{group}_{plane}_{}", 4 * half + n), 4);
            let at = 2 * column + 16 * half;
            let _ = writeln!(text, "@p ld.global.v4.b32 {{{names}}}, [x_row+{at}];");
        }
    });
    for_numbers(product, |group, plane| {
        for n in 0..8 {
            let _ = writeln!(
                text,
                "and.b32 x, x{group}_{plane}_{n}, 0x7fff7fff;
max.u16x2 magnitude, magnitude, x;"
            );
        }
    });
    text.push_str("shr.u32 x, magnitude, 16;\nand.b32 magnitude, magnitude, 0xffff;\n");
    text.push_str("max.u32 magnitude, magnitude, x;\n");
    for distance in [1, 2] {
        let _ = writeln!(
            text,
            "shfl.sync.bfly.b32 x, magnitude, {distance}, 31, 0xffffffff;
max.u32 magnitude, magnitude, x;"
        );
    }
    text.push_str(match sizes.element {
        "bf16" => "shl.b32 x, magnitude, 16;\n",
        _ => "cvt.u16.u32 low, magnitude;\ncvt.f32.f16 even, low;\nmov.b32 x, even;\n",
    });
    text.push_str(POWER_OF_TWO);
    let _ = writeln!(text, "mov.u32 own_factor, x;\nsub.u32 x, {INVERSE}, x;\nmov.b32 inverse, x;");
    for_numbers(product, |group, plane| {
        for n in 0..8 {
            text.push_str(&narrow(sizes.element, &format!("x{group}_{plane}_{n}")));
        }
    });
    for token in 0..2 {
        let _ = writeln!(
            text,
            "mad.lo.u32 x, quad_lane, 8, {};
shfl.sync.idx.b32 x, own_factor, x, 31, 0xffffffff;
mov.b32 factor{token}, x;",
            4 * token
        );
    }
    text.push_str(&arrange(product));
    text
}

/// Activations of an expert behind `code_base`, of this lane's token.
pub(super) fn load_inner(sizes: &Sizes) -> String {
    let (product, places) = (&sizes.second, sizes.places().codes);
    let mut text = lane_column(product);
    let _ = writeln!(
        text,
        "mad.lo.u32 at, group_lane, {}, code_base;
mad.lo.u32 at, i, 2, at;",
        product.code_stride()
    );
    for_numbers(product, |group, plane| {
        text.push_str(&zeros_of(group, plane));
        for half in 0..2 {
            let names = list(|n| format!("x{group}_{plane}_{}", 4 * half + n), 4);
            let at = places.codes + 2 * first_column(product, group, plane) + 16 * half;
            let _ = writeln!(text, "@has_token ld.shared.v4.b32 {{{names}}}, [at+{at}];");
        }
    });
    let _ = writeln!(
        text,
        "mad.lo.u32 at, quad_lane, 8, code_base;
ld.shared.v2.f32 {{factor0, factor1}}, [at+{}];",
        places.row_scales
    );
    text.push_str(&arrange(product));
    text
}

/// Calls `each` for both planes of every group of a warp.
fn for_numbers(product: &Product, mut each: impl FnMut(usize, usize)) {
    for group in 0..product.own_groups() {
        (0..2).for_each(|plane| each(group, plane));
    }
}

fn zeros_of(group: usize, plane: usize) -> String {
    (0..8).map(|n| format!("mov.b32 x{group}_{plane}_{n}, 0;\n")).collect()
}

/// `p` = whether this lane's token has these columns: those that fill the last step are nowhere.
fn column_guard(product: &Product, column: usize) -> String {
    if product.groups() * BLOCK == product.columns {
        return String::from("mov.pred p, has_token;\n");
    }
    format!(
        "add.u32 x, i, {column};
setp.lt.and.u32 p, x, {}, has_token;
",
        product.columns
    )
}

/// Two numbers of sixteen bits times `inverse` as float16.
fn narrow(element: &str, word: &str) -> String {
    let unpack = if element == "bf16" {
        format!(
            "shl.b32 x, {word}, 16;
mov.b32 even, x;
and.b32 x, {word}, 0xffff0000;
mov.b32 odd, x;
"
        )
    } else {
        format!("mov.b32 {{low, high}}, {word};\ncvt.f32.f16 even, low;\ncvt.f32.f16 odd, high;\n")
    };
    format!(
        "{unpack}mul.f32 even, even, inverse;
mul.f32 odd, odd, inverse;
cvt.rn.f16x2.f32 {word}, odd, even;
"
    )
}

/// What the sums of a format are multiples of, as a float32 number: of weights in float16.
fn unit(code: WordCode) -> &'static str {
    match code {
        // 2^24.
        WordCode::Int4 => "0f4B800000",
        // 2^6 of e4m3, and 2^15 that the largest scale of the matrix becomes.
        WordCode::Mxfp4 => "0f3B000000",
        // 2^7 that the largest scale of the matrix becomes.
        WordCode::Mxfp8 => "0f3C000000",
        WordCode::Nvfp4 | WordCode::Int8Rows => "0f42800000",
        WordCode::Int8 => "0f3F800000",
    }
}

/// What depends on the format alone: factors of tokens; INT4 activations in the order of the codes,
/// and their sums.
fn arrange(product: &Product) -> String {
    let code = format_of(product).code;
    let mut text = String::new();
    for token in 0..2 {
        let _ = writeln!(text, "mul.f32 factor{token}, factor{token}, {};", unit(code));
    }
    if code != WordCode::Int4 {
        return text;
    }
    // Who calls needs what is in `y`. 2^-4; 2^-24 and 2^-20 in both halves, which is what codes 1 are.
    text.push_str(
        "mov.b32 x, 0x2c002c00;\nmov.b32 ones, 0x00010001;\nmov.b32 other_ones, 0x00100010;\n",
    );
    for_numbers(product, |group, plane| {
        for n in 0..8 {
            if plane == 1 {
                let _ = writeln!(text, "mul.rn.f16x2 x{group}_1_{n}, x{group}_1_{n}, x;");
            }
        }
        for pair in 0..4 {
            let [first, second] = [2 * pair, 2 * pair + 1].map(|n| format!("x{group}_{plane}_{n}"));
            let _ = writeln!(
                text,
                "prmt.b32 magnitude, {first}, {second}, 0x5410;
prmt.b32 {second}, {first}, {second}, 0x7632;
mov.b32 {first}, magnitude;"
            );
        }
        let one = ["ones", "other_ones"][plane];
        for word in 0..4 {
            let into = ["x_sum{g}_{p}_0", "x_sum{g}_{p}_1", "part0", "part1"];
            let into = into.map(|name| {
                name.replace("{g}", &group.to_string()).replace("{p}", &plane.to_string())
            });
            let into = into.join(", ");
            let added = if word == 0 { "zero, zero, zero, zero" } else { &into };
            let _ = writeln!(
                text,
                "{MMA} {{{into}}}, {{{one}, {one}, {one}, {one}}},
    {{x{group}_{plane}_{}, x{group}_{plane}_{}}}, {{{added}}};",
                2 * word,
                2 * word + 1
            );
        }
    });
    text
}
