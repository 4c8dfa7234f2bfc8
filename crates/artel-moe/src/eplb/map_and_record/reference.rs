//! The definition of map and record: one pair at a time, every condition spelled out.

use super::{LoadRecorder, ReplicaRule, rule};
use crate::{
    MoeError,
    eplb::{LayerPlan, Placement},
};

/// Replaces the logical ids `[T, K]` by physical ones and counts the load.
///
/// # Errors
/// [`MoeError::Shape`] when the ids are not `[T, K]` or the load is not `[P]`.
pub fn map_and_record(
    ids: &mut [i32],
    top_k: usize,
    plan: &LayerPlan,
    rule: ReplicaRule,
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    let copy_of = |pair: usize, ids: &[i32]| {
        let (token, logical) = (pair / top_k, ids[pair]);
        let copies = plan.placement.logical_replica_count()[logical as usize] as usize;
        match rule {
            ReplicaRule::TokenHash => rule::token_hash(token, copies),
            ReplicaRule::Salted(salt) => rule::salted_hash(salt, token, logical, copies),
            ReplicaRule::Shares(salt) => {
                let part = rule::salted_part(salt, token, logical);
                // The first copy whose share, added to those before it, goes beyond the part.
                let reaches = |copy: &usize| rule::parts_up_to(plan, logical, *copy) > part;
                (0..copies).find(reaches).unwrap_or(copies - 1)
            }
        }
    };
    map_by(copy_of, ids, top_k, &plan.placement, recorder)
}

/// The same with as many pairs for each slot as `quotas` `[P]` say. Where they add up to fewer than
/// an expert has, its last copy serves the rest.
///
/// # Errors
/// As [`map_and_record`], and for quotas that are not `[P]`.
pub fn map_by_quotas(
    ids: &mut [i32],
    top_k: usize,
    placement: &Placement,
    quotas: &[u32],
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    MoeError::check_shape("quotas", placement.num_physical(), quotas.len())?;
    let copy_of = |pair: usize, ids: &[i32]| {
        let logical = ids[pair];
        let before = ids[..pair].iter().filter(|&&id| id == logical).count();
        let replicas = placement.replicas(logical);
        let mut end = 0;
        for (copy, &slot) in replicas.iter().enumerate() {
            end += quotas[slot as usize] as usize;
            if before < end {
                return copy;
            }
        }
        replicas.len() - 1
    };
    map_by(copy_of, ids, top_k, placement, recorder)
}

fn map_by(
    copy_of: impl Fn(usize, &[i32]) -> usize,
    ids: &mut [i32],
    top_k: usize,
    placement: &Placement,
    recorder: LoadRecorder<'_>,
) -> Result<(), MoeError> {
    recorder.check(ids, top_k, placement.num_physical())?;
    let logical_ids = ids.to_vec();
    for (pair, id) in ids.iter_mut().enumerate() {
        let logical = *id;
        if logical < 0 || logical as usize >= placement.num_logical() {
            *id = -1;
            continue;
        }
        let row = logical as usize * placement.replicas_max();
        let physical = placement.logical_to_physical()[row + copy_of(pair, &logical_ids)];
        *id = physical;
        if recorder.enabled && pair / top_k < recorder.unpadded_tokens {
            let load = &mut recorder.expert_load[physical as usize];
            *load = load.saturating_add(1);
        }
    }
    Ok(())
}
