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
///
/// Two placements are equal when their maps are, whatever their versions.
#[derive(Debug, Clone)]
pub struct Placement {
    physical_to_logical: Vec<i32>,
    logical_to_physical: Vec<i32>,
    logical_replica_count: Vec<i32>,
    replicas_max: usize,
    version: u64,
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        // The other maps follow from these.
        self.num_logical() == other.num_logical()
            && self.physical_to_logical == other.physical_to_logical
    }
}

impl Eq for Placement {}

impl Placement {
    /// Slots of an expert in the published layout, so that its tables never grow.
    pub const PUBLISHED_WIDTH: usize = 1024;

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

    /// What follows this placement of the same experts on the same slots: `next`, one version later.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for another number of experts or slots.
    pub fn successor(&self, next: Self) -> Result<Self, MoeError> {
        let experts = next.num_logical();
        MoeError::check_shape("experts of the next placement", self.num_logical(), experts)?;
        let slots = next.num_physical();
        MoeError::check_shape("slots of the next placement", self.num_physical(), slots)?;
        Ok(Self { version: self.version + 1, ..next })
    }

    /// How many placements this layer had before: 0 for the first. Ranks that hold the same version
    /// with the same [`Placement::hash`] agree on where everything is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// FNV-1a of 64 bits over the number of experts (8 bytes) and the expert in each slot (4 bytes
    /// each, all little-endian), from which the other maps follow. The same on every machine.
    pub fn hash(&self) -> u64 {
        let slots = self.physical_to_logical.iter().flat_map(|logical| logical.to_le_bytes());
        fnv1a((self.num_logical() as u64).to_le_bytes().into_iter().chain(slots))
    }

    /// FNV-1a over version and hash of every layer, 8 bytes each: one number that ranks compare.
    pub fn hash_of_layers<'a>(layers: impl IntoIterator<Item = &'a Self>) -> u64 {
        let numbers = layers.into_iter().flat_map(|layer| [layer.version, layer.hash()]);
        fnv1a(numbers.flat_map(u64::to_le_bytes))
    }

    /// `logical_to_physical` as others store it: `[L, width]`, padded with -1.
    ///
    /// # Errors
    /// [`MoeError::Config`] when an expert has more slots than that.
    pub fn published_layout(&self, width: usize) -> Result<Vec<i64>, MoeError> {
        if width < self.replicas_max {
            let allowed = format!("{} or more, the copies of one expert", self.replicas_max);
            return Err(MoeError::config("width of the published layout", width, allowed));
        }
        let mut table = vec![-1; self.num_logical() * width];
        for (expert, row) in (0..).zip(table.chunks_exact_mut(width.max(1))) {
            let slots = self.replicas(expert).iter();
            row.iter_mut().zip(slots).for_each(|(entry, &slot)| *entry = i64::from(slot));
        }
        Ok(table)
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
        Self {
            physical_to_logical,
            logical_to_physical,
            logical_replica_count,
            replicas_max,
            version: 0,
        }
    }
}

/// The hash of Fowler, Noll and Vo, variant 1a.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let add = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, add)
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

    /// The maps of vLLM's test of unused slots.
    #[test]
    fn unused_slots_have_the_published_maps() {
        let placement = Placement::new(vec![0, 1, -1, 2, 3, -1], 4).unwrap();
        assert_eq!(placement.logical_to_physical(), [0, 1, 3, 4]);
        let placement = Placement::new(vec![3, -1, 2, 1, 0, -1], 4).unwrap();
        assert_eq!(placement.logical_to_physical(), [4, 3, 2, 0]);
    }

    #[test]
    fn the_published_layout_is_padded() {
        let placement = Placement::new(vec![0, 2, 0, 1, 0, 3], 4).unwrap();
        let narrow = placement.published_layout(3).unwrap();
        assert_eq!(narrow, [0, 2, 4, 3, -1, -1, 1, -1, -1, 5, -1, -1]);
        let wide = placement.published_layout(Placement::PUBLISHED_WIDTH).unwrap();
        assert_eq!(wide.len(), 4 * 1024);
        assert!(wide.chunks(1024).zip(narrow.chunks(3)).all(|(wide, narrow)| {
            wide[..3] == *narrow && wide[3..].iter().all(|&slot| slot == -1)
        }));
        assert!(placement.published_layout(2).is_err());
    }

    #[test]
    fn versions_count_and_hashes_tell_maps_apart() {
        assert_eq!(fnv1a(*b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
        let first = Placement::new(vec![0, 1, 0, -1], 2).unwrap();
        let second = first.successor(Placement::new(vec![0, 1, -1, 0], 2).unwrap()).unwrap();
        let third = second.successor(first.clone()).unwrap();
        assert_eq!([&first, &second, &third].map(Placement::version), [0, 1, 2]);
        assert!(first == third && first.hash() == third.hash());
        assert!(first != second && first.hash() != second.hash());
        let of_layers = |layers: [&Placement; 2]| Placement::hash_of_layers(layers);
        assert_eq!(of_layers([&first, &second]), of_layers([&first.clone(), &second]));
        assert_ne!(of_layers([&first, &second]), of_layers([&second, &first]));
        assert_ne!(of_layers([&first, &second]), of_layers([&third, &second]), "versions count");
        // Ranks on different machines compare this number.
        assert_eq!(Placement::new(vec![0], 1).unwrap().hash(), 0x5f24_2d39_c242_2be4);
        assert!(first.successor(Placement::new(vec![0, 1, 0], 2).unwrap()).is_err());
        assert!(first.successor(Placement::new(vec![0, 1, 0, 2], 3).unwrap()).is_err());
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
