//! The end of a tile whose result the second product reads: rows in halves of planes.

use std::fmt::Write as _;

use super::super::super::BLOCK_ROWS;
use super::super::Sizes;
use super::super::epilogue::{GATED_ROWS, packed_gates, store};

/// `silu(gate) * up` as rows `[halves of planes, capacity, 64]`: of eight features those in even places
/// stand in one half, the others in the next.
pub(in super::super) fn ordered_epilogue(sizes: &Sizes) -> String {
    let mut text = format!(
        "shl.b32 x, column, {tile_shift};
mad.lo.u32 x, group, 32, x;
mad.lo.u32 x, warp, 8, x;
setp.lt.u32 is_live, x, {features};
shr.u32 y, x, 7;
shl.b32 y, y, 1;
and.b32 x, x, 127;
mad.lo.u32 y, y, positions, row;
add.u32 y, y, lane;
mul.wide.u32 pointer, y, 128;
cvt.u64.u32 offset, x;
add.u64 pointer, pointer, offset;
add.u64 pointer, pointer, out;
mul.wide.u32 offset, positions, 128;
add.u64 second_pointer, pointer, offset;
shl.b32 from, lane, 4;
add.u32 from, from, turned;
shl.b32 left, height, {block_shift};
sub.u32 left, left, lane;
",
        tile_shift = sizes.tile_features().ilog2(),
        features = sizes.features,
        block_shift = BLOCK_ROWS.ilog2(),
    );
    for first in (0..sizes.rows_max()).step_by(GATED_ROWS) {
        let blocks = first / BLOCK_ROWS;
        let _ = writeln!(text, "setp.le.u32 p, height, {blocks};\n@p bra STORED;");
        text.push_str(&packed_gates(sizes.out, first));
        text.push_str(&store("from", first / GATED_ROWS % 2 * 512));
        let _ = writeln!(
            text,
            "prmt.b32 x, packed0, packed1, 0x5410;
prmt.b32 y, packed2, packed3, 0x5410;
prmt.b32 packed0, packed0, packed1, 0x7632;
prmt.b32 packed1, packed2, packed3, 0x7632;
setp.gt.and.s32 q, left, {first}, is_live;
@q st.global.v2.b32 [pointer], {{x, y}};
@q st.global.v2.b32 [second_pointer], {{packed0, packed1}};
add.u64 pointer, pointer, {bytes};
add.u64 second_pointer, second_pointer, {bytes};",
            bytes = 128 * GATED_ROWS,
        );
    }
    text
}
