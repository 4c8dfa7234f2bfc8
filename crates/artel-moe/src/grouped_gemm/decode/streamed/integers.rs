//! Weights and activations that are integers: the matrix units add them up exactly.
//!
//! Lanes read what they read of FP8 weights. The matrix instruction takes 32 input features, which are two
//! words of a lane; nothing is widened.
//!
//! (PTX ISA 8.0: `mma.m16n8k32`.)

use std::fmt::Write as _;
use std::ops::Range;

/// Sums of the groups that a lane has at a time, and of all.
pub(super) const REGISTERS: &str = ".reg .s32 d<16>, whole<4>, none;
mov.s32 none, 0;
";

/// `d` of some groups: weights by codes.
pub(super) fn products(groups: Range<usize>) -> String {
    let mut text = String::new();
    for [word, next] in [[0, 1], [2, 3], [4, 5], [6, 7]] {
        for (n, group) in groups.clone().enumerate() {
            let [d0, d1, d2, d3] = [0, 1, 2, 3].map(|i| format!("d{}", 4 * n + i));
            let into = format!("{{{d0}, {d1}, {d2}, {d3}}}");
            let added = if word == 0 { "{none, none, none, none}" } else { &into };
            let _ = writeln!(
                text,
                "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {into},
    {{w{n}_0_{word}, w{n}_1_{word}, w{n}_0_{next}, w{n}_1_{next}}},
    {{low_code{group}_{word}, low_code{group}_{next}}}, {added};"
            );
        }
    }
    text
}

/// Adds the products of one group.
pub(super) fn add_group(n: usize) -> String {
    (0..4).map(|i| format!("add.s32 whole{i}, whole{i}, d{};\n", 4 * n + i)).collect()
}

/// Sums of nothing.
pub(super) fn begin() -> String {
    (0..4).map(|i| format!("mov.s32 whole{i}, 0;\n")).collect()
}

/// `sum` = the sums.
pub(super) fn end() -> String {
    (0..4).map(|i| format!("cvt.rn.f32.s32 sum{i}, whole{i};\n")).collect()
}
