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

/// `scale` = the largest magnitude over 127, rounded as the quotient, and its inverse, the next number above: so
/// halfway cases, which abound where that is a power of two, lie beyond a half.
pub(super) fn integer_scale(n: usize) -> String {
    // 10^-10, 1 / 127 and -127.
    format!(
        "max.f32 largest{n}, largest{n}, 0f2EDBE6FF;
mul.f32 near, largest{n}, 0f3C010204;
fma.rn.f32 rest, near, 0fC2FE0000, largest{n};
fma.rn.f32 scale{n}, rest, 0f3C010204, near;
rcp.approx.ftz.f32 inverse{n}, scale{n};
neg.f32 near, scale{n};
fma.rn.f32 rest, near, inverse{n}, 0f3F800000;
fma.rn.f32 inverse{n}, rest, inverse{n}, inverse{n};
mov.b32 x, inverse{n};
add.u32 x, x, 1;
mov.b32 inverse{n}, x;
"
    )
}

/// Stores the integers nearest to four numbers over the scale of number `of`, halves away from zero. A conversion
/// takes several times as long as to add 3 * 2^22, of whose sums the lowest byte is the integer.
pub(super) fn integers_of(integers: usize, n: usize, of: usize) -> String {
    let mut text: String = (0..4)
        .map(|i| format!("fma.rn.f32 v{n}_{i}, v{n}_{i}, inverse{of}, 0f4B400000;\n"))
        .collect();
    for (word, i) in [("x", 0), ("y", 2)] {
        let _ = writeln!(
            text,
            "mov.b32 item, v{n}_{i};
mov.b32 {word}, v{n}_{};
prmt.b32 {word}, item, {word}, 0x0040;",
            i + 1
        );
    }
    let _ = writeln!(
        text,
        "prmt.b32 word, x, y, 0x5410;
@has{of} st.shared.b32 [codes_at{of}+{integers}], word;"
    );
    text
}
