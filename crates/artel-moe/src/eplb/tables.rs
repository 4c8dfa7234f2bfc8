use std::ops::Range;

use super::{LayerPlan, Shares};
use crate::MoeError;

/// A plan of one layer as the mapping of ids reads it: the slots of each expert in a row, rows one
/// after the other, 16 bits a number. 256 experts in 288 slots take 1666 bytes; the published
/// table, 1024 slots an expert in 64 bits, takes 2 MiB.
///
/// Expert 0 in the slots 0 and 2, of which the first gets a quarter of its tokens:
///
/// ```
/// use artel_moe::eplb::{LayerPlan, Placement, ReplicaTable, Shares};
/// let placement = Placement::new(vec![0, 1, 0], 2)?;
/// let shares = Shares::new(vec![0.25, 1.0, 0.75], &placement)?;
/// let table = ReplicaTable::new(&LayerPlan { placement, shares })?;
/// assert_eq!(table.slots_of(0), [0, 2]);
/// assert_eq!(table.thresholds_of(0), [16384, 65535]);
/// assert_eq!([table.slots_of(2), table.slots_of(-1)], [&[] as &[u16]; 2]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaTable {
    /// Where the row of each expert begins, `[L + 1]`.
    offsets: Vec<u16>,
    /// Slots, ascending in each row; as many as are in use.
    slots: Vec<u16>,
    /// For each of them, the parts of its expert up to and with it.
    thresholds: Vec<u16>,
    num_physical: usize,
}

impl ReplicaTable {
    /// Parts that the tokens of an expert are divided into: the largest threshold. Not 65536, so
    /// that the threshold of all parts is a number of 16 bits; a share is kept to 1 in 131070.
    pub const PARTS: u16 = u16::MAX;

    /// The table of a plan.
    ///
    /// # Errors
    /// [`MoeError`] when the shares are not of the placement.
    pub fn new(plan: &LayerPlan) -> Result<Self, MoeError> {
        let LayerPlan { placement, shares } = plan;
        Shares::new(shares.of_slots().to_vec(), placement)?;
        let mut table = Self {
            offsets: vec![0],
            slots: Vec::with_capacity(placement.num_physical()),
            thresholds: Vec::with_capacity(placement.num_physical()),
            num_physical: placement.num_physical(),
        };
        // A placement has at most 32768 slots, so 16 bits hold every slot and offset.
        for expert in 0..placement.num_logical() as i32 {
            let mut share = 0.0;
            for &slot in placement.replicas(expert) {
                share += shares.of_slots()[slot as usize];
                table.slots.push(slot as u16);
                table.thresholds.push(threshold(share));
            }
            table.offsets.push(table.slots.len() as u16);
        }
        Ok(table)
    }

    /// Experts of the model, `L`.
    pub fn num_logical(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Slots, `P`.
    pub fn num_physical(&self) -> usize {
        self.num_physical
    }

    /// Slots of one expert, ascending; empty when the id does not exist.
    #[inline]
    pub fn slots_of(&self, logical: i32) -> &[u16] {
        &self.slots[self.row(logical)]
    }

    /// Parts up to and with each slot of one expert: copy `i` serves the parts from threshold
    /// `i - 1` on and below threshold `i`, none if the two are equal. The last is [`Self::PARTS`].
    #[inline]
    pub fn thresholds_of(&self, logical: i32) -> &[u16] {
        &self.thresholds[self.row(logical)]
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        2 * (self.offsets.len() + self.slots.len() + self.thresholds.len())
    }

    #[inline]
    fn row(&self, logical: i32) -> Range<usize> {
        // A negative id is larger than any expert.
        let expert = logical as u32 as usize;
        match self.offsets.get(expert..expert + 2) {
            Some(&[from, to]) => usize::from(from)..usize::from(to),
            _ => 0..0,
        }
    }
}

/// A sum of shares in parts, rounded to the nearest.
pub(super) fn threshold(share: f64) -> u16 {
    // Sums may be off by rounding; the conversion keeps them in range.
    (share * f64::from(ReplicaTable::PARTS)).round() as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eplb::Placement;

    fn table(slots: Vec<i32>, num_logical: usize, shares: Vec<f64>) -> ReplicaTable {
        let placement = Placement::new(slots, num_logical).unwrap();
        let shares = Shares::new(shares, &placement).unwrap();
        ReplicaTable::new(&LayerPlan { placement, shares }).unwrap()
    }

    #[test]
    fn rows_are_those_of_the_placement() {
        let placement = Placement::new(vec![0, 2, 0, -1, 1, 0, 3], 4).unwrap();
        let table = ReplicaTable::new(&LayerPlan::equal(placement.clone())).unwrap();
        assert_eq!((table.num_logical(), table.num_physical()), (4, 7));
        for expert in -2..6 {
            let slots = table.slots_of(expert).iter().map(|&slot| i32::from(slot));
            assert!(slots.eq(placement.replicas(expert).iter().copied()), "expert {expert}");
        }
        assert!(table.slots_of(i32::MIN).is_empty() && table.slots_of(i32::MAX).is_empty());
        assert_eq!(table.thresholds_of(0), [21845, 43690, 65535]);
        assert_eq!(table.thresholds_of(3), [65535]);
    }

    #[test]
    fn copies_without_a_share_have_no_parts() {
        let table = table(vec![0, 0, 0, 1], 2, vec![0.0, 1.0, 0.0, 1.0]);
        assert_eq!(table.thresholds_of(0), [0, 65535, 65535]);
    }

    #[test]
    fn the_last_threshold_is_all_parts() {
        for copies in 1..=1024 {
            let equal = vec![1.0 / copies as f64; copies];
            let table = table(vec![0; copies], 1, equal);
            assert_eq!(table.thresholds_of(0).last(), Some(&ReplicaTable::PARTS), "{copies}");
        }
        assert_eq!((threshold(1.0 + 1e-6), threshold(1.0 - 1e-6)), (65535, 65535));
    }

    #[test]
    fn it_is_small_and_holds_the_largest_placement() {
        let of = |num_logical, redundant| {
            let placement = Placement::initial(num_logical, redundant).unwrap();
            ReplicaTable::new(&LayerPlan::equal(placement)).unwrap()
        };
        assert_eq!(of(256, 32).bytes(), 1666);
        let largest = of(1, 32_767);
        assert_eq!((largest.slots_of(0).len(), largest.slots_of(0)[32_767]), (32_768, 32_767));
        assert_eq!(of(32_768, 0).slots_of(32_767), [32_767]);
    }

    #[test]
    fn shares_of_another_placement_are_refused() {
        let plan = |slots: &[i32], shares: &[i32]| LayerPlan {
            placement: Placement::new(slots.to_vec(), 2).unwrap(),
            shares: Shares::equal(&Placement::new(shares.to_vec(), 2).unwrap()),
        };
        assert!(ReplicaTable::new(&plan(&[0, 1, 0], &[0, 1])).is_err());
        assert!(ReplicaTable::new(&plan(&[0, 1, 0], &[0, 1, 1])).is_err());
        assert!(ReplicaTable::new(&plan(&[0, 1, 1], &[0, 1, 1])).is_ok());
    }
}
