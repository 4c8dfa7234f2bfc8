use crate::{MoeError, router::RouterConfig};

/// Which slot of the group holds which expert, for one layer. A *logical* expert is one of the
/// model's; a *physical* expert is a slot that holds a copy of one. Popular experts have several.
///
/// Four experts in six slots, two of them twice:
///
/// ```
/// use artel_moe::eplb::Placement;
/// let placement = Placement::new(vec![0, 1, 2, 3, 0, 1], 4)?;
/// assert_eq!(placement.logical_to_physical(), [0, 4, 1, 5, 2, -1, 3, -1]);
/// assert_eq!(placement.logical_replica_count(), [2, 2, 1, 1]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    physical_to_logical: Vec<i32>,
    logical_to_physical: Vec<i32>,
    logical_replica_count: Vec<i32>,
    replicas_max: usize,
}

impl Placement {
    /// The placement with this expert in each slot, `[P]`; -1 is an empty slot.
    ///
    /// # Errors
    /// [`MoeError::Element`] for an expert that does not exist, [`MoeError::Config`] when an
    /// expert has no slot or there are too many slots.
    pub fn new(physical_to_logical: Vec<i32>, num_logical: usize) -> Result<Self, MoeError> {
        let slots = physical_to_logical.len();
        if slots > RouterConfig::EXPERTS_MAX || num_logical > slots {
            let allowed = format!("{num_logical} to {}", RouterConfig::EXPERTS_MAX);
            return Err(MoeError::config("number of physical experts", slots, allowed));
        }
        let mut logical_replica_count = vec![0; num_logical];
        for (slot, &logical) in physical_to_logical.iter().enumerate() {
            if logical == -1 {
                continue;
            }
            match usize::try_from(logical).ok().and_then(|id| logical_replica_count.get_mut(id)) {
                Some(count) => *count += 1,
                None => {
                    let allowed = format!("-1 or a logical expert below {num_logical}");
                    return Err(MoeError::element("physical_to_logical", slot, logical, allowed));
                }
            }
        }
        if let Some(unplaced) = logical_replica_count.iter().position(|&count| count == 0) {
            let allowed = "1 or more: every expert needs a slot";
            return Err(MoeError::element("logical_replica_count", unplaced, 0, allowed));
        }
        Ok(Self::with_counts(physical_to_logical, logical_replica_count))
    }

    /// The placement before anything is known about load: every expert once, then the first
    /// `num_redundant` again, in turns.
    ///
    /// # Errors
    /// As [`Placement::new`].
    pub fn initial(num_logical: usize, num_redundant: usize) -> Result<Self, MoeError> {
        let slots = num_logical.saturating_add(num_redundant);
        if num_logical == 0 || slots > RouterConfig::EXPERTS_MAX {
            let allowed = format!("1 to {}", RouterConfig::EXPERTS_MAX);
            return Err(MoeError::config("number of physical experts", slots, allowed));
        }
        Self::new((0..slots).map(|slot| (slot % num_logical) as i32).collect(), num_logical)
    }

    /// Expert in each slot, `[P]`; -1 is an empty slot.
    pub fn physical_to_logical(&self) -> &[i32] {
        &self.physical_to_logical
    }

    /// Slots of each expert, `[L, replicas_max]`, ascending, padded with -1.
    pub fn logical_to_physical(&self) -> &[i32] {
        &self.logical_to_physical
    }

    /// Copies of each expert, `[L]`, each at least 1.
    pub fn logical_replica_count(&self) -> &[i32] {
        &self.logical_replica_count
    }

    /// Copies of the expert that has most: the row length of `logical_to_physical`.
    pub fn replicas_max(&self) -> usize {
        self.replicas_max
    }

    /// Experts of the model, `L`.
    pub fn num_logical(&self) -> usize {
        self.logical_replica_count.len()
    }

    /// Slots, `P`.
    pub fn num_physical(&self) -> usize {
        self.physical_to_logical.len()
    }

    /// Slots of one expert; empty when the id does not exist.
    pub fn replicas(&self, logical: i32) -> &[i32] {
        let Ok(logical) = usize::try_from(logical) else { return &[] };
        match self.logical_replica_count.get(logical) {
            None => &[],
            Some(&count) => {
                &self.logical_to_physical[logical * self.replicas_max..][..count as usize]
            }
        }
    }

    fn with_counts(physical_to_logical: Vec<i32>, logical_replica_count: Vec<i32>) -> Self {
        let replicas_max = logical_replica_count.iter().copied().max().unwrap_or(0) as usize;
        let mut logical_to_physical = vec![-1; logical_replica_count.len() * replicas_max];
        let mut placed = vec![0; logical_replica_count.len()];
        for (slot, &logical) in physical_to_logical.iter().enumerate() {
            if let Ok(logical) = usize::try_from(logical) {
                logical_to_physical[logical * replicas_max + placed[logical]] = slot as i32;
                placed[logical] += 1;
            }
        }
        Self { physical_to_logical, logical_to_physical, logical_replica_count, replicas_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_both_directions_agree() {
        let second = Placement::new(vec![0, 2, 0, 1, 0, 3], 4).unwrap();
        assert_eq!(second.logical_replica_count(), [3, 1, 1, 1]);
        assert_eq!(second.replicas_max(), 3);
        assert_eq!(second.logical_to_physical()[..6], [0, 2, 4, 3, -1, -1]);
        assert_eq!((second.num_logical(), second.num_physical()), (4, 6));
        assert_eq!(second.replicas(0), [0, 2, 4]);
        assert_eq!([second.replicas(-1), second.replicas(4)], [&[] as &[i32]; 2]);
    }

    #[test]
    fn empty_slots_never_appear() {
        for slots in [vec![0, 1, -1, 2, 3, -1], vec![3, -1, 2, 1, 0, -1]] {
            let placement = Placement::new(slots.clone(), 4).unwrap();
            assert_eq!(placement.logical_replica_count(), [1; 4]);
            for (logical, &slot) in placement.logical_to_physical().iter().enumerate() {
                assert_eq!(slots[slot as usize], logical as i32);
            }
        }
    }

    #[test]
    fn the_initial_placement_repeats_the_first_experts() {
        let placement = Placement::initial(4, 2).unwrap();
        assert_eq!(placement.physical_to_logical(), [0, 1, 2, 3, 0, 1]);
        assert_eq!(Placement::initial(2, 3).unwrap().logical_replica_count(), [3, 2]);
        assert_eq!(Placement::initial(3, 0).unwrap().physical_to_logical(), [0, 1, 2]);
    }

    #[test]
    fn illegal_placements_are_refused() {
        let message = |slots, num_logical| Placement::new(slots, num_logical).unwrap_err();
        let unplaced = message(vec![0, 1, 1], 3).to_string();
        assert!(unplaced.starts_with("logical_replica_count[2] is 0"), "{unplaced}");
        let unknown = message(vec![0, 3, 1, 2], 3).to_string();
        assert!(unknown.starts_with("physical_to_logical[1] is 3"), "{unknown}");
        message(vec![-2, 0], 1);
        message(vec![0], 2);
        message(vec![], usize::MAX);
        message(vec![0; 32769], 1);
        assert!(Placement::initial(0, 0).is_err());
        assert!(Placement::initial(4, usize::MAX).is_err());
    }
}
