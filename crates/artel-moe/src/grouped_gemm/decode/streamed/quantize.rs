//! Activations to FP8 codes in shared memory, as every block of threads needs them.
//!
//! A warp takes 128 columns of a token at a time, four a lane. Scales are of such groups, or of rows;
//! see [`activations`](crate::quant::activations). Hidden states are the work of all warps that
//! multiply, before they do; activations of an expert that of the coders, a row each. The latter make
//! float16 numbers over a power of two where weights are in words. Hidden states with a scale a row are
//! [`rows`](super::rows)'.

use std::fmt::Write as _;

use super::integers::{integer_scale, integers_of};
use super::layout::{CODERS, FIRST_CODER, ScaleForm, Sizes, TOKENS_MAX, WARPS};
use super::multiply::NEXT_BUFFER;
use super::text::{ACTIVATED_BYTES, advance, arrive, read_note, wait};
use crate::quant::BLOCK;

/// Groups that a warp has under way.
const HIDDEN_AT_ONCE: usize = 6;
const INNER_AT_ONCE: usize = 12;
/// Where all warps that multiply meet.
pub(super) const MEET: &str = "bar.sync 1, 256;\n";

/// Codes of all tokens' hidden states, and a scale for each group.
pub(super) fn hidden_codes(sizes: &Sizes) -> String {
    let (product, places) = (&sizes.first, sizes.places().hidden_codes);
    let mut text = format!("{{\n{}", registers(HIDDEN_AT_ONCE));
    let _ = writeln!(
        text,
        "ld.param.f32 least, [least_of_x];
ld.param.f32 most, [most_of_x];
mul.lo.u32 items, tokens, {};",
        product.groups()
    );
    text.push_str(&walk(sizes, "HIDDEN_CODES", |n| {
        let mut text = scale_of(n, n);
        text.push_str(&codes_of(places.codes, n, n));
        let at = places.group_scales;
        let _ = writeln!(text, "@stores{n} st.shared.f32 [scales_at{n}+{at}], scale{n};");
        text
    }));
    text.push_str(MEET);
    text.push_str("}\n");
    text
}

pub(super) fn registers(count: usize) -> String {
    let mut text = String::from(
        ".reg .b32 items, item, group;
.reg .f32 near, rest, inverse, other, least, most;
.reg .b16 code0, code1;
.reg .pred is_finite;
",
    );
    for n in 0..count {
        let _ = writeln!(
            text,
            ".reg .b32 token{n}, codes_at{n}, scales_at{n}, raw{n}_0, raw{n}_1;
.reg .f32 v{n}_0, v{n}_1, v{n}_2, v{n}_3, largest{n}, scale{n};
.reg .pred has{n}, stores{n};"
        );
    }
    text
}

/// Every group of every token's hidden states, dealt out to warps: loaded, its largest magnitude
/// found, and then `each`.
fn walk(sizes: &Sizes, name: &str, each: impl Fn(usize) -> String) -> String {
    let product = &sizes.first;
    let groups = product.groups();
    let mut text = format!(
        "mov.u32 item, warp;
{name}: setp.ge.u32 p, item, items;
@p bra {name}_DONE;
"
    );
    for n in 0..HIDDEN_AT_ONCE {
        let _ = writeln!(
            text,
            "add.u32 x, item, {ahead};
setp.lt.u32 has{n}, x, items;
and.pred stores{n}, has{n}, is_first_lane;
div.u32 token{n}, x, {groups};
mul.lo.u32 y, token{n}, {groups};
sub.u32 group, x, y;
shl.b32 scales_at{n}, x, 2;
add.u32 scales_at{n}, scales_at{n}, base;
shl.b32 y, group, 7;
mad.lo.u32 y, lane, 4, y;
mad.lo.u32 codes_at{n}, token{n}, {stride}, y;
add.u32 codes_at{n}, codes_at{n}, base;
mad.lo.u32 y, token{n}, {columns}, y;
mul.wide.u32 pointer, y, 2;
add.u64 pointer, pointer, hidden;
mov.b32 raw{n}_0, 0;
mov.b32 raw{n}_1, 0;
@has{n} ld.global.v2.b32 {{raw{n}_0, raw{n}_1}}, [pointer];",
            ahead = WARPS * n,
            stride = product.code_stride(),
            columns = product.columns,
        );
    }
    for n in 0..HIDDEN_AT_ONCE {
        text.push_str(&unpack(sizes.element, n));
        text.push_str(&largest_of_lane(n));
    }
    let all: Vec<usize> = (0..HIDDEN_AT_ONCE).collect();
    text.push_str(&largest_of_warp(&all));
    (0..HIDDEN_AT_ONCE).for_each(|n| text.push_str(&each(n)));
    let step = WARPS * HIDDEN_AT_ONCE;
    let _ = writeln!(text, "add.u32 item, item, {step};\nbra {name};\n{name}_DONE:");
    text
}

/// The warps that make codes of activations: those of an expert when all parts are there, in the
/// order of tasks.
pub(super) fn coder(sizes: &Sizes) -> String {
    let places = sizes.places();
    let mut text = format!(
        "CODER:
{{
{}{}.reg .b32 buffer, buffer_phase, code_base, known_place, own_row, token;
.reg .b64 source, row;
.reg .f32 zero;
mov.f32 zero, 0f00000000;
mov.u32 buffer, 0;
mov.u32 buffer_phase, 0;
mov.u32 known_place, -1;
ld.param.f32 least, [least_of_inner];
ld.param.f32 most, [most_of_inner];
",
        registers(INNER_AT_ONCE.max(sizes.second.groups())),
        row_registers(sizes, INNER_AT_ONCE.max(sizes.second.groups())),
    );
    for stage in sizes.first_stages()..places.stages {
        text.push_str(&arrive("base", places.empty + 8 * stage));
    }
    text.push_str("CODE:\n");
    text.push_str(&read_note(sizes, "CODE_NOTE"));
    text.push_str(&arrive("barrier", places.empty));
    text.push_str(&advance(sizes));
    let _ = writeln!(
        text,
        "setp.eq.u32 p, kind, 2;
@p bra EXIT;
setp.ne.u32 p, kind, 1;
@p bra CODE;
setp.eq.u32 p, place, known_place;
@p bra CODE;
mov.u32 known_place, place;
mad.lo.u32 code_base, buffer, {}, base;
xor.b32 x, buffer_phase, 1;
mad.lo.u32 z, buffer, 8, base;",
        places.codes_bytes
    );
    text.push_str(&wait("CODES_READ", "z", places.codes_empty, "x"));
    text.push_str(&wait_for_inner(sizes));
    text.push_str(&inner_codes(sizes));
    text.push_str(&arrive("z", places.codes_full));
    text.push_str(NEXT_BUFFER);
    text.push_str("bra CODE;\n}\n");
    text
}

/// `source` = the rows of the expert, all parts of which are there.
fn wait_for_inner(sizes: &Sizes) -> String {
    format!(
        "mul.wide.u32 pointer, place, 4;
add.u64 pointer, pointer, counters;
WAIT_INNER: ld.acquire.gpu.global.u32 x, [pointer+{ACTIVATED_BYTES}];
setp.lt.u32 p, x, {parts};
@p bra WAIT_INNER;
bar.warp.sync 0xffffffff;
mul.lo.u32 x, place, tokens;
mul.wide.u32 source, x, {row_bytes};
add.u64 source, source, inner;
",
        parts = sizes.tasks()[0],
        row_bytes = 4 * sizes.second.columns,
    )
}

/// Codes of the rows of this warp, as many at a time as it has registers for; few tokens are not kept
/// waiting by rows that nobody has.
fn inner_codes(sizes: &Sizes) -> String {
    let groups = sizes.second.groups();
    let rows = TOKENS_MAX / CODERS;
    let at_once = (INNER_AT_ONCE / groups).clamp(1, rows);
    let all: String =
        (0..rows).step_by(at_once).map(|row| inner_rows(sizes, row, at_once)).collect();
    format!(
        "sub.u32 own_row, warp, {FIRST_CODER};
setp.ge.u32 p, own_row, tokens;
@p bra CODED;
setp.gt.u32 p, tokens, {CODERS};
@p bra CODE_ALL;
{}bra CODED;
CODE_ALL:
{all}CODED:
",
        inner_rows(sizes, 0, 1)
    )
}

/// Codes of some rows.
fn inner_rows(sizes: &Sizes, first: usize, count: usize) -> String {
    let (groups, places) = (sizes.second.groups(), sizes.places().codes);
    let number_bytes = number_bytes(sizes);
    let mut text = load_inner_rows(sizes, first, count);
    (0..count * groups).for_each(|n| text.push_str(&largest_of_lane(n)));
    if sizes.scales == ScaleForm::Blocks {
        text.push_str(&largest_of_warp(&(0..count * groups).collect::<Vec<_>>()));
        for n in 0..count * groups {
            let group = n % groups;
            text.push_str(&scale_of(n, n));
            text.push_str(&codes_of(places.codes + BLOCK * group, n, n));
            let at = places.group_scales + 4 * group;
            let _ = writeln!(text, "@stores{n} st.shared.f32 [scales_at{n}+{at}], scale{n};");
        }
        return text;
    }
    // The first group of a row has what is of the row.
    let rows: Vec<usize> = (0..count).map(|row| row * groups).collect();
    for &row in &rows {
        for n in row + 1..row + groups {
            let _ = writeln!(text, "max.f32 largest{row}, largest{row}, largest{n};");
        }
    }
    text.push_str(&match sizes.scales {
        ScaleForm::Words => largest_of_warp(&rows),
        _ => rows.iter().map(|&row| largest_of_row(row)).collect(),
    });
    for &row in &rows {
        text.push_str(&row_scale(sizes, row));
        for n in row..row + groups {
            let at = places.codes + number_bytes * BLOCK * (n - row);
            text.push_str(&row_codes(sizes, at, n, row));
        }
        let _ = writeln!(
            text,
            "mad.lo.u32 x, token{row}, 4, code_base;
@stores{row} st.shared.f32 [x+{}], scale{row};",
            places.row_scales
        );
    }
    text
}

/// What rows have besides the registers of all numbers.
pub(super) fn row_registers(sizes: &Sizes, count: usize) -> String {
    match sizes.scales {
        ScaleForm::Integers => (0..count).map(|n| format!(".reg .f32 inverse{n};\n")).collect(),
        _ => String::new(),
    }
}

/// What a row of number `n` is divided by.
pub(super) fn row_scale(sizes: &Sizes, n: usize) -> String {
    match sizes.scales {
        ScaleForm::Words => power_of(n),
        ScaleForm::Integers => integer_scale(n),
        ScaleForm::Blocks | ScaleForm::Channels | ScaleForm::Matrices => scale_of(n, n),
    }
}

/// The same of the row that lane `from` has as number `of`.
pub(super) fn row_scale_from(sizes: &Sizes, from: usize, of: usize) -> String {
    let mut text = format!("shfl.sync.idx.b32 scale{from}, scale{of}, {from}, 31, 0xffffffff;\n");
    if sizes.scales == ScaleForm::Integers {
        let _ =
            writeln!(text, "shfl.sync.idx.b32 inverse{from}, inverse{of}, {from}, 31, 0xffffffff;");
    }
    text
}

/// Stores what becomes of four numbers of the row of number `of`.
pub(super) fn row_codes(sizes: &Sizes, codes: usize, n: usize, of: usize) -> String {
    match sizes.scales {
        ScaleForm::Words => halves_of(codes, n, of),
        ScaleForm::Integers => integers_of(codes, n, of),
        ScaleForm::Blocks | ScaleForm::Channels | ScaleForm::Matrices => codes_of(codes, n, of),
    }
}

/// Bytes of what a number of an activation becomes.
fn number_bytes(sizes: &Sizes) -> usize {
    if sizes.scales == ScaleForm::Words { 2 } else { 1 }
}

/// The numbers of some rows, and where their codes go.
fn load_inner_rows(sizes: &Sizes, first: usize, count: usize) -> String {
    let product = &sizes.second;
    let groups = product.groups();
    let mut text = String::new();
    for n in 0..count * groups {
        let (row, group) = (n / groups, n % groups);
        if group == 0 {
            let _ = writeln!(
                text,
                "add.u32 token, own_row, {};
mul.wide.u32 row, token, {};
add.u64 row, row, source;
mul.wide.u32 pointer, lane, 16;
add.u64 row, row, pointer;",
                (first + row) * CODERS,
                4 * product.columns,
            );
        }
        for i in 0..4 {
            let _ = writeln!(text, "mov.f32 v{n}_{i}, zero;");
        }
        // Behind the last column are zeros.
        let lanes = product.columns.saturating_sub(BLOCK * group).min(BLOCK) / 4;
        let guard = match lanes {
            32 => format!("@has{n}"),
            _ => format!("setp.lt.and.u32 p, lane, {lanes}, has{n};\n@p"),
        };
        let _ = writeln!(
            text,
            "mov.u32 token{n}, token;
setp.lt.u32 has{n}, token, tokens;
and.pred stores{n}, has{n}, is_first_lane;
mad.lo.u32 codes_at{n}, token, {stride}, code_base;
mad.lo.u32 codes_at{n}, lane, {lane_bytes}, codes_at{n};
mad.lo.u32 scales_at{n}, token, {of_token}, code_base;
{guard} ld.relaxed.gpu.global.v4.f32 {{v{n}_0, v{n}_1, v{n}_2, v{n}_3}}, [row+{at}];",
            stride = product.code_stride(),
            lane_bytes = 4 * number_bytes(sizes),
            of_token = 4 * groups,
            at = 4 * BLOCK * group,
        );
    }
    text
}

/// The largest magnitude of a lane's four numbers.
fn largest_of_lane(n: usize) -> String {
    let mut text = format!("abs.f32 largest{n}, v{n}_0;\n");
    for i in 1..4 {
        let _ = writeln!(text, "abs.f32 other, v{n}_{i};\nmax.f32 largest{n}, largest{n}, other;");
    }
    text
}

/// The largest of all lanes, of several numbers.
fn largest_of_warp(of: &[usize]) -> String {
    let mut text = String::new();
    for distance in [16, 8, 4, 2, 1] {
        for n in of {
            let _ = writeln!(
                text,
                "shfl.sync.bfly.b32 other, largest{n}, {distance}, 31, 0xffffffff;
max.f32 largest{n}, largest{n}, other;"
            );
        }
    }
    text
}

/// The same of one number with one instruction: bits of magnitudes are in the order of the numbers. NaN counts as
/// nothing.
fn largest_of_row(row: usize) -> String {
    format!(
        "max.f32 largest{row}, largest{row}, zero;
mov.b32 x, largest{row};
redux.sync.max.u32 x, x, 0xffffffff;
mov.b32 largest{row}, x;
"
    )
}

/// Sixteen bits to float32.
pub(super) fn unpack(element: &str, n: usize) -> String {
    let mut text = String::new();
    for word in 0..2 {
        let (low, high) = (2 * word, 2 * word + 1);
        let _ = if element == "bf16" {
            writeln!(
                text,
                "shl.b32 x, raw{n}_{word}, 16;
mov.b32 v{n}_{low}, x;
and.b32 x, raw{n}_{word}, 0xffff0000;
mov.b32 v{n}_{high}, x;"
            )
        } else {
            writeln!(
                text,
                "mov.b32 {{code0, code1}}, raw{n}_{word};
cvt.f32.f16 v{n}_{low}, code0;
cvt.f32.f16 v{n}_{high}, code1;"
            )
        };
    }
    text
}

/// `scale` = the largest magnitude over 448 within bounds. The quotient by a reciprocal becomes the
/// rounded one with a step of its remainder; an infinite one has none.
fn scale_of(largest: usize, n: usize) -> String {
    format!(
        "mul.f32 near, largest{largest}, 0f3B124925;
fma.rn.f32 rest, near, 0fC3E00000, largest{largest};
fma.rn.f32 rest, rest, 0f3B124925, near;
setp.lt.f32 is_finite, near, 0f7F800000;
selp.f32 scale{n}, rest, near, is_finite;
max.f32 scale{n}, scale{n}, least;
min.f32 scale{n}, scale{n}, most;
"
    )
}

/// `scale` = the power of two that brings the largest magnitude back from between 2^14 and 2^15.
fn power_of(n: usize) -> String {
    format!(
        "mov.b32 x, largest{n};
{POWER_OF_TWO}mov.b32 scale{n}, x;
"
    )
}

/// The same of the bits of a magnitude in `x`, which become those of the power. Tiny rows become smaller.
pub(super) const POWER_OF_TWO: &str = "shr.u32 x, x, 23;
max.u32 x, x, 15;
sub.u32 x, x, 14;
shl.b32 x, x, 23;
";
/// Bits of the inverse of a power of two are these less its own.
pub(super) const INVERSE: &str = "0x7f000000";

/// Stores four numbers over the power of two of number `of` as float16.
fn halves_of(halves: usize, n: usize, of: usize) -> String {
    format!(
        "mov.b32 x, scale{of};
sub.u32 x, {INVERSE}, x;
mov.b32 inverse, x;
mul.f32 v{n}_0, v{n}_0, inverse;
mul.f32 v{n}_1, v{n}_1, inverse;
mul.f32 v{n}_2, v{n}_2, inverse;
mul.f32 v{n}_3, v{n}_3, inverse;
cvt.rn.f16x2.f32 x, v{n}_1, v{n}_0;
cvt.rn.f16x2.f32 y, v{n}_3, v{n}_2;
@has{n} st.shared.v2.b32 [codes_at{n}+{halves}], {{x, y}};
"
    )
}

/// Stores the codes of four numbers with the scale of number `of`.
fn codes_of(codes: usize, n: usize, of: usize) -> String {
    let mut text = format!("rcp.approx.ftz.f32 inverse, scale{of};\n");
    for i in 0..4 {
        let _ = writeln!(
            text,
            "mul.f32 near, v{n}_{i}, inverse;
neg.f32 rest, near;
fma.rn.f32 rest, rest, scale{of}, v{n}_{i};
fma.rn.f32 v{n}_{i}, rest, inverse, near;"
        );
    }
    let _ = writeln!(
        text,
        "cvt.rn.satfinite.e4m3x2.f32 code0, v{n}_1, v{n}_0;
cvt.rn.satfinite.e4m3x2.f32 code1, v{n}_3, v{n}_2;
mov.b32 word, {{code0, code1}};
@has{of} st.shared.b32 [codes_at{of}+{codes}], word;"
    );
    text
}
