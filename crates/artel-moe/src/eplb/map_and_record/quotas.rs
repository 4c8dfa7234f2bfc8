use super::super::ReplicaTable;

/// Where each expert is in the quotas of a batch. Memory that is used again from batch to batch.
#[derive(Debug, Clone, Default)]
pub struct QuotaCursor {
    /// Which of its copies serves the next pair of each expert, `[L]`.
    copy: Vec<u16>,
    /// Pairs that each slot still takes, `[P]`.
    left: Vec<u32>,
    /// Pairs for which no quota was left.
    beyond: usize,
}

impl QuotaCursor {
    /// Before the first pair.
    pub(super) fn begin(&mut self, quotas: &[u32], table: &ReplicaTable) {
        self.copy.clear();
        self.copy.resize(table.num_logical(), 0);
        self.left.clear();
        self.left.extend_from_slice(quotas);
        self.beyond = 0;
    }

    /// The slot for the next pair of an expert: its first copy that still takes some, the last one
    /// when all quotas are used up, -1 for an id that is no expert.
    #[inline]
    pub(super) fn next_slot(&mut self, logical: i32, table: &ReplicaTable) -> i32 {
        let slots = table.slots_of(logical);
        let Some(last) = slots.len().checked_sub(1) else { return -1 };
        let copy = &mut self.copy[logical as usize];
        while usize::from(*copy) < last && self.left[usize::from(slots[usize::from(*copy)])] == 0 {
            *copy += 1;
        }
        let slot = slots[usize::from(*copy)];
        match &mut self.left[usize::from(slot)] {
            0 => self.beyond += 1,
            left => *left -= 1,
        }
        i32::from(slot)
    }

    /// Whether every slot has got exactly its quota.
    pub(super) fn is_exact(&self) -> bool {
        self.beyond == 0 && self.left.iter().all(|&left| left == 0)
    }
}
