use crate::MoeError;
use crate::eplb::Placement;

/// Placements on the way from `old` to `new`, the last of which is `new`; none when nothing changes.
/// Each changes at most `slots_max` slots, unless experts can only move together: two that swap their
/// slots would otherwise be nowhere in between.
///
/// # Errors
/// [`MoeError`] when the placements differ in slots or experts.
pub fn stages(
    old: &Placement,
    new: &Placement,
    slots_max: usize,
) -> Result<Vec<Placement>, MoeError> {
    MoeError::check_shape("slots of a placement", old.num_physical(), new.num_physical())?;
    MoeError::check_shape("experts of a placement", old.num_logical(), new.num_logical())?;
    let mut way = Way {
        slots: old.physical_to_logical().to_vec(),
        copies: old.logical_replica_count().to_vec(),
        new: new.physical_to_logical(),
    };
    let mut stages = Vec::new();
    let mut changed = 0;
    while let Some(slot) = way.next_slot() {
        let together = way.together_with(slot);
        if changed > 0 && changed + together.len() > slots_max {
            stages.push(Placement::new(way.slots.clone(), old.num_logical())?);
            changed = 0;
        }
        changed += together.len();
        way.change(&together);
    }
    if changed > 0 {
        stages.push(new.clone());
    }
    Ok(stages)
}

/// Where the slots have got to.
struct Way<'a> {
    slots: Vec<i32>,
    copies: Vec<i32>,
    new: &'a [i32],
}

impl Way<'_> {
    /// A slot to change next: one whose expert has other copies, if there is one.
    fn next_slot(&self) -> Option<usize> {
        let mut changed = (0..self.slots.len()).filter(|&slot| self.slots[slot] != self.new[slot]);
        let first = changed.clone().next();
        changed.find(|&slot| self.copies_of(self.slots[slot]) != Some(1)).or(first)
    }

    fn copies_of(&self, expert: i32) -> Option<i32> {
        usize::try_from(expert).ok().map(|expert| self.copies[expert])
    }

    /// The slot, and those that must change with it so that no expert is lost: while the last slot
    /// of the chain holds the only copy of an expert, the slot that is to get that expert.
    fn together_with(&self, slot: usize) -> Vec<usize> {
        let mut chain = vec![slot];
        let mut last = slot;
        while self.copies_of(self.slots[last]) == Some(1) {
            let expert = self.slots[last];
            if chain.iter().any(|&slot| self.new[slot] == expert) {
                break;
            }
            last = (0..self.slots.len())
                .find(|&slot| self.new[slot] == expert)
                .expect("this is a bug: a placement without one of its experts");
            chain.push(last);
        }
        chain
    }

    fn change(&mut self, slots: &[usize]) {
        for &slot in slots {
            let (from, to) = (self.slots[slot], self.new[slot]);
            for (expert, change) in [(from, -1), (to, 1)] {
                if let Ok(expert) = usize::try_from(expert) {
                    self.copies[expert] += change;
                }
            }
            self.slots[slot] = to;
        }
    }
}
