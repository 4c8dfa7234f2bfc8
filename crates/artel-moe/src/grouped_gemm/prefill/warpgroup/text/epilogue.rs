//! The end of a tile: sums to rows of the result.
//!
//! A thread has two features of two rows in each eight rows. Of 16-bit numbers matrices of 8 x 8 are
//! turned around on their way through shared memory, each warp its own, twice 512 bytes in turn, so
//! that a thread stores sixteen bytes of a row. Of 32-bit numbers eight threads have the 32 bytes
//! that memory moves at once.

use std::fmt::Write as _;

use super::super::BLOCK_ROWS;
use super::{Numbers, Sizes, integers, words};

/// Rows that are turned around at once where a warp has 8 features of them, and where it has 16.
pub(super) const GATED_ROWS: usize = 32;

/// The sums, or `silu(gate) * up` of them, stored where the tile stands.
pub(super) fn epilogue(sizes: &Sizes) -> String {
    match (sizes.out, sizes.parts) {
        (_, 2) if matches!(sizes.numbers, Numbers::Words { .. }) => words::ordered_epilogue(sizes),
        ("f32", _) => wide_epilogue(sizes),
        (_, 2) => gated_epilogue(sizes),
        _ => plain_epilogue(sizes),
    }
}

/// Makes the sums of `rows` rows from row `first` on what they stand for.
fn ready(sizes: &Sizes, first: usize, rows: usize) -> String {
    match sizes.numbers {
        Numbers::Integers { .. } => integers::scaled(first, rows),
        _ => String::new(),
    }
}

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
fn gated_epilogue(sizes: &Sizes) -> String {
    let element = sizes.out;
    let mut text = format!(
        "shl.b32 x, column, 6;
mad.lo.u32 x, group, 32, x;
mad.lo.u32 x, warp, 8, x;
mov.u32 y, lane;
{}sub.u32 left, live_rows, lane;
",
        address(sizes, GATED_ROWS),
    );
    for first in (0..sizes.rows_max()).step_by(GATED_ROWS) {
        let blocks = first / BLOCK_ROWS;
        let _ = writeln!(text, "setp.le.u32 p, height, {blocks};\n@p bra STORED;");
        text.push_str(&ready(sizes, first, GATED_ROWS));
        text.push_str(&packed_gates(element, first));
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

/// `silu(gate) * up` of rows from `first` on: four matrices, two numbers of each a thread.
pub(super) fn packed_gates(element: &str, first: usize) -> String {
    let mut text = String::new();
    for matrix in 0..4 {
        let sum = first / 2 + 4 * matrix;
        for (n, (gate, up)) in [(sum, sum + 2), (sum + 1, sum + 3)].into_iter().enumerate() {
            let [gate, up] = [gate, up].map(|sum| format!("sum{sum}"));
            text.push_str(&activated(&format!("gate{n}"), &gate, &up));
        }
        let _ = writeln!(text, "cvt.rn.{element}x2.f32 packed{matrix}, gate1, gate0;");
    }
    text
}

/// The sums themselves, 16 features of a warp.
fn plain_epilogue(sizes: &Sizes) -> String {
    let element = sizes.out;
    // Matrix m of the four: rows 8 * (m / 2), features 8 * (m % 2).
    let mut text = format!(
        "shl.b32 x, column, {};
mad.lo.u32 x, group, 64, x;
mad.lo.u32 x, warp, 16, x;
and.b32 y, lane, 1;
mad.lo.u32 x, y, 8, x;
shr.u32 y, lane, 1;
sub.u32 left, live_rows, y;
{}and.b32 x, lane, 7;
shr.u32 y, lane, 4;
mad.lo.u32 x, y, 8, x;
shr.u32 y, lane, 3;
and.b32 y, y, 1;
shl.b32 y, y, 4;
mad.lo.u32 x, x, 32, y;
add.u32 at, x, turned;
",
        sizes.tile_features().ilog2(),
        address(sizes, BLOCK_ROWS),
    );
    for block in 0..sizes.rows_max() / BLOCK_ROWS {
        let _ = writeln!(text, "setp.le.u32 p, height, {block};\n@p bra STORED;");
        text.push_str(&ready(sizes, block * BLOCK_ROWS, BLOCK_ROWS));
        for matrix in 0..4 {
            let sum = block * BLOCK_ROWS / 2 + 2 * matrix;
            let (low, high) = (format!("sum{sum}"), format!("sum{}", sum + 1));
            let _ = writeln!(text, "cvt.rn.{element}x2.f32 packed{matrix}, {high}, {low};");
        }
        text.push_str(&store("at", block % 2 * 512));
        if matches!(sizes.numbers, Numbers::Words { .. }) {
            text.push_str(words::neighbours());
        }
        let _ = writeln!(
            text,
            "setp.gt.and.s32 q, left, {}, is_live;
@q st.global.v4.b32 [pointer], {{packed0, packed1, packed2, packed3}};
add.u64 pointer, pointer, next_rows;",
            block * BLOCK_ROWS
        );
    }
    text
}

/// Four matrices through shared memory; each lane writes a row of one at `place` and reads at `from`.
pub(super) fn store(place: &str, buffer: usize) -> String {
    format!(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [{place}+{buffer}], {{packed0, packed1, packed2, packed3}};
bar.warp.sync 0xffffffff;
ld.shared.v4.b32 {{packed0, packed1, packed2, packed3}}, [from+{buffer}];
"
    )
}

/// `result` = `silu(gate) * up`.
pub(super) fn activated(result: &str, gate: &str, up: &str) -> String {
    // 1 / (1 + 2^(-log2(e) * gate)) * (gate * up)
    format!(
        "mul.f32 {result}, {gate}, 0fBFB8AA3B;
ex2.approx.ftz.f32 {result}, {result};
add.f32 {result}, {result}, 0f3F800000;
rcp.approx.ftz.f32 {result}, {result};
mul.f32 {result}, {result}, {gate};
mul.f32 {result}, {result}, {up};
"
    )
}

/// `x` = the first of this thread's two features: the other is its up, or 8 further on.
pub(super) fn own_feature(sizes: &Sizes) -> String {
    let of_warp = 16 / sizes.parts;
    format!(
        "mul.lo.u32 x, column, {tile};
mad.lo.u32 x, group, {of_group}, x;
mad.lo.u32 x, warp, {of_warp}, x;
shr.u32 y, lane, 2;
add.u32 x, x, y;
",
        tile = sizes.tile_features(),
        of_group = sizes.tile_features() / 2,
    )
}

/// 32-bit numbers, each thread its own.
fn wide_epilogue(sizes: &Sizes) -> String {
    let row_bytes = sizes.features * 4;
    let mut text = format!(
        "{own_feature}and.b32 y, lane, 3;
shl.b32 y, y, 1;
sub.u32 left, live_rows, y;
add.u32 y, y, row;
mul.wide.u32 pointer, y, {row_bytes};
mad.wide.u32 pointer, x, 4, pointer;
add.u64 pointer, pointer, out;
setp.lt.u32 is_live, x, {last};
add.u32 x, x, 8;
setp.lt.u32 later, x, {last};
",
        own_feature = own_feature(sizes),
        last = sizes.features,
    );
    for octet in 0..sizes.rows_max() / 8 {
        if octet % 2 == 0 {
            let _ = writeln!(text, "setp.le.u32 p, height, {};\n@p bra STORED;", octet / 2);
            text.push_str(&ready(sizes, 8 * octet, BLOCK_ROWS));
        }
        for row in 0..2 {
            let (sum, at, of_tile) = (4 * octet + row, row * row_bytes, 8 * octet + row);
            let [first, second] = [sum, sum + 2].map(|sum| format!("sum{sum}"));
            if sizes.parts == 2 {
                text.push_str(&activated("gate0", &first, &second));
                let _ = writeln!(
                    text,
                    "setp.gt.and.s32 q, left, {of_tile}, is_live;
@q st.global.f32 [pointer+{at}], gate0;"
                );
            } else {
                let _ = writeln!(
                    text,
                    "setp.gt.and.s32 q, left, {of_tile}, is_live;
@q st.global.f32 [pointer+{at}], {first};
setp.gt.and.s32 q, left, {of_tile}, later;
@q st.global.f32 [pointer+{}], {second};",
                    at + 32
                );
            }
        }
        let _ = writeln!(text, "add.u64 pointer, pointer, {};", 8 * row_bytes);
    }
    text
}
