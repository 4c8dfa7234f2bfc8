//! Products of e4m3 codes with rows on the long side of the matrix instructions.
//!
//! A thread has two rows of a tile and many features, so two scales of rows and one or two of each 64
//! features: what codes cost beside the product is little, and a tile has 192 weights, for which
//! less is read of each row. But every 64 rows that are begun are multiplied: this is for many rows.

use std::fmt::Write as _;

use super::super::{BLOCK_ROWS, LONG_FEATURES as FEATURES, LONG_ROWS};
use super::codes::{give_back, instructions};
use super::epilogue::activated;
use super::{Scales, Sizes, advance};

/// Weights of which all have one scale, or all gates and all ups among them.
const SCALE_FEATURES: usize = 64;
/// Bytes of a stage's scales of weights.
pub(super) const SCALE_BYTES: usize = 32;

/// Which row of a tile this thread has, beside the eighth behind it.
pub(super) const OWN_ROW: &str = "shl.b32 own_row, group, 6;
mad.lo.u32 own_row, warp, 16, own_row;
shr.u32 x, lane, 2;
add.u32 own_row, own_row, x;
";

/// Registers of a tile.
pub(super) fn registers() -> String {
    format!(
        ".reg .b32 own_row;
.reg .f32 sum<{sums}>, part<{sums}>, of_weights<{weights}>, of_rows<2>, scale_of<{both}>;
",
        sums = FEATURES / 2,
        weights = 2 * FEATURES / SCALE_FEATURES,
        both = 4 * FEATURES / SCALE_FEATURES,
    )
}

/// The loop over input features, `summed` at once. A warpgroup whose rows nobody wants gives its stages
/// back.
pub(super) fn multiply(sizes: &Sizes, summed: usize) -> String {
    let wait = |name: &str| {
        format!(
            "{name}: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
{name}_FULL: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{full}], phase;
@!p bra {name}_FULL;
",
            full = sizes.full(),
        )
    };
    let next = |name: &str| {
        format!(
            "{}add.u32 step, step, 1;\nsetp.lt.u32 p, step, {};\n@p bra {name};\n",
            advance(sizes),
            sizes.steps()
        )
    };
    let release = give_back(sizes);
    let mut text = format!(
        "shl.b32 x, group, {};\nsetp.ge.u32 p, x, height;\n@!p bra BUSY;\n",
        (LONG_ROWS / 2 / BLOCK_ROWS).ilog2()
    );
    text.push_str(&(wait("IDLE") + &release + &next("IDLE") + "bra STORED;\nBUSY:\n"));
    for sum in 0..FEATURES / 2 {
        let _ = writeln!(text, "mov.f32 sum{sum}, 0f00000000;");
    }
    text.push_str(&wait("STEP"));
    let _ = writeln!(
        text,
        "mul.wide.u32 offset, stage, {stage};
add.u64 stage_a, first_a, offset;
add.u64 stage_b, first_b, offset;",
        stage = sizes.stage_bytes() / 16,
    );
    let parts: Vec<_> = (0..FEATURES / 2).map(|n| format!("part{n}")).collect();
    let parts = parts.join(", ");
    let turns = sizes.depth() / summed;
    for turn in 0..turns {
        text.push_str(&instructions(FEATURES, &parts, turn, summed));
        if turn == 0 {
            text.push_str(&load_scales(sizes));
        }
        text.push_str("wgmma.wait_group.sync.aligned 0;\n");
        if turn + 1 == turns {
            text.push_str(&release);
        }
        for sum in 0..FEATURES / 2 {
            let scale = 2 * weight_scale(sizes, sum / 4) + sum / 2 % 2;
            let _ = writeln!(text, "fma.rn.f32 sum{sum}, part{sum}, scale_of{scale}, sum{sum};");
        }
    }
    text + &next("STEP")
}

/// Which scale of weights eight features of the tile have.
fn weight_scale(sizes: &Sizes, octet: usize) -> usize {
    octet / (SCALE_FEATURES / 8) * sizes.parts + octet % sizes.parts
}

/// Scales of weights of a stage.
fn scale_count(sizes: &Sizes) -> usize {
    FEATURES / SCALE_FEATURES * sizes.parts
}

/// The products of a stage's scales, of weights and of this thread's two rows.
fn load_scales(sizes: &Sizes) -> String {
    let mut text = format!(
        "mad.lo.u32 x, stage, {stage}, base;
add.u32 x, x, {scales};
mad.lo.u32 at, own_row, 4, x;
ld.shared.f32 of_rows0, [at+{SCALE_BYTES}];
ld.shared.f32 of_rows1, [at+{later}];
",
        stage = sizes.stage_scale_bytes(),
        scales = sizes.scales(),
        later = SCALE_BYTES + 32,
    );
    for scale in 0..scale_count(sizes) {
        let _ = writeln!(text, "ld.shared.f32 of_weights{scale}, [x+{}];", 4 * scale);
    }
    for scale in 0..scale_count(sizes) {
        for row in 0..2 {
            let product = 2 * scale + row;
            let _ = writeln!(text, "mul.f32 scale_of{product}, of_weights{scale}, of_rows{row};");
        }
    }
    text
}

/// A lane for each scale of the tile's weights reads it, those of a step during the step before.
pub(super) fn first_scales(sizes: &Sizes, scales: Scales) -> String {
    format!(
        "shr.u32 x, lane, {part_shift};
mul.lo.u32 x, x, {of_scale};
mad.lo.u32 x, column, {tile_features}, x;
min.u32 x, x, {last};
and.b32 from, lane, {part};
mad.lo.u32 x, from, {all_features}, x;
div.u32 x, x, {features};
mad.lo.u32 x, expert, {of_expert}, x;
mad.wide.u32 pointer, x, {per_feature}, weight_scales;
ld.global.f32 first_scale, [pointer];
mad.wide.u32 next_rows, row, 4, row_scales;
shl.b32 left, height, {row_scale_shift};
",
        part_shift = sizes.parts.ilog2(),
        of_scale = SCALE_FEATURES / sizes.parts,
        tile_features = sizes.tile_features(),
        last = sizes.features - 1,
        part = sizes.parts - 1,
        all_features = sizes.features,
        features = scales.features,
        of_expert = (sizes.parts * sizes.features).div_ceil(scales.features),
        per_feature = sizes.steps() * 4,
        row_scale_shift = (BLOCK_ROWS * 4).ilog2(),
    )
}

/// The scales of a step's weights, to where its stage has them.
pub(super) fn step_scales(sizes: &Sizes, _: Scales) -> String {
    format!(
        "mad.lo.u32 turned, stage, {stage_scale_bytes}, base;
mad.lo.u32 from, lane, 4, turned;
setp.lt.u32 q, lane, {count};
@q st.shared.f32 [from+{scales}], first_scale;
add.u64 pointer, pointer, 4;
add.u32 x, step, 1;
setp.lt.u32 q, x, {steps};
@q ld.global.f32 first_scale, [pointer];
bar.warp.sync 0xffffffff;
",
        stage_scale_bytes = sizes.stage_scale_bytes(),
        count = scale_count(sizes),
        scales = sizes.scales(),
        steps = sizes.steps(),
    )
}

/// The sums, or `silu(gate) * up` of them, stored where the tile stands.
pub(super) fn epilogue(sizes: &Sizes) -> String {
    if sizes.out_bytes() == 4 { wide_epilogue(sizes) } else { narrow_epilogue(sizes) }
}

/// Bytes from one row of results in shared memory to the next, so that eight rows do not collide; 0 where
/// results do not go there.
pub(super) fn row_pitch(sizes: &Sizes) -> usize {
    if sizes.out_bytes() == 4 { 0 } else { 2 * FEATURES + 16 }
}

/// 16-bit numbers go to shared memory, from where the copy engine stores rows while the next tile is
/// multiplied.
fn narrow_epilogue(sizes: &Sizes) -> String {
    let (pitch, row_bytes) = (row_pitch(sizes), 2 * sizes.features);
    format!(
        "// What this warp stored before has been read.
cp.async.bulk.wait_group.read 0;
bar.warp.sync 0xffffffff;
{turn}fence.proxy.async.shared::cta;
bar.warp.sync 0xffffffff;
and.b32 y, own_row, {first_of_warp};
add.u32 y, y, lane;
setp.lt.u32 p, lane, 16;
setp.lt.and.u32 p, y, live_rows, p;
add.u32 y, y, row;
mul.lo.u32 x, column, {of_column};
mul.wide.u32 pointer, y, {row_bytes};
cvt.u64.u32 offset, x;
add.u64 pointer, pointer, offset;
add.u64 pointer, pointer, out;
sub.u32 x, {row_bytes}, x;
min.u32 x, x, {of_column};
mad.lo.u32 from, lane, {pitch}, turned;
@p cp.async.bulk.global.shared::cta.bulk_group [pointer], [from], x;
cp.async.bulk.commit_group;
",
        turn = turn(sizes),
        first_of_warp = LONG_ROWS - 16,
        of_column = 2 * FEATURES,
    )
}

/// The 16 rows of a warp to shared memory, four matrices of 8 x 8 at a time. Matrix m: rows 8 * (m % 2),
/// features 8 * (m / 2).
fn turn(sizes: &Sizes) -> String {
    let element = sizes.out;
    let mut text = format!(
        "and.b32 y, lane, 15;
shr.u32 z, lane, 4;
mad.lo.u32 at, y, {}, turned;
mad.lo.u32 at, z, 16, at;
",
        row_pitch(sizes),
    );
    for pair in 0..FEATURES / 16 {
        for packed in 0..4 {
            let sum = 8 * pair + 2 * packed;
            let (low, high) = (format!("sum{sum}"), format!("sum{}", sum + 1));
            let _ = writeln!(text, "cvt.rn.{element}x2.f32 packed{packed}, {high}, {low};");
        }
        let _ = writeln!(
            text,
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [at+{}], {{packed0, packed1, packed2, packed3}};",
            32 * pair
        );
    }
    text
}

/// 32-bit numbers, each thread its own: four threads have the 32 bytes that memory moves at once. Through
/// shared memory they would take longer.
fn wide_epilogue(sizes: &Sizes) -> String {
    let features = sizes.features;
    let mut text = format!(
        "setp.lt.u32 later, own_row, live_rows;
add.u32 y, own_row, 8;
setp.lt.u32 is_live, y, live_rows;
add.u32 y, own_row, row;
and.b32 x, lane, 3;
shl.b32 x, x, 1;
mad.lo.u32 x, column, {tile_features}, x;
mul.wide.u32 pointer, y, {row_bytes};
mad.wide.u32 pointer, x, 4, pointer;
add.u64 pointer, pointer, out;
",
        tile_features = sizes.tile_features(),
        row_bytes = 4 * features,
    );
    for octet in 0..sizes.tile_features() / 8 {
        for (row, live) in ["later", "is_live"].into_iter().enumerate() {
            let first = 4 * sizes.parts * octet + 2 * row;
            let at = 32 * octet + row * 8 * 4 * features;
            let mut stored = [0, 1].map(|number| format!("sum{}", first + number));
            if sizes.parts == 2 {
                for (number, stored) in stored.iter_mut().enumerate() {
                    let (gate, up) = (first + number, first + number + 4);
                    let result = format!("gate{number}");
                    text.push_str(&activated(&result, &format!("sum{gate}"), &format!("sum{up}")));
                    *stored = result;
                }
            }
            let [left, right] = stored;
            let _ = writeln!(
                text,
                "setp.lt.and.u32 q, x, {features}, {live};
@q st.global.v2.f32 [pointer+{at}], {{{left}, {right}}};"
            );
        }
        text.push_str("add.u32 x, x, 8;\n");
    }
    text
}
