//! The warp that loads.

use std::fmt::Write as _;

use super::super::{BLOCK_ROWS, Side};
use super::{BLOCK_BYTES, Numbers, PRODUCER_REGISTERS, Scales, Sizes, advance, long, tiles};

/// What the scales of a product need.
type Text = fn(&Sizes, Scales) -> String;

/// Lane 0 loads weights, and each lane a block of rows. Scales of weights are read by all lanes, one step
/// each, before they are needed; those of rows lie side by side and are copied by lane 0.
pub(super) fn producer(sizes: &Sizes) -> String {
    let scales = sizes.group_scales();
    let of = |text: Text| scales.map_or_else(String::new, |scales| text(sizes, scales));
    let (of_first, of_step): (Text, Text) = match sizes.side {
        Side::Short => (first_scales, step_scales),
        Side::Long => (long::first_scales, long::step_scales),
    };
    // Rows of integers lie plane after plane.
    let (axes, row_at) = match sizes.numbers {
        Numbers::Integers { .. } => (3, "{i, y, step}"),
        _ => (2, "{x, y}"),
    };
    format!(
        "setp.ne.u32 p, group, 0;
@p bra CONSUMER;
setmaxnreg.dec.sync.aligned.u32 {PRODUCER_REGISTERS};
setp.ne.u32 p, warp, 0;
@p bra EXIT;
{ahead}PRODUCE: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}mad.lo.u32 bytes, height, {row_bytes}, {weight_bytes};
mad.lo.u32 y, lane, {BLOCK_ROWS}, row;
setp.lt.u32 is_live, lane, height;
mul.lo.u32 z, column, {feature_groups};
mov.u32 i, 0;
mov.u32 step, 0;
{first_scales}FILL: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
xor.b32 free, phase, 1;
WAIT_EMPTY: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{empty}], free;
@!p bra WAIT_EMPTY;
add.u32 barrier, barrier, {full};
{step_scales}@is_first_lane mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], bytes;
bar.warp.sync 0xffffffff;
mad.lo.u32 target, stage, {stage_bytes}, base;
mul.lo.u32 x, step, {depth};
{weights}mad.lo.u32 target, lane, {BLOCK_BYTES}, target;
add.u32 target, target, {weight_bytes};
@is_live cp.async.bulk.tensor.{axes}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [row_tensor, {row_at}], [barrier];
{row_scales}bar.warp.sync 0xffffffff;
{advance}add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra FILL;
add.u32 tile, tile, stride;
bra PRODUCE;
",
        ahead = if sizes.is_ahead { weights_ahead(sizes) } else { String::new() },
        weights = match sizes.is_ahead {
            true => weights_behind(),
            false => load_weights("is_first_lane"),
        },
        find = tiles::find(sizes),
        weight_bytes = sizes.weight_bytes(),
        row_bytes = BLOCK_BYTES + scales.map_or(0, |_| BLOCK_ROWS * 4),
        feature_groups = sizes.tile_features() / 8,
        first_scales = of(of_first),
        empty = sizes.empty(),
        full = sizes.full(),
        step_scales = of(of_step),
        stage_bytes = sizes.stage_bytes(),
        depth = sizes.depth(),
        row_scales = of(row_scales),
        advance = advance(sizes),
        steps = sizes.steps(),
    )
}

/// The weights of a stage.
fn load_weights(condition: &str) -> String {
    format!(
        "@{condition} cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [weights, {{x, i, i, z, expert}}], [barrier];
"
    )
}

/// The weights of the first stages, before the kernel before has ended: it leaves only rows. A barrier may hear of bytes
/// before it is told to expect them.
fn weights_ahead(sizes: &Sizes) -> String {
    let stages = sizes.stages().min(sizes.steps());
    let mut text = format!(
        "setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{}mul.lo.u32 z, column, {};
mov.u32 i, 0;
mov.u32 ahead, {stages};
",
        tiles::find(sizes),
        sizes.tile_features() / 8,
    );
    for stage in 0..stages {
        let _ = writeln!(
            text,
            "add.u32 target, base, {};\nadd.u32 barrier, base, {};\nmov.u32 x, {};",
            stage * sizes.stage_bytes(),
            sizes.full() + 8 * stage,
            stage * sizes.depth(),
        );
        text.push_str(&load_weights("is_first_lane"));
    }
    text + "griddepcontrol.wait;\n"
}

/// The weights of a stage, unless they are on their way.
fn weights_behind() -> String {
    let load = load_weights("p");
    format!(
        "setp.eq.and.u32 p, ahead, 0, is_first_lane;
{load}setp.ne.u32 p, ahead, 0;
@p sub.u32 ahead, ahead, 1;
"
    )
}

/// The scales of both halves of a tile's weights, for this lane's step; the scales of its rows.
fn first_scales(sizes: &Sizes, scales: Scales) -> String {
    // Gates and ups, or 64 features and 64 more.
    let step = if sizes.parts == 2 { sizes.features } else { sizes.tile_features() / 2 };
    let of_expert = (sizes.parts * sizes.features).div_ceil(scales.features);
    format!(
        "mul.lo.u32 x, column, {tile_features};
add.u32 from, x, {step};
min.u32 from, from, {last};
div.u32 x, x, {features};
div.u32 from, from, {features};
mad.lo.u32 x, expert, {of_expert}, x;
mad.lo.u32 from, expert, {of_expert}, from;
mul.wide.u32 offset, lane, 4;
add.u64 offset, offset, weight_scales;
mad.wide.u32 pointer, x, {per_feature}, offset;
mad.wide.u32 second_pointer, from, {per_feature}, offset;
mad.wide.u32 next_rows, row, 4, row_scales;
shl.b32 left, height, {row_scale_shift};
",
        tile_features = sizes.tile_features(),
        last = sizes.parts * sizes.features - 1,
        features = scales.features,
        per_feature = sizes.steps() * 4,
        row_scale_shift = (BLOCK_ROWS * 4).ilog2(),
    )
}

/// The scales of a step's weights, to where its stage has them. Each lane has read those of one of 32
/// steps.
fn step_scales(sizes: &Sizes, _: Scales) -> String {
    format!(
        "and.b32 x, step, 31;
setp.ne.u32 p, x, 0;
@p bra SCALES_KNOWN;
add.u32 from, step, lane;
setp.lt.u32 q, from, {steps};
mov.f32 first_scale, 0f00000000;
mov.f32 second_scale, 0f00000000;
@q ld.global.f32 first_scale, [pointer];
@q ld.global.f32 second_scale, [second_pointer];
add.u64 pointer, pointer, 128;
add.u64 second_pointer, second_pointer, 128;
SCALES_KNOWN: shfl.sync.idx.b32 scale, first_scale, x, 31, 0xffffffff;
shfl.sync.idx.b32 shared_scale, second_scale, x, 31, 0xffffffff;
mad.lo.u32 turned, stage, {stage_scale_bytes}, base;
@is_first_lane st.shared.v2.f32 [turned+{stage_scales}], {{scale, shared_scale}};
",
        steps = sizes.steps(),
        stage_scale_bytes = sizes.stage_scale_bytes(),
        stage_scales = sizes.scales(),
    )
}

/// The scales of a step's rows.
fn row_scales(sizes: &Sizes, _: Scales) -> String {
    format!(
        "add.u32 turned, turned, {first};
@is_first_lane cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
    [turned], [next_rows], left, [barrier];
mul.wide.u32 offset, positions, 4;
add.u64 next_rows, next_rows, offset;
",
        first = sizes.scales() + sizes.weight_scale_bytes(),
    )
}
