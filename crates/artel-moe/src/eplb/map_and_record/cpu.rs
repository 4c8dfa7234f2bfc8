//! Map and record on the CPU: the rule is chosen outside the loop, recording splits it in two.

use super::{LoadRecorder, QuotaCursor, ReplicaRule, rule};
use crate::{MoeError, eplb::ReplicaTable};

/// Replaces the logical ids `[T, K]` by physical ones and counts the load.
///
/// # Errors
/// [`MoeError::Shape`] when the ids are not `[T, K]` or the load is not `[P]`.
pub fn map_and_record(
    ids: &mut [i32],
    top_k: usize,
    table: &ReplicaTable,
    rule: ReplicaRule,
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    recorder.check(ids, top_k, table.num_physical())?;
    if ids.is_empty() {
        return Ok(());
    }
    match rule {
        ReplicaRule::TokenHash => {
            let choose = |token, _, copies| rule::token_hash(token, copies);
            map_with(choose, ids, top_k, table);
        }
        ReplicaRule::Salted(salt) => {
            let choose = |token, expert, copies| rule::salted_hash(salt, token, expert, copies);
            map_with(choose, ids, top_k, table);
        }
        ReplicaRule::Shares(salt) => {
            let choose = |token, expert, _| {
                let part = rule::salted_part(salt, token, expert);
                // The last threshold is beyond every part.
                table.thresholds_of(expert).partition_point(|&threshold| threshold <= part)
            };
            map_with(choose, ids, top_k, table);
        }
    }
    record(ids, top_k, recorder);
    Ok(())
}

/// The same with as many pairs for each slot as `quotas` `[P]` say. Where they add up to fewer than
/// an expert has, its last copy serves the rest.
///
/// # Errors
/// As [`map_and_record`], and for quotas that are not `[P]`.
pub fn map_by_quotas(
    ids: &mut [i32],
    top_k: usize,
    table: &ReplicaTable,
    (quotas, cursor): (&[u32], &mut QuotaCursor),
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    recorder.check(ids, top_k, table.num_physical())?;
    MoeError::check_shape("quotas", table.num_physical(), quotas.len())?;
    cursor.begin(quotas, table);
    ids.iter_mut().for_each(|id| *id = cursor.next_slot(*id, table));
    if recorder.recorded_pairs(top_k) >= ids.len() && cursor.is_exact() {
        // What every slot has got is known: no need to count again.
        for (load, &quota) in recorder.expert_load.iter_mut().zip(quotas) {
            *load = load.saturating_add_unsigned(quota);
        }
    } else {
        record(ids, top_k, recorder);
    }
    Ok(())
}

fn map_with(
    choose: impl Fn(usize, i32, usize) -> usize,
    ids: &mut [i32],
    top_k: usize,
    table: &ReplicaTable,
) {
    let physical = |token, logical| match table.slots_of(logical) {
        [] => -1,
        slots => i32::from(slots[choose(token, logical, slots.len())]),
    };
    for (token, ids) in ids.chunks_exact_mut(top_k).enumerate() {
        ids.iter_mut().for_each(|id| *id = physical(token, *id));
    }
}

fn record(physical_ids: &[i32], top_k: usize, recorder: LoadRecorder<'_>) {
    let recorded = recorder.recorded_pairs(top_k).min(physical_ids.len());
    for id in &physical_ids[..recorded] {
        if let Ok(slot) = usize::try_from(*id) {
            let load = &mut recorder.expert_load[slot];
            *load = load.saturating_add(1);
        }
    }
}
