use crate::MoeError;
use crate::eplb::{Cluster, Placement};

/// One expert that goes from one rank to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Expert of the model.
    pub expert: usize,
    /// Sending rank.
    pub from: usize,
    /// Slot that it is read from, the first of this expert on the sending rank.
    pub from_slot: usize,
    /// Receiving rank.
    pub to: usize,
    /// Slots of the receiving rank that get it, ascending.
    pub to_slots: Vec<usize>,
}

/// One expert that is copied inside a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalCopy {
    /// Expert of the model.
    pub expert: usize,
    /// Slot that it is read from.
    pub from_slot: usize,
    /// Slot that gets it.
    pub to_slot: usize,
}

/// All that has to be copied in one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MovePlan {
    /// Slots whose expert changes, those that become empty included.
    pub changed_slots: usize,
    /// Between ranks, by expert, sender and receiver.
    pub transfers: Vec<Transfer>,
    /// Inside ranks, by slot.
    pub copies: Vec<LocalCopy>,
    /// Experts that no living rank has, and the slot that wants them: to be read again from where they
    /// were loaded.
    pub reloads: Vec<(usize, usize)>,
}

/// What has to be copied so that the slots of `cluster` hold `new` where they hold `old`.
///
/// # Errors
/// [`MoeError`] when the placements differ in slots or experts, or are of another cluster.
pub fn plan(old: &Placement, new: &Placement, cluster: &Cluster) -> Result<MovePlan, MoeError> {
    MoeError::check_shape("slots of a placement", cluster.slots(), old.num_physical())?;
    MoeError::check_shape("experts of a placement", old.num_logical(), new.num_logical())?;
    cluster.check(new)?;
    let mut moves = MovePlan::default();
    for expert in 0..new.num_logical() {
        plan_expert(expert, (old, new), cluster, &mut moves);
    }
    let slots = old.physical_to_logical().iter().zip(new.physical_to_logical());
    moves.changed_slots = slots.filter(|(old, new)| old != new).count();
    moves.copies.sort_unstable_by_key(|copy| copy.to_slot);
    Ok(moves)
}

fn plan_expert(
    expert: usize,
    (old, new): (&Placement, &Placement),
    cluster: &Cluster,
    moves: &mut MovePlan,
) {
    let slots = |placement: &Placement| -> Vec<usize> {
        placement.replicas(expert as i32).iter().map(|&slot| slot as usize).collect()
    };
    let (has, wants) = (slots(old), slots(new));
    let alive = |slot: &&usize| cluster.is_alive(cluster.rank_of(**slot));
    let sources = first_slots(has.iter().filter(alive), cluster);
    let mut receivers: Vec<(usize, Vec<usize>)> = Vec::new();
    for to_slot in wants.into_iter().filter(|slot| !has.contains(slot)) {
        let rank = cluster.rank_of(to_slot);
        if let Some(&(_, from_slot)) = sources.iter().find(|(owner, _)| *owner == rank) {
            moves.copies.push(LocalCopy { expert, from_slot, to_slot });
        } else if let Some((_, to_slots)) = receivers.last_mut().filter(|(to, _)| *to == rank) {
            to_slots.push(to_slot);
        } else {
            receivers.push((rank, vec![to_slot]));
        }
    }
    if sources.is_empty() {
        let wanted = receivers.iter().flat_map(|(_, to_slots)| to_slots);
        moves.reloads.extend(wanted.map(|&to_slot| (expert, to_slot)));
    }
    for ((from, from_slot), receivers) in sources.iter().zip(deal(&receivers, sources.len())) {
        moves.transfers.extend(receivers.into_iter().map(|(to, to_slots)| Transfer {
            expert,
            from: *from,
            from_slot: *from_slot,
            to: *to,
            to_slots: to_slots.clone(),
        }));
    }
}

/// Each rank with its first of `slots`, which ascend.
fn first_slots<'a>(
    slots: impl Iterator<Item = &'a usize>,
    cluster: &Cluster,
) -> Vec<(usize, usize)> {
    let mut owners: Vec<(usize, usize)> =
        slots.map(|&slot| (cluster.rank_of(slot), slot)).collect();
    owners.dedup_by_key(|(rank, _)| *rank);
    owners
}

/// Receivers of each sender: runs of `receivers / senders`, and then one each of what is left.
fn deal<T>(receivers: &[T], senders: usize) -> Vec<Vec<&T>> {
    let each = receivers.len().checked_div(senders).unwrap_or(0);
    let of_sender = |sender: usize| {
        let run = &receivers[sender * each..(sender + 1) * each];
        run.iter().chain(receivers.get(senders * each + sender)).collect()
    };
    (0..senders).map(of_sender).collect()
}
