//! Which rows of a tile are stored: those of pairs.
//!
//! An assignment fills the last block of an expert up with rows of nobody. What would be stored of them is what the
//! memory has to write: with two rows an expert, seven bytes of eight. Products of weights in words have no register left
//! for that, and store all rows.

use super::super::BLOCK_ROWS;
use super::{Numbers, Sizes};

/// Registers for that.
pub(super) const REGISTERS: &str = ".reg .b64 sorted_token_ids;
.reg .b32 pairs, last_pair, live_rows;
";

fn knows_pairs(sizes: &Sizes) -> bool {
    !matches!(sizes.numbers, Numbers::Words { .. })
}

/// What comes from the caller: the pair of every row, or nothing where all rows count, and how many pairs there are.
pub(super) fn parameters(sizes: &Sizes) -> &'static str {
    if knows_pairs(sizes) {
        ",\n    .param .u64 sorted_token_ids_pointer, .param .u32 pair_count"
    } else {
        ""
    }
}

/// Reads them.
pub(super) fn begin(sizes: &Sizes) -> &'static str {
    if knows_pairs(sizes) {
        "ld.param.u64 sorted_token_ids, [sorted_token_ids_pointer];
ld.param.u32 pairs, [pair_count];
cvta.to.global.u64 sorted_token_ids, sorted_token_ids;
"
    } else {
        ""
    }
}

/// Asks for the pairs of the tile's last block, a row a lane: only there rows are nobody's.
pub(super) fn ask() -> String {
    format!(
        "setp.ne.u64 p, sorted_token_ids, 0;
mov.u32 last_pair, 0;
and.b32 x, lane, {last};
mad.lo.u32 x, height, {BLOCK_ROWS}, x;
add.u32 x, x, row;
sub.u32 x, x, {BLOCK_ROWS};
mul.wide.u32 pointer, x, 4;
add.u64 pointer, pointer, sorted_token_ids;
@p ld.global.b32 last_pair, [pointer];
",
        last = BLOCK_ROWS - 1,
    )
}

/// `live_rows` = rows of the tile that are of pairs. Each of them is known to two lanes.
pub(super) fn count(sizes: &Sizes) -> String {
    if !knows_pairs(sizes) {
        return format!("mul.lo.u32 live_rows, height, {BLOCK_ROWS};\n");
    }
    format!(
        "setp.lt.u32 p, last_pair, pairs;
vote.sync.ballot.b32 x, p, 0xffffffff;
popc.b32 x, x;
shr.u32 x, x, 1;
mad.lo.u32 live_rows, height, {BLOCK_ROWS}, x;
sub.u32 live_rows, live_rows, {BLOCK_ROWS};
"
    )
}
