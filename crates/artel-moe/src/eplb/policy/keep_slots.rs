use crate::{
    MoeError,
    eplb::{Cluster, Placement},
};

/// The new placement with its slots in another order inside each rank: a copy of an expert that the
/// rank has held before stays in its old slot, and nothing needs to be moved for it.
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::keep_slots};
/// let old = Placement::new(vec![0, 1, 2, 3, 4, 5, 6, 7], 8)?;
/// let new = Placement::new(vec![1, 5, 0, 4, 6, 2, 7, 3], 8)?;
/// let kept = keep_slots(&old, &new, &Cluster::new(2, 4)?)?;
/// assert_eq!(kept.physical_to_logical(), [0, 1, 5, 4, 2, 3, 6, 7]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError::Shape`] when the placements or the ranks have different numbers of slots.
pub fn keep_slots(
    old: &Placement,
    new: &Placement,
    cluster: &Cluster,
) -> Result<Placement, MoeError> {
    MoeError::check_shape("slots of the old placement", cluster.slots(), old.num_physical())?;
    MoeError::check_shape("slots of the new placement", cluster.slots(), new.num_physical())?;
    let mut slots = vec![-1; cluster.slots()];
    let room = cluster.slots_per_rank();
    let ranks = old.physical_to_logical().chunks(room).zip(new.physical_to_logical().chunks(room));
    for ((old, new), slots) in ranks.zip(slots.chunks_mut(room)) {
        keep_slots_of_rank(old, new, slots);
    }
    Placement::new(slots, new.num_logical())
}

fn keep_slots_of_rank(old: &[i32], new: &[i32], slots: &mut [i32]) {
    let mut arriving: Vec<i32> = new.iter().copied().filter(|&logical| logical >= 0).collect();
    let mut kept = vec![false; slots.len()];
    for (slot, &logical) in old.iter().enumerate() {
        if let Some(position) = arriving.iter().position(|&other| other == logical) {
            arriving.remove(position);
            slots[slot] = logical;
            kept[slot] = true;
        }
    }
    let free = slots.iter_mut().zip(kept).filter(|(_, kept)| !kept).map(|(slot, _)| slot);
    free.zip(arriving).for_each(|(slot, logical)| *slot = logical);
}
