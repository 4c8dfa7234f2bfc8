//! Codes of hidden states with a scale a row: each warp that multiplies makes those of one token, which it holds in
//! registers meanwhile.
//!
//! (PTX ISA 8.0: `max.u16x2`, `redux.sync`.)

use std::fmt::Write as _;

use super::layout::{Sizes, WARPS};
use super::quantize::{MEET, registers, row_codes, row_registers, row_scale, unpack};
use crate::quant::BLOCK;

/// Codes of all tokens' hidden states, and a scale for each token.
pub(super) fn hidden_rows(sizes: &Sizes) -> String {
    let (product, places) = (&sizes.first, sizes.places().hidden_codes);
    let groups = product.groups();
    let mut text = format!("{{\n.reg .b32 magnitude;\n{}", registers(groups));
    text.push_str(&row_registers(sizes, 1));
    let _ = writeln!(
        text,
        "ld.param.f32 least, [least_of_x];
ld.param.f32 most, [most_of_x];
setp.lt.u32 has0, warp, tokens;
@!has0 bra HIDDEN_CODED;
mad.wide.u32 pointer, warp, {row_bytes}, hidden;
mad.wide.u32 pointer, lane, 8, pointer;
mad.lo.u32 codes_at0, warp, {stride}, base;
mad.lo.u32 codes_at0, lane, 4, codes_at0;
mov.u32 magnitude, 0;",
        row_bytes = 2 * product.columns,
        stride = product.code_stride(),
    );
    for n in 0..groups {
        let at = 2 * BLOCK * n;
        let _ = writeln!(text, "ld.global.v2.b32 {{raw{n}_0, raw{n}_1}}, [pointer+{at}];");
    }
    for (n, word) in (0..groups).flat_map(|n| [(n, 0), (n, 1)]) {
        let _ = writeln!(
            text,
            "and.b32 x, raw{n}_{word}, 0x7fff7fff;
max.u16x2 magnitude, magnitude, x;"
        );
    }
    text.push_str(
        "shr.u32 x, magnitude, 16;
and.b32 magnitude, magnitude, 0xffff;
max.u32 magnitude, magnitude, x;
redux.sync.max.u32 magnitude, magnitude, 0xffffffff;
",
    );
    text.push_str(match sizes.element {
        "bf16" => "shl.b32 x, magnitude, 16;\nmov.b32 largest0, x;\n",
        _ => "cvt.u16.u32 code0, magnitude;\ncvt.f32.f16 largest0, code0;\n",
    });
    text.push_str(&row_scale(sizes, 0));
    for n in 0..groups {
        text.push_str(&unpack(sizes.element, n));
        text.push_str(&row_codes(sizes, places.codes + BLOCK * n, n, 0));
    }
    let _ = writeln!(
        text,
        "mad.lo.u32 x, warp, 4, base;
@is_first_lane st.shared.f32 [x+{}], scale0;
HIDDEN_CODED:",
        places.row_scales
    );
    text.push_str(MEET);
    text.push_str("}\n");
    text
}

/// Each token has a warp.
const _: () = assert!(super::layout::TOKENS_MAX <= WARPS);
