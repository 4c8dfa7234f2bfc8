//! Map and record on the CPU: the rule is chosen outside the loop, recording splits it in two.

use super::{LoadRecorder, ReplicaRule, rule};
use crate::{MoeError, eplb::Placement};

/// Replaces the logical ids `[T, K]` by physical ones and counts the load.
///
/// # Errors
/// [`MoeError::Shape`] when the ids are not `[T, K]` or the load is not `[P]`.
pub fn map_and_record(
    ids: &mut [i32],
    top_k: usize,
    placement: &Placement,
    rule: ReplicaRule,
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    recorder.check(ids, top_k, placement)?;
    if ids.is_empty() {
        return Ok(());
    }
    match rule {
        ReplicaRule::TokenHash => {
            let choose = |token, _, copies| rule::token_hash(token, copies);
            map_with(choose, ids, top_k, placement, recorder);
        }
        ReplicaRule::Salted(salt) => {
            let choose = |token, expert, copies| rule::salted_hash(salt, token, expert, copies);
            map_with(choose, ids, top_k, placement, recorder);
        }
    }
    Ok(())
}

fn map_with(
    choose: impl Fn(usize, i32, usize) -> usize,
    ids: &mut [i32],
    top_k: usize,
    placement: &Placement,
    recorder: LoadRecorder<'_>,
) {
    let physical = |token, logical| match placement.replicas(logical) {
        [] => -1,
        [only] => *only,
        replicas => replicas[choose(token, logical, replicas.len())],
    };
    let recorded = recorder.recorded_pairs(top_k).min(ids.len());
    for (token, ids) in ids.chunks_exact_mut(top_k).enumerate() {
        ids.iter_mut().for_each(|id| *id = physical(token, *id));
    }
    for id in &ids[..recorded] {
        if let Ok(slot) = usize::try_from(*id) {
            let load = &mut recorder.expert_load[slot];
            *load = load.saturating_add(1);
        }
    }
}
