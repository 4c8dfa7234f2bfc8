//! Integers: their sums, which are exact, become float32 numbers at the end of a tile.
//!
//! Scales cover all input features. A lane holds those of the rows `lane`, `lane + 32` and so on of a tile,
//! read while the first products are under way, and gives them to the lanes that have sums of these rows.

use std::fmt::Write as _;

use super::super::{BLOCK_ROWS, Scales};
use super::{Sizes, codes};

/// Begin of the names of sums.
pub(super) const SUM: &str = "whole";
/// Every feature has a scale.
const SCALES: Scales = Scales { features: 1, grouped: false };
/// Lanes of a warp, and so rows whose scales one register of each holds.
const LANES: usize = 32;

/// Registers for sums and scales of tiles of so many rows.
pub(super) fn registers(rows: usize) -> String {
    format!(
        ".reg .s32 {SUM}<{}>;
.reg .f32 row_scale<{}>;
.reg .b32 scale_lane;
",
        rows / 2,
        rows.div_ceil(LANES)
    )
}

/// The scales of this thread's two features, and of the tile's rows.
pub(super) fn load_scales(sizes: &Sizes) -> String {
    let mut text = codes::feature_scales(sizes, SCALES);
    let _ = writeln!(
        text,
        "shl.b32 scale_lane, lane, 1;
and.b32 scale_lane, scale_lane, 6;
shl.b32 y, height, {};
sub.u32 y, y, lane;
add.u32 x, row, lane;
mad.wide.u32 pointer, x, 4, row_scales;",
        BLOCK_ROWS.ilog2()
    );
    for (n, first) in (0..sizes.rows_max()).step_by(LANES).enumerate() {
        let _ = writeln!(
            text,
            "mov.f32 row_scale{n}, 0f00000000;
setp.gt.s32 p, y, {first};
@p ld.global.f32 row_scale{n}, [pointer+{}];",
            4 * first
        );
    }
    text
}

/// `sum` = the sums of `rows` rows from row `first` on, times their scales.
pub(super) fn scaled(first: usize, rows: usize) -> String {
    let mut text = String::new();
    for octet in first / 8..(first + rows) / 8 {
        for row in 0..2 {
            let _ = writeln!(
                text,
                "add.u32 x, scale_lane, {};
shfl.sync.idx.b32 x, row_scale{}, x, 31, 0xffffffff;
mov.b32 shared_scale, x;",
                8 * octet % LANES + row,
                8 * octet / LANES,
            );
            for (n, of_feature) in [(row, "first_scale"), (row + 2, "second_scale")] {
                let sum = 4 * octet + n;
                let _ = writeln!(
                    text,
                    "mul.f32 scale, shared_scale, {of_feature};
cvt.rn.f32.s32 sum{sum}, {SUM}{sum};
mul.f32 sum{sum}, sum{sum}, scale;"
                );
            }
        }
    }
    text
}
