//! The text of the kernel with a norm.

use std::fmt::Write as _;

use super::text::{Cut, add, head, multiply, round, to_codes, weights};

const PARAMETERS: &str =
    ".param .u64 hidden_pointer, .param .u64 delta_pointer, .param .u64 sums_pointer,
    .param .u64 norm_pointer, .param .u64 weights_pointer, .param .u64 scales_pointer,
    .param .u64 out_pointer, .param .f32 epsilon_value, .param .f32 least_value, .param .f32 most_value";

const REGISTERS: &str = ".reg .b64 hidden, delta, sums, norm, out;
.reg .f32 epsilon, least, most, squares, other, root;
.reg .b32 pair0, pair1, whole;
.reg .b16 rounded;
ld.param.u64 hidden, [hidden_pointer];
ld.param.u64 delta, [delta_pointer];
ld.param.u64 sums, [sums_pointer];
ld.param.u64 norm, [norm_pointer];
ld.param.u64 out, [out_pointer];
ld.param.f32 epsilon, [epsilon_value];
ld.param.f32 least, [least_value];
ld.param.f32 most, [most_value];
";

/// `out[n]` = the product of the norm of `hidden + delta` and the weights, `project_entry`; `hidden + delta`
/// goes to `sums`.
pub(super) fn of_norm(cut: &Cut) -> String {
    let mut text = head("project", PARAMETERS, cut);
    text.push_str(REGISTERS);
    text.push_str(&weights(cut));
    for unit in 0..cut.groups {
        let _ = writeln!(
            text,
            ".reg .f32 value{unit}_<4>, norm{unit}_<4>;
.reg .b64 at{unit};
add.u32 i, group, {};
shl.b32 i, i, 5;
add.u32 i, i, lane;
mul.wide.u32 at{unit}, i, 8;
shl.b64 offset, at{unit}, 1;
add.u64 address, norm, offset;
ld.global.nc.v4.f32 {{norm{unit}_0, norm{unit}_1, norm{unit}_2, norm{unit}_3}}, [address];",
            unit * cut.across,
        );
    }
    text.push_str("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n");
    text.push_str(&sum(cut));
    text.push_str(&root(cut));
    for unit in 0..cut.groups {
        for i in 0..4 {
            let _ = writeln!(
                text,
                "mul.rn.f32 value{unit}_{i}, value{unit}_{i}, root;
mul.rn.f32 value{unit}_{i}, norm{unit}_{i}, value{unit}_{i};"
            );
        }
        text.push_str(&round(unit));
        text.push_str(&to_codes(unit));
    }
    text.push_str(&multiply(cut));
    text.push_str(&add(
        cut,
        "cvt.rn.bf16.f32 rounded, sum;
mul.wide.u32 offset, i, 2;
add.u64 address, out, offset;
st.global.b16 [address], rounded;",
    ));
    text
}

/// The lane's values of `hidden + delta`, which the first block stores, and the sum of their squares.
fn sum(cut: &Cut) -> String {
    let mut text = String::from("mov.f32 squares, 0f00000000;\n");
    for unit in 0..cut.groups {
        let _ = writeln!(
            text,
            ".reg .b32 added{unit}_<2>;
shl.b64 offset, at{unit}, 1;
add.u64 address, hidden, offset;
ld.global.v4.f32 {{value{unit}_0, value{unit}_1, value{unit}_2, value{unit}_3}}, [address];
add.u64 address, delta, at{unit};
ld.global.v2.b32 {{added{unit}_0, added{unit}_1}}, [address];"
        );
    }
    for unit in 0..cut.groups {
        for i in 0..4 {
            let pair = format!("added{unit}_{}", i / 2);
            let widen = match i % 2 {
                0 => format!("shl.b32 whole, {pair}, 16;"),
                _ => format!("and.b32 whole, {pair}, 0xffff0000;"),
            };
            let _ = writeln!(
                text,
                "{widen}
mov.b32 other, whole;
add.rn.f32 value{unit}_{i}, value{unit}_{i}, other;
fma.rn.f32 squares, value{unit}_{i}, value{unit}_{i}, squares;"
            );
        }
        let _ = writeln!(
            text,
            "setp.eq.u32 p, block, 0;
shl.b64 offset, at{unit}, 1;
add.u64 address, sums, offset;
@p st.global.v4.f32 [address], {{value{unit}_0, value{unit}_1, value{unit}_2, value{unit}_3}};"
        );
    }
    text
}

/// From the squares of all lanes, `root`: one over the root of their mean.
fn root(cut: &Cut) -> String {
    let mut text = String::new();
    for distance in [16, 8, 4, 2, 1] {
        let _ = writeln!(
            text,
            "shfl.sync.bfly.b32 other, squares, {distance}, 31, 0xffffffff;
add.rn.f32 squares, squares, other;"
        );
    }
    let _ = writeln!(
        text,
        "setp.eq.u32 p, lane, 0;
shl.b32 at, warp, 2;
add.u32 at, at, base;
@p st.shared.f32 [at+{squares_at}], squares;
bar.sync 0;
mov.f32 squares, 0f00000000;",
        squares_at = cut.squares_at(),
    );
    for warp in 0..cut.warps() {
        let _ = writeln!(
            text,
            "ld.shared.f32 other, [base+{}];\nadd.rn.f32 squares, squares, other;",
            cut.squares_at() + 4 * warp,
        );
    }
    let width = cut.inputs as f32;
    let _ = writeln!(
        text,
        "div.rn.f32 squares, squares, 0f{:08X};
add.rn.f32 squares, squares, epsilon;
sqrt.rn.f32 root, squares;
rcp.rn.f32 root, root;",
        width.to_bits(),
    );
    text
}
