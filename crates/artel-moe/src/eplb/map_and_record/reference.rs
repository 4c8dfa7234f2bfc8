//! The definition of map and record: one pair at a time, every condition spelled out.

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
    for (pair, id) in ids.iter_mut().enumerate() {
        let token = pair / top_k;
        let logical = *id;
        if logical < 0 || logical as usize >= placement.num_logical() {
            *id = -1;
            continue;
        }
        let copies = placement.logical_replica_count()[logical as usize] as usize;
        let replica = match rule {
            ReplicaRule::TokenHash => rule::token_hash(token, copies),
            ReplicaRule::Salted(salt) => rule::salted_hash(salt, token, logical, copies),
        };
        let row = logical as usize * placement.replicas_max();
        let physical = placement.logical_to_physical()[row + replica];
        *id = physical;
        if recorder.enabled && token < recorder.unpadded_tokens {
            let load = &mut recorder.expert_load[physical as usize];
            *load = load.saturating_add(1);
        }
    }
    Ok(())
}
