//! The kernel's text.
//!
//! (PTX ISA 8.4: `griddepcontrol`, `prefetch`, `cvt` to `e4m3x2`.)

use std::fmt::Write as _;

use super::super::cuda::Residual;

/// Columns of a thread.
pub(super) const COLUMNS: usize = 8;
/// Threads that share a scale.
const SHARING: usize = 128 / COLUMNS;

/// What a kernel is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// Columns of a row.
    pub(super) width: usize,
    /// What is added.
    pub(super) residual: Residual,
    /// Whether the rounded rows are stored.
    pub(super) rows: bool,
    /// Whether their codes are.
    pub(super) codes: bool,
}

impl Form {
    pub(super) fn threads(&self) -> usize {
        self.width / COLUMNS
    }

    fn warps(&self) -> usize {
        self.threads() / 32
    }

    pub(super) fn shared_bytes(&self) -> usize {
        4 * self.warps()
    }
}

/// `normalize_entry`: the rows to normalise, what is added as rows or as parts, the weight, the rows that
/// come out, codes and their scales; of pairs their rows and weights in place of these, and last where they
/// are.
pub(super) fn source(form: &Form) -> String {
    let mut text = begin(form);
    text.push_str(&load(form));
    text.push_str(&root(form));
    for i in 0..COLUMNS {
        let _ = writeln!(
            text,
            "mul.rn.f32 value{i}, value{i}, root;
mul.rn.f32 value{i}, weight{i}, value{i};"
        );
    }
    for pair in 0..COLUMNS / 2 {
        let (even, odd) = (2 * pair, 2 * pair + 1);
        let _ = writeln!(text, "cvt.rn.bf16x2.f32 pair{pair}, value{odd}, value{even};");
    }
    if form.rows {
        text.push_str(
            "shl.b64 offset, at, 1;
add.u64 address, out, offset;
st.global.v4.b32 [address], {pair0, pair1, pair2, pair3};
",
        );
    }
    if form.codes {
        text.push_str(&codes());
    }
    text.push_str("ret;\n}\n");
    text
}

/// Who one is, and what is known before the kernel ahead ends.
fn begin(form: &Form) -> String {
    let positions = match form.residual {
        Residual::AddPairs(_) => ",\n    .param .u64 positions_pointer",
        _ => "",
    };
    format!(
        ".version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry normalize_entry(.param .u64 hidden_pointer, .param .u64 delta_pointer,
    .param .u64 sums_pointer, .param .u64 weight_pointer, .param .u64 out_pointer,
    .param .u64 codes_pointer, .param .u64 scales_pointer, .param .u32 rows, .param .u32 part_rows,
    .param .u32 row_stride, .param .u32 group_stride, .param .f32 epsilon_value,
    .param .f32 least_value, .param .f32 most_value{positions})
.reqntid {threads}, 1, 1
{{
.reg .b32 thread, lane, row, i, base, pair<4>, whole, stride;
.reg .b64 hidden, delta, sums, weights, out, codes, scales, at, address, offset, part_bytes;
.reg .f32 value<{COLUMNS}>, weight<{COLUMNS}>, squares, other, root, epsilon, scale, least, most;
.reg .b16 code<4>;
.reg .b32 word<2>;
.reg .pred p;
mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
mov.u32 row, %ctaid.x;
mov.u32 base, shared;
ld.param.u64 hidden, [hidden_pointer];
ld.param.u64 delta, [delta_pointer];
ld.param.u64 sums, [sums_pointer];
ld.param.u64 weights, [weight_pointer];
ld.param.u64 out, [out_pointer];
ld.param.u64 codes, [codes_pointer];
ld.param.u64 scales, [scales_pointer];
ld.param.f32 epsilon, [epsilon_value];
ld.param.f32 least, [least_value];
ld.param.f32 most, [most_value];
mul.wide.u32 offset, thread, {weight_bytes};
add.u64 address, weights, offset;
ld.global.nc.v4.f32 {{weight0, weight1, weight2, weight3}}, [address];
ld.global.nc.v4.f32 {{weight4, weight5, weight6, weight7}}, [address+16];
mul.wide.u32 at, row, {width};
mul.wide.u32 offset, thread, {COLUMNS};
add.u64 at, at, offset;
shl.b64 offset, at, 2;
add.u64 hidden, hidden, offset;
prefetch.global.L2 [hidden];
griddepcontrol.launch_dependents;
griddepcontrol.wait;
",
        threads = form.threads(),
        weight_bytes = 4 * COLUMNS,
        width = form.width,
    )
}

/// The values of the thread with what is added, which are stored again.
fn load(form: &Form) -> String {
    let mut text = String::from(
        "ld.global.v4.f32 {value0, value1, value2, value3}, [hidden];
ld.global.v4.f32 {value4, value5, value6, value7}, [hidden+16];
",
    );
    match form.residual {
        Residual::Alone => return text,
        Residual::Add => text.push_str(
            "shl.b64 offset, at, 1;
add.u64 address, delta, offset;
ld.global.v4.b32 {pair0, pair1, pair2, pair3}, [address];
",
        ),
        Residual::AddParts(parts) => text.push_str(&sum_parts(form.width, parts)),
        Residual::AddPairs(pairs) => text.push_str(&sum_pairs(form.width, pairs)),
    }
    for i in 0..COLUMNS {
        let widen = match i % 2 {
            0 => format!("shl.b32 whole, pair{}, 16;", i / 2),
            _ => format!("and.b32 whole, pair{}, 0xffff0000;", i / 2),
        };
        let _ =
            writeln!(text, "{widen}\nmov.b32 other, whole;\nadd.rn.f32 value{i}, value{i}, other;");
    }
    text.push_str(
        "st.global.v4.f32 [hidden], {value0, value1, value2, value3};
st.global.v4.f32 [hidden+16], {value4, value5, value6, value7};
",
    );
    text
}

/// The sums of parts in their order, rounded, in pairs.
fn sum_parts(width: usize, parts: usize) -> String {
    let mut text = format!(
        "ld.param.u32 i, [part_rows];
mul.wide.u32 part_bytes, i, {};
shl.b64 offset, at, 2;
add.u64 address, sums, offset;
",
        4 * width
    );
    for part in 0..parts {
        let _ = write!(
            text,
            ".reg .f32 part{part}_<{COLUMNS}>;
ld.global.v4.f32 {{part{part}_0, part{part}_1, part{part}_2, part{part}_3}}, [address];
ld.global.v4.f32 {{part{part}_4, part{part}_5, part{part}_6, part{part}_7}}, [address+16];
add.u64 address, address, part_bytes;
"
        );
    }
    let words = (0..parts).flat_map(|part| [0, COLUMNS / 2].map(|i| format!("part{part}_{i}")));
    text.push_str(&behind_all(words, (0..COLUMNS).map(|i| format!("part0_{i}"))));
    for part in 1..parts {
        for i in 0..COLUMNS {
            let _ = writeln!(text, "add.rn.f32 part0_{i}, part0_{i}, part{part}_{i};");
        }
    }
    text.push_str(&round("part0_"));
    text
}

/// Eight numbers as pairs of bfloat16.
fn round(name: &str) -> String {
    (0..COLUMNS / 2)
        .map(|pair| {
            let (even, odd) = (2 * pair, 2 * pair + 1);
            format!("cvt.rn.bf16x2.f32 pair{pair}, {name}{odd}, {name}{even};\n")
        })
        .collect()
}

/// Makes `numbers` depend on all `words` and on the hidden row, so that all of them are asked for before the
/// first is used: by bits of which `%ctaid.z`, which is zero, lets none through.
fn behind_all(
    words: impl Iterator<Item = String>,
    numbers: impl Iterator<Item = String>,
) -> String {
    let mut text =
        String::from(".reg .b32 zero, all, bits;\nmov.u32 zero, %ctaid.z;\nmov.b32 all, 0;\n");
    let hidden = [0, COLUMNS / 2].map(|i| format!("value{i}"));
    for word in words.chain(hidden) {
        let _ = writeln!(text, "mov.b32 bits, {word};\nor.b32 all, all, bits;");
    }
    text.push_str("and.b32 all, all, zero;\n");
    for number in numbers {
        let _ = writeln!(
            text,
            "mov.b32 bits, {number};\nxor.b32 bits, bits, all;\nmov.b32 {number}, bits;"
        );
    }
    text
}

/// Loads `count` neighbouring words, four at a time where they are aligned.
fn load_words(count: usize, kind: &str, name: &str, address: &str) -> String {
    let at_once = if count.is_multiple_of(4) { 4 } else { 1 };
    let load = |first: usize| {
        let names: Vec<String> = (first..first + at_once).map(|i| format!("{name}{i}")).collect();
        let names = names.join(", ");
        match at_once {
            4 => format!("ld.global.v4.{kind} {{{names}}}, [{address}+{}];\n", 4 * first),
            _ => format!("ld.global.{kind} {names}, [{address}+{}];\n", 4 * first),
        }
    };
    (0..count).step_by(at_once).map(load).collect()
}

/// The weighted sums of the rows of a token's pairs in their order, rounded, in pairs of columns. A pair
/// without a row adds nothing.
fn sum_pairs(width: usize, pairs: usize) -> String {
    let mut text = format!(
        ".reg .b64 places, factors;
.reg .b32 place<{pairs}>, column;
.reg .f32 factor<{pairs}>, sum<{COLUMNS}>;
.reg .pred has<{pairs}>;
ld.param.u64 places, [positions_pointer];
mul.wide.u32 offset, row, {row_bytes};
add.u64 places, places, offset;
add.u64 factors, sums, offset;
",
        row_bytes = 4 * pairs
    );
    text.push_str(&load_words(pairs, "b32", "place", "places"));
    text.push_str(&load_words(pairs, "f32", "factor", "factors"));
    let _ = writeln!(text, "shl.b32 column, thread, {};", (2 * COLUMNS).ilog2());
    for pair in 0..pairs {
        let _ = write!(
            text,
            ".reg .b32 of{pair}_<{words}>;
setp.ge.s32 has{pair}, place{pair}, 0;
max.s32 place{pair}, place{pair}, 0;
mul.wide.s32 offset, place{pair}, {row_bytes};
add.u64 address, delta, offset;
cvt.u64.u32 offset, column;
add.u64 address, address, offset;
",
            words = COLUMNS / 2,
            row_bytes = 2 * width,
        );
        let _ = writeln!(
            text,
            "ld.global.v4.b32 {{of{pair}_0, of{pair}_1, of{pair}_2, of{pair}_3}}, [address];"
        );
    }
    let words = (0..pairs).map(|pair| format!("of{pair}_0"));
    text.push_str(&behind_all(words, (0..pairs).map(|pair| format!("factor{pair}"))));
    for i in 0..COLUMNS {
        let _ = writeln!(text, "mov.f32 sum{i}, 0f00000000;");
    }
    for pair in 0..pairs {
        for i in 0..COLUMNS {
            let from = format!("of{pair}_{}", i / 2);
            let widen = match i % 2 {
                0 => format!("shl.b32 whole, {from}, 16;"),
                _ => format!("and.b32 whole, {from}, 0xffff0000;"),
            };
            let _ = writeln!(
                text,
                "{widen}\nmov.b32 other, whole;\n@has{pair} fma.rn.f32 sum{i}, other, factor{pair}, sum{i};"
            );
        }
    }
    text.push_str(&round("sum"));
    text
}

/// From the values of all threads, `root`: one over the root of their mean square.
fn root(form: &Form) -> String {
    let mut text = String::from("mul.rn.f32 squares, value0, value0;\n");
    for i in 1..COLUMNS {
        let _ = writeln!(text, "fma.rn.f32 squares, value{i}, value{i}, squares;");
    }
    text.push_str(&exchange([16, 8, 4, 2, 1], "squares", "add.rn.f32"));
    text.push_str(
        "setp.eq.u32 p, lane, 0;
shr.u32 i, thread, 5;
shl.b32 i, i, 2;
add.u32 i, i, base;
@p st.shared.f32 [i], squares;
bar.sync 0;
mov.f32 squares, 0f00000000;
",
    );
    for warp in 0..form.warps() {
        let _ = writeln!(
            text,
            "ld.shared.f32 other, [base+{}];\nadd.rn.f32 squares, squares, other;",
            4 * warp
        );
    }
    let _ = writeln!(
        text,
        "div.rn.f32 squares, squares, 0f{:08X};
add.rn.f32 squares, squares, epsilon;
sqrt.rn.f32 root, squares;
rcp.rn.f32 root, root;",
        (form.width as f32).to_bits(),
    );
    text
}

/// `name` of all lanes that are so far apart, by `operation`.
fn exchange(distances: impl IntoIterator<Item = usize>, name: &str, operation: &str) -> String {
    let mut text = String::new();
    for distance in distances {
        let _ = writeln!(
            text,
            "shfl.sync.bfly.b32 other, {name}, {distance}, 31, 0xffffffff;
{operation} {name}, {name}, other;"
        );
    }
    text
}

/// Codes of the rounded values, and the scale that the threads of 128 columns share.
fn codes() -> String {
    let mut text = String::from("mov.f32 scale, 0f00000000;\n");
    for i in 0..COLUMNS {
        let widen = match i % 2 {
            0 => format!("shl.b32 whole, pair{}, 16;", i / 2),
            _ => format!("and.b32 whole, pair{}, 0xffff0000;", i / 2),
        };
        let _ = writeln!(
            text,
            "{widen}\nmov.b32 value{i}, whole;\nabs.f32 other, value{i};\nmax.f32 scale, scale, other;"
        );
    }
    text.push_str(&exchange([8, 4, 2, 1], "scale", "max.f32"));
    text.push_str(
        "div.rn.f32 scale, scale, 0f43E00000;
max.f32 scale, scale, least;
min.f32 scale, scale, most;
",
    );
    for i in 0..COLUMNS {
        let _ = writeln!(text, "div.rn.f32 value{i}, value{i}, scale;");
    }
    for pair in 0..COLUMNS / 2 {
        let (even, odd) = (2 * pair, 2 * pair + 1);
        let _ = writeln!(text, "cvt.rn.satfinite.e4m3x2.f32 code{pair}, value{odd}, value{even};");
    }
    let _ = write!(
        text,
        "mov.b32 word0, {{code0, code1}};
mov.b32 word1, {{code2, code3}};
add.u64 address, codes, at;
st.global.v2.b32 [address], {{word0, word1}};
and.b32 i, thread, {};
setp.eq.u32 p, i, 0;
shr.u32 i, thread, {};
ld.param.u32 stride, [group_stride];
mul.lo.u32 i, i, stride;
ld.param.u32 stride, [row_stride];
mad.lo.u32 i, row, stride, i;
mul.wide.u32 offset, i, 4;
add.u64 address, scales, offset;
@p st.global.f32 [address], scale;
",
        SHARING - 1,
        SHARING.ilog2(),
    );
    text
}
