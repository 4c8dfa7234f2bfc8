//! Codes of hidden states with a scale a row: each warp that multiplies makes those of its groups of columns of all
//! tokens, which it holds in registers while the warps tell each other the largest numbers that they have of each token.
//!
//! (PTX ISA 8.0: `max.u16x2`, `redux.sync`.)

use std::fmt::Write as _;

use super::layout::{Sizes, TOKENS_MAX, WARPS};
use super::quantize::{
    MEET, registers, row_codes, row_registers, row_scale, row_scale_from, unpack,
};
use crate::quant::BLOCK;

/// Codes of all tokens' hidden states, and a scale for each token.
pub(super) fn hidden_rows(sizes: &Sizes) -> String {
    let own = sizes.first.groups().div_ceil(WARPS);
    let mut text = format!("{{\n.reg .b32 magnitude, found;\n{}", registers(TOKENS_MAX * own + 1));
    text.push_str(&row_registers(sizes, TOKENS_MAX * own + 1));
    text.push_str("ld.param.f32 least, [least_of_x];\nld.param.f32 most, [most_of_x];\n");
    text.push_str(&load_parts(sizes, own));
    text.push_str(&largest_of_parts(sizes, own));
    text.push_str(MEET);
    text.push_str(&scales_of_lanes(sizes, TOKENS_MAX * own));
    text.push_str(&codes_of_parts(sizes, own));
    text.push_str(MEET);
    text.push_str("}\n");
    text
}

/// Whether the last of a warp's groups may lie behind the end of a row.
fn is_ragged(sizes: &Sizes, part: usize) -> bool {
    WARPS * (part + 1) > sizes.first.groups()
}

/// This warp's groups of every token, as they come, and where their codes go.
fn load_parts(sizes: &Sizes, own: usize) -> String {
    let product = &sizes.first;
    let mut text = String::from(
        "shl.b32 item, warp, 7;
mad.lo.u32 item, lane, 4, item;
mad.wide.u32 pointer, item, 2, hidden;
add.u32 item, item, base;
",
    );
    for token in 0..TOKENS_MAX {
        let _ = writeln!(
            text,
            "setp.gt.u32 has{token}, tokens, {token};
add.u32 codes_at{token}, item, {};",
            token * product.code_stride()
        );
        for part in 0..own {
            let n = token * own + part;
            let guard = guard_of(sizes, &mut text, token, part, "p");
            let at = 2 * (token * product.columns + WARPS * BLOCK * part);
            let _ = writeln!(
                text,
                "mov.b32 raw{n}_0, 0;
mov.b32 raw{n}_1, 0;
@{guard} ld.global.v2.b32 {{raw{n}_0, raw{n}_1}}, [pointer+{at}];"
            );
        }
    }
    text
}

/// The predicate that says whether this warp has a part of a token.
fn guard_of(sizes: &Sizes, text: &mut String, token: usize, part: usize, name: &str) -> String {
    if !is_ragged(sizes, part) {
        return format!("has{token}");
    }
    let _ = writeln!(
        text,
        "add.u32 x, warp, {};
setp.lt.and.u32 {name}, x, {}, has{token};",
        WARPS * part,
        sizes.first.groups()
    );
    name.to_owned()
}

/// The bits of the largest magnitude of this warp's numbers of each token, where sums will lie.
fn largest_of_parts(sizes: &Sizes, own: usize) -> String {
    let mut text = String::new();
    for token in 0..TOKENS_MAX {
        let _ = writeln!(text, "@!has{token} bra LARGEST_FOUND;\nmov.u32 magnitude, 0;");
        for (part, word) in (0..own).flat_map(|part| [(part, 0), (part, 1)]) {
            let _ = writeln!(
                text,
                "and.b32 x, raw{}_{word}, 0x7fff7fff;
max.u16x2 magnitude, magnitude, x;",
                token * own + part
            );
        }
        let _ = writeln!(
            text,
            "shr.u32 x, magnitude, 16;
and.b32 magnitude, magnitude, 0xffff;
max.u32 magnitude, magnitude, x;
redux.sync.max.u32 magnitude, magnitude, 0xffffffff;
mad.lo.u32 x, warp, {}, base;
@is_first_lane st.shared.b32 [x+{}], magnitude;",
            4 * TOKENS_MAX,
            sizes.places().sums + 4 * token
        );
    }
    text.push_str("LARGEST_FOUND:\n");
    text
}

/// Every lane finds the scale of one token, of number `own`; the first ones of the block store them.
fn scales_of_lanes(sizes: &Sizes, own: usize) -> String {
    let places = sizes.places();
    let mut text = String::from(
        "and.b32 x, lane, 7;
mad.lo.u32 y, x, 4, base;
mov.u32 magnitude, 0;
",
    );
    for warp in 0..WARPS {
        let _ = writeln!(
            text,
            "ld.shared.b32 found, [y+{}];
max.u32 magnitude, magnitude, found;",
            places.sums + 4 * TOKENS_MAX * warp
        );
    }
    let _ = match sizes.element {
        "bf16" => writeln!(text, "shl.b32 x, magnitude, 16;\nmov.b32 largest{own}, x;"),
        _ => writeln!(text, "cvt.u16.u32 code0, magnitude;\ncvt.f32.f16 largest{own}, code0;"),
    };
    text.push_str(&row_scale(sizes, own));
    let _ = writeln!(
        text,
        "setp.lt.u32 p, thread, {TOKENS_MAX};
@p st.shared.f32 [y+{}], scale{own};",
        places.hidden_codes.row_scales
    );
    for token in 0..TOKENS_MAX {
        text.push_str(&row_scale_from(sizes, token, own));
    }
    text
}

/// Codes of this warp's groups of every token.
fn codes_of_parts(sizes: &Sizes, own: usize) -> String {
    let codes = sizes.places().hidden_codes.codes;
    let mut text = String::new();
    for token in 0..TOKENS_MAX {
        let _ = writeln!(text, "@!has{token} bra HIDDEN_CODED;");
        for part in 0..own {
            let n = token * own + part;
            guard_of(sizes, &mut text, token, part, &format!("has{token}"));
            text.push_str(&unpack(sizes.element, n));
            text.push_str(&row_codes(sizes, codes + WARPS * BLOCK * part, n, token));
        }
    }
    text.push_str("HIDDEN_CODED:\n");
    text
}
