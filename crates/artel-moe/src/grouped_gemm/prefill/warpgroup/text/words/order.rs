//! The end of a tile: features from the order of lanes to theirs, and the result of the first product as rows that the
//! second reads, in halves of planes in the order of lanes.

use std::fmt::Write as _;

use super::super::super::BLOCK_ROWS;
use super::super::Sizes;
use super::super::epilogue::{GATED_ROWS, packed_gates, store};

/// Of eight features of a row that stand in `packed0` to `packed3`, 0 beside 4, 1 beside 5 and so on, as the matrix
/// instructions leave them: neighbours beside each other.
pub(in super::super) fn neighbours() -> &'static str {
    "prmt.b32 x, packed0, packed1, 0x5410;
prmt.b32 y, packed2, packed3, 0x5410;
prmt.b32 z, packed0, packed1, 0x7632;
prmt.b32 packed3, packed2, packed3, 0x7632;
mov.b32 packed0, x;
mov.b32 packed1, y;
mov.b32 packed2, z;
"
}

/// `silu(gate) * up` as rows `[halves of planes, capacity, 64]`. A warp has eight features of one half: two of each of four
/// words, of which two are the first ones of their lanes' pairs and stand together, and so the second ones, eight
/// numbers further on.
pub(in super::super) fn ordered_epilogue(sizes: &Sizes) -> String {
    let mut text = format!(
        "shl.b32 x, column, {tile_shift};
mad.lo.u32 x, group, 32, x;
shr.u32 y, warp, 1;
mad.lo.u32 x, y, 8, x;
setp.lt.u32 p, x, {features};
add.u32 y, x, 16;
setp.lt.u32 later, y, {features};
// The second half of these features may be behind the last.
not.pred q, later;
and.pred is_live, p, q;
and.b32 z, warp, 1;
shr.u32 y, x, 7;
mad.lo.u32 y, y, 2, z;
mad.lo.u32 y, y, positions, row;
add.u32 y, y, lane;
mul.wide.u32 pointer, y, 128;
// Feature 64 c + 16 t + 8 o of a plane stands at 32 c + 16 o + 2 t.
and.b32 y, x, 64;
shl.b32 z, x, 2;
and.b32 z, z, 32;
or.b32 y, y, z;
shr.u32 z, x, 2;
and.b32 z, z, 12;
or.b32 y, y, z;
cvt.u64.u32 offset, y;
add.u64 pointer, pointer, offset;
add.u64 pointer, pointer, out;
shl.b32 from, lane, 4;
add.u32 from, from, turned;
sub.u32 left, live_rows, lane;
",
        tile_shift = sizes.tile_features().ilog2(),
        features = sizes.features,
    );
    for first in (0..sizes.rows_max()).step_by(GATED_ROWS) {
        let blocks = first / BLOCK_ROWS;
        let _ = writeln!(text, "setp.le.u32 p, height, {blocks};\n@p bra STORED;");
        text.push_str(&packed_gates(sizes.out, first));
        text.push_str(&store("from", first / GATED_ROWS % 2 * 512));
        text.push_str(neighbours());
        let _ = writeln!(
            text,
            "setp.gt.and.s32 p, left, {first}, later;
@p st.global.v2.b32 [pointer], {{packed0, packed1}};
@p st.global.v2.b32 [pointer+16], {{packed2, packed3}};
setp.gt.and.s32 p, left, {first}, is_live;
@p st.global.b32 [pointer], packed0;
@p st.global.b32 [pointer+16], packed2;
add.u64 pointer, pointer, {};",
            128 * GATED_ROWS,
        );
    }
    text
}
