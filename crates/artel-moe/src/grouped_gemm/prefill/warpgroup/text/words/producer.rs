//! The warps that load: one weights with their scales, the other rows.

use super::super::super::BLOCK_ROWS;
use super::super::{BLOCK_BYTES, Sizes, advance, tiles};
use super::{WORD_ROW_BYTES, halves_of_stage, registers_of, scale_words};
use crate::grouped_gemm::words::WordFormat;

/// Both warps, each with its own ring.
pub(in super::super) fn producer(sizes: &Sizes, format: WordFormat) -> String {
    format!(
        "setp.ne.u32 p, group, 0;
@p bra CONSUMER;
{}setp.eq.u32 p, warp, 1;
@p bra LOAD_ROWS;
setp.ne.u32 p, warp, 0;
@p bra EXIT;
{}LOAD_ROWS: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{}",
        registers_of(sizes, "dec"),
        words(sizes, format),
        rows(sizes),
    )
}

/// Lane 0 loads words, and each of some lanes a word of scales of all rows of a part.
fn words(sizes: &Sizes, format: WordFormat) -> String {
    format!(
        "LOAD_WORDS: setp.ge.u32 p, tile, tiles;
@p bra EXIT;
{find}{own_scales}mov.u32 i, 0;
mov.u32 step, 0;
FILL_WORDS: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
xor.b32 free, phase, 1;
WAIT_WORDS: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{empty}], free;
@!p bra WAIT_WORDS;
add.u32 barrier, barrier, {full};
@is_first_lane mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], bytes;
bar.warp.sync 0xffffffff;
mad.lo.u32 target, stage, {stage_bytes}, base;
add.u32 target, target, {ring};
shl.b32 x, step, {step_shift};
@is_first_lane cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [weights, {{x, z, i, expert}}], [barrier];
add.u32 target, target, from;
@is_live cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
    [target], [pointer], left, [barrier];
add.u64 pointer, pointer, {of_step};
bar.warp.sync 0xffffffff;
add.u32 stage, stage, 1;
setp.eq.u32 q, stage, {stages};
selp.b32 stage, 0, stage, q;
selp.b32 x, 1, 0, q;
xor.b32 phase, phase, x;
add.u32 step, step, 1;
setp.lt.u32 p, step, {steps};
@p bra FILL_WORDS;
add.u32 tile, tile, stride;
bra LOAD_WORDS;
",
        find = tiles::find(sizes),
        own_scales = own_scales(sizes, format),
        empty = sizes.words_empty(format),
        full = sizes.words_full(),
        stage_bytes = sizes.word_stage_bytes(format),
        ring = sizes.row_ring_bytes(),
        step_shift = WORD_ROW_BYTES.ilog2(),
        of_step = scale_words(format) * 4 * sizes.features,
        stages = sizes.word_stages(format),
        steps = sizes.word_steps(format),
    )
}

/// `z` = the tile's first feature, `bytes` of its stages, and of this lane's scales whether it has such, their
/// `pointer`, the bytes that are `left` of them, and where they go in a stage (`from`).
fn own_scales(sizes: &Sizes, format: WordFormat) -> String {
    let (parts, of_row) = (sizes.parts, scale_words(format));
    format!(
        "mul.lo.u32 z, column, {features_of_tile};
sub.u32 left, {features}, z;
min.u32 left, left, {features_of_tile};
shl.b32 left, left, 2;
mad.lo.u32 bytes, left, {scale_rows}, {words};
// Word and part of this lane.
shr.u32 low, lane, {part_shift};
and.b32 high, lane, {last_part};
setp.lt.u32 is_live, lane, {scale_rows};
mad.lo.u32 x, expert, {parts}, high;
mad.lo.u32 x, x, {all_scale_words}, low;
mul.wide.u32 pointer, x, {of_word};
mul.wide.u32 offset, z, 4;
add.u64 pointer, pointer, offset;
add.u64 pointer, pointer, weight_scales;
mul.lo.u32 from, low, {of_scale};
mad.lo.u32 from, high, {of_part}, from;
add.u32 from, from, {words};
",
        features_of_tile = sizes.tile_features(),
        features = sizes.features,
        scale_rows = parts * of_row,
        part_shift = parts.ilog2(),
        last_part = parts - 1,
        all_scale_words = sizes.word_steps(format) * of_row,
        words = sizes.word_bytes(),
        of_scale = sizes.scale_row_bytes(),
        of_word = 4 * sizes.features,
        of_part = 4 * sizes.tile_features(),
    )
}

/// Each lane loads a block of rows of a half of a plane.
fn rows(sizes: &Sizes) -> String {
    let halves = halves_of_stage(sizes.rows_max());
    format!(
        "{find}mul.lo.u32 bytes, height, {stage_block_bytes};
and.b32 x, lane, {last_half};
shr.u32 z, lane, {half_shift};
mad.lo.u32 y, z, {BLOCK_ROWS}, row;
mul.lo.u32 from, z, {BLOCK_BYTES};
mad.lo.u32 from, x, {half_bytes}, from;
add.u32 from, from, base;
setp.lt.u32 is_live, z, height;
mov.u32 i, 0;
mov.u32 step, x;
FILL: shl.b32 x, stage, 3;
add.u32 barrier, x, base;
xor.b32 free, phase, 1;
WAIT_EMPTY: mbarrier.try_wait.parity.shared::cta.b64 p, [barrier+{empty}], free;
@!p bra WAIT_EMPTY;
add.u32 barrier, barrier, {full};
@is_first_lane mbarrier.arrive.expect_tx.shared::cta.b64 _, [barrier], bytes;
bar.warp.sync 0xffffffff;
mad.lo.u32 target, stage, {stage_bytes}, from;
@is_live cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
    [target], [row_tensor, {{i, y, step}}], [barrier];
bar.warp.sync 0xffffffff;
{advance}add.u32 step, step, {halves};
setp.lt.u32 p, step, {steps};
@p bra FILL;
add.u32 tile, tile, stride;
bra LOAD_ROWS;
",
        find = tiles::find(sizes),
        stage_block_bytes = halves * BLOCK_BYTES,
        last_half = halves - 1,
        half_shift = halves.ilog2(),
        half_bytes = sizes.half_bytes(),
        empty = sizes.empty(),
        full = sizes.full(),
        stage_bytes = sizes.stage_bytes(),
        advance = advance(sizes),
        steps = sizes.steps(),
    )
}
