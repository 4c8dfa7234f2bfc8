//! The end of a tile: sums to rows of 16-bit numbers.
//!
//! A thread has two features of two rows in each eight rows. Matrices of 8 x 8 are turned around on
//! their way through shared memory, each warp its own, twice 512 bytes in turn, so that a thread
//! stores sixteen bytes of a row.

use std::fmt::Write as _;

use super::text::Sizes;
use super::{BLOCK_ROWS, ROWS_MAX};

/// Rows that are turned around at once where a warp has 8 features of them, and where it has 16.
const GATED_ROWS: usize = 32;

/// `pointer` to feature `x` of row `row + y`, `next_rows` bytes to the rows that come `rows` later,
/// and whether the feature exists.
fn address(sizes: &Sizes, rows: usize) -> String {
    let bytes = sizes.features * 2;
    format!(
        "add.u32 y, y, row;
mul.wide.u32 pointer, y, {bytes};
mul.wide.u32 offset, x, 2;
add.u64 pointer, pointer, offset;
add.u64 pointer, pointer, out;
setp.lt.u32 is_live, x, {};
mov.b64 next_rows, {};
shl.b32 from, lane, 4;
add.u32 from, from, turned;
",
        sizes.features,
        rows * bytes,
    )
}

/// `silu(gate) * up`: of 16 features of a warp 8 are gates, and 8 the ups of the same numbers.
pub(super) fn gated_epilogue(sizes: &Sizes) -> String {
    let element = sizes.element;
    let mut text = format!(
        "shl.b32 x, column, 6;
mad.lo.u32 x, group, 32, x;
mad.lo.u32 x, warp, 8, x;
mov.u32 y, lane;
{}shl.b32 left, height, {};
sub.u32 left, left, lane;
",
        address(sizes, GATED_ROWS),
        BLOCK_ROWS.ilog2(),
    );
    for first in (0..ROWS_MAX).step_by(GATED_ROWS) {
        let blocks = first / BLOCK_ROWS;
        let _ = writeln!(text, "setp.le.u32 p, height, {blocks};\n@p bra STORED;");
        for matrix in 0..4 {
            let sum = first / 2 + 4 * matrix;
            for (n, (gate, up)) in [(sum, sum + 2), (sum + 1, sum + 3)].into_iter().enumerate() {
                // 1 / (1 + 2^(-log2(e) * gate)) * (gate * up)
                let _ = writeln!(
                    text,
                    "mul.f32 gate{n}, sum{gate}, 0fBFB8AA3B;
ex2.approx.ftz.f32 gate{n}, gate{n};
add.f32 gate{n}, gate{n}, 0f3F800000;
rcp.approx.ftz.f32 gate{n}, gate{n};
mul.f32 gate{n}, gate{n}, sum{gate};
mul.f32 gate{n}, gate{n}, sum{up};"
                );
            }
            let _ = writeln!(text, "cvt.rn.{element}x2.f32 packed{matrix}, gate1, gate0;");
        }
        let buffer = first / GATED_ROWS % 2 * 512;
        text.push_str(&store("from", buffer));
        let _ = writeln!(
            text,
            "setp.gt.and.s32 q, left, {first}, is_live;
@q st.global.v4.b32 [pointer], {{packed0, packed1, packed2, packed3}};
add.u64 pointer, pointer, next_rows;"
        );
    }
    text
}

/// The sums themselves, 16 features of a warp.
pub(super) fn plain_epilogue(sizes: &Sizes) -> String {
    let element = sizes.element;
    // Matrix m of the four: rows 8 * (m / 2), features 8 * (m % 2).
    let mut text = format!(
        "shl.b32 x, column, 7;
mad.lo.u32 x, group, 64, x;
mad.lo.u32 x, warp, 16, x;
and.b32 y, lane, 1;
mad.lo.u32 x, y, 8, x;
shr.u32 y, lane, 1;
{}and.b32 x, lane, 7;
shr.u32 y, lane, 4;
mad.lo.u32 x, y, 8, x;
shr.u32 y, lane, 3;
and.b32 y, y, 1;
shl.b32 y, y, 4;
mad.lo.u32 x, x, 32, y;
add.u32 at, x, turned;
",
        address(sizes, BLOCK_ROWS),
    );
    for block in 0..ROWS_MAX / BLOCK_ROWS {
        let _ = writeln!(text, "setp.le.u32 p, height, {block};\n@p bra STORED;");
        for matrix in 0..4 {
            let sum = block * BLOCK_ROWS / 2 + 2 * matrix;
            let (low, high) = (format!("sum{sum}"), format!("sum{}", sum + 1));
            let _ = writeln!(text, "cvt.rn.{element}x2.f32 packed{matrix}, {high}, {low};");
        }
        text.push_str(&store("at", block % 2 * 512));
        text.push_str(
            "@is_live st.global.v4.b32 [pointer], {packed0, packed1, packed2, packed3};
add.u64 pointer, pointer, next_rows;
",
        );
    }
    text
}

/// Four matrices through shared memory; each lane writes a row of one at `place` and reads at `from`.
fn store(place: &str, buffer: usize) -> String {
    format!(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{place}+{buffer}], {{packed0, packed1, packed2, packed3}};
bar.warp.sync 0xffffffff;
ld.shared.v4.b32 {{packed0, packed1, packed2, packed3}}, [from+{buffer}];
"
    )
}
