//! The text of the kernel that adds parts of attention.

use std::fmt::Write as _;

use super::text::{Cut, add, head, multiply, round, to_codes, weights};
use crate::attention::decode::Cut as KeyCut;
use crate::attention::decode::sum::text::{
    first_parts, mean_of_parts, table_bytes, weights_of_parts,
};

/// `out[part, n]` = the product of a part of the heads, which are the means of parts of attention, and the
/// weights: `project_entry`. A head is a group.
pub(super) fn of_attention(cut: &Cut, keys: KeyCut) -> String {
    let parameters =
        ".param .u64 sums_pointer, .param .u64 largests_pointer, .param .u64 totals_pointer,
    .param .u64 lengths_pointer, .param .u64 weights_pointer, .param .u64 scales_pointer,
    .param .u64 out_pointer, .param .s32 window_value, .param .f32 least_value, .param .f32 most_value";
    let mut text = head("project", parameters, cut);
    text.push_str(
        ".reg .b64 sums, largests, totals, lengths, out, of_parts;
.reg .f32 least, most, top, other, seen, sum_weight, mean;
.reg .b32 pair0, pair1, whole, kept, table, from;
.reg .s32 length, window, first, share, count, next;
.reg .pred is_part;
ld.param.u64 sums, [sums_pointer];
ld.param.u64 largests, [largests_pointer];
ld.param.u64 totals, [totals_pointer];
ld.param.u64 lengths, [lengths_pointer];
ld.param.u64 out, [out_pointer];
ld.param.s32 window, [window_value];
ld.param.f32 least, [least_value];
ld.param.f32 most, [most_value];
",
    );
    text.push_str(&weights(cut));
    let _ = write!(
        text,
        "ld.global.s32 length, [lengths];
{}mad.lo.u32 table, warp, {table_bytes}, base;
add.u32 table, table, {table_at};
griddepcontrol.launch_dependents;
griddepcontrol.wait;
",
        keys.text(),
        table_bytes = table_bytes(keys),
        table_at = cut.shared_bytes(),
    );
    for unit in 0..cut.groups {
        text.push_str(&first_parts(keys, unit, unit * cut.across));
        text.push_str(&weights_of_parts(keys, unit));
        text.push_str(&mean_of_parts(keys, unit));
        text.push_str(&round(unit));
        text.push_str(&to_codes(unit));
    }
    text.push_str(&multiply(cut));
    text.push_str(&add(
        cut,
        &format!(
            "mad.lo.u32 i, part, {}, i;
mul.wide.u32 offset, i, 4;
add.u64 address, out, offset;
st.global.f32 [address], sum;",
            cut.outputs
        ),
    ));
    text
}

/// Bytes of shared memory of [`of_attention`].
pub(super) fn attention_bytes(cut: &Cut, keys: KeyCut) -> usize {
    cut.shared_bytes() + cut.warps() * table_bytes(keys)
}
