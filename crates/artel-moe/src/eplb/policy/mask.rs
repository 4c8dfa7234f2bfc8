use super::{LayerPlan, LayerQuery, Policy};
use crate::{
    MoeError,
    eplb::{Cluster, Placement},
};

/// The placement without the slots of dead ranks; nothing moves.
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::mask_ranks};
/// let placement = Placement::new(vec![0, 1, 0, 2, 1, 3, 2, 3], 4)?;
/// let masked = mask_ranks(&placement, &Cluster::new(4, 2)?.without(&[2])?)?;
/// assert_eq!(masked.logical_replica_count(), [2, 1, 2, 1]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError`] for other ranks than the placement's, and with the first expert that would lose its
/// last copy; then only [`rehome`] helps.
pub fn mask_ranks(placement: &Placement, cluster: &Cluster) -> Result<Placement, MoeError> {
    Placement::new(living_slots(placement, cluster)?, placement.num_logical())
}

/// The placement without the slots of dead ranks. Each expert that lost its last copy, the heaviest
/// first, replaces a copy of the expert whose remaining copies take over the least each.
///
/// # Errors
/// [`MoeError`] for other ranks than the placement's, a load of other experts, or fewer slots of
/// living ranks than experts.
pub fn rehome(
    placement: &Placement,
    load: &[f64],
    cluster: &Cluster,
) -> Result<Placement, MoeError> {
    check_load(load, placement.num_logical())?;
    check_room(placement.num_logical(), cluster)?;
    let mut slots = living_slots(placement, cluster)?;
    let mut counts = vec![0usize; load.len()];
    slots.iter().filter(|&&logical| logical >= 0).for_each(|&l| counts[l as usize] += 1);
    let mut orphans: Vec<usize> = (0..load.len()).filter(|&expert| counts[expert] == 0).collect();
    orphans.sort_by(|&a, &b| load[b].total_cmp(&load[a]));
    for orphan in orphans {
        // An empty slot costs nothing.
        let cost = |slot: usize| match usize::try_from(slots[slot]) {
            Ok(expert) => load[expert] / (counts[expert] - 1) as f64,
            Err(_) => -1.0,
        };
        let spare = cluster
            .living()
            .flat_map(|rank| cluster.slots_of(rank))
            .filter(|&slot| usize::try_from(slots[slot]).map_or(true, |e| counts[e] > 1));
        let cheapest = spare.min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        let slot = cheapest.expect("this is a bug: more slots than experts leave one to spare");
        if let Ok(expert) = usize::try_from(slots[slot]) {
            counts[expert] -= 1;
        }
        slots[slot] = orphan as i32;
        counts[orphan] = 1;
    }
    Placement::new(slots, load.len())
}

/// The policy that leaves everything as it is, with equal shares. Experts that ranks took with them
/// when they died are the exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchanged;

impl Policy for Unchanged {
    fn name(&self) -> &'static str {
        "none"
    }

    fn plan(&self, query: &LayerQuery<'_>) -> Result<LayerPlan, MoeError> {
        query.check()?;
        Ok(LayerPlan::equal(rehome(query.current, query.load, query.cluster)?))
    }
}

/// Checks that loads are of these experts.
pub(super) fn check_load(load: &[f64], experts: usize) -> Result<(), MoeError> {
    MoeError::check_shape("load of experts", experts, load.len())?;
    match load.iter().position(|load| !(*load >= 0.0 && load.is_finite())) {
        None => Ok(()),
        Some(expert) => {
            Err(MoeError::element("load of experts", expert, load[expert], "0 or more"))
        }
    }
}

/// Checks that living ranks have a slot for every expert.
pub(super) fn check_room(experts: usize, cluster: &Cluster) -> Result<(), MoeError> {
    let slots = cluster.living().count() * cluster.slots_per_rank();
    if experts == 0 || slots < experts {
        let allowed = format!("{} or more, the number of experts", experts.max(1));
        return Err(MoeError::config("slots of living ranks", slots, allowed));
    }
    Ok(())
}

fn living_slots(placement: &Placement, cluster: &Cluster) -> Result<Vec<i32>, MoeError> {
    MoeError::check_shape("slots of a placement", cluster.slots(), placement.num_physical())?;
    let slots = placement.physical_to_logical().iter().enumerate();
    let of_living = |(slot, &logical)| match cluster.is_alive(cluster.rank_of(slot)) {
        true => logical,
        false => -1,
    };
    Ok(slots.map(of_living).collect())
}
