use super::map_and_record::{LoadRecorder, QuotaCursor, count_pairs, cpu};
use super::policy::{Batch, Copies, Objective, quotas};
use super::{Cluster, Placement, ReplicaTable};
use crate::MoeError;

/// Maps batches by what is in them: counts the pairs of each expert, splits them over its copies so
/// that the slowest rank is as fast as it can be, and deals them out. One for each placement.
///
/// A rank that splits its tokens alone needs about as many pairs as there are ranks. With fewer there
/// is little to split and all ranks break ties alike: a salted hash is more even then (measured in
/// `map_and_record/balance.rs`).
///
/// Four pairs of expert 0, of which rank 1, that has nothing else to do, gets three:
///
/// ```
/// use artel_moe::eplb::{BatchSplit, Cluster, LayerPlan, Placement, ReplicaTable};
/// use artel_moe::eplb::{map_and_record::LoadRecorder, policy::Batch};
/// let placement = Placement::new(vec![0, 1, 0, 2], 3)?;
/// let table = ReplicaTable::new(&LayerPlan::equal(placement.clone()))?;
/// let mut split = BatchSplit::new(&placement, &Cluster::new(2, 2)?, Batch::Replicated, 0)?;
/// let (mut ids, mut load) = ([0, 1, 0, 0, 1, 0], [0; 4]);
/// let recorder = LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 6 };
/// split.map_and_record(&mut ids, 1, &table, recorder)?;
/// assert_eq!(load, [1, 2, 3, 0]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BatchSplit {
    copies: Copies,
    batch: Batch,
    memory_bound_below: usize,
    counts: Vec<u32>,
    cursor: QuotaCursor,
}

impl BatchSplit {
    /// Splits batches over the copies of `placement`. Below `memory_bound_below` tokens an active
    /// expert it is active experts that are balanced, if all ranks see the same tokens.
    ///
    /// # Errors
    /// [`MoeError`] when the placement is not of these ranks.
    pub fn new(
        placement: &Placement,
        cluster: &Cluster,
        batch: Batch,
        memory_bound_below: usize,
    ) -> Result<Self, MoeError> {
        Ok(Self {
            copies: Copies::new(placement, cluster)?,
            batch,
            memory_bound_below,
            counts: vec![0; placement.num_logical()],
            cursor: QuotaCursor::default(),
        })
    }

    /// Replaces the logical ids `[T, K]` by physical ones and counts the load. Padding is dealt out
    /// like all else, since it is computed like all else.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the ids are not `[T, K]`, the load is not `[P]`, or the table is of
    /// another placement.
    pub fn map_and_record(
        &mut self,
        ids: &mut [i32],
        top_k: usize,
        table: &ReplicaTable,
        recorder: LoadRecorder<'_>,
    ) -> Result<(), MoeError> {
        self.counts.fill(0);
        count_pairs(ids, &mut self.counts);
        let quotas = quotas(self.objective(), &self.counts, &self.copies, self.batch)?;
        cpu::map_by_quotas(ids, top_k, table, (&quotas, &mut self.cursor), recorder)
    }

    fn objective(&self) -> Objective {
        // A rank does not know which experts the others activate.
        if let Batch::OfRank(_) = self.batch {
            return Objective::Tokens;
        }
        let active = self.counts.iter().filter(|&&count| count > 0).count();
        let pairs: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        Objective::for_batch(pairs as f64 / active.max(1) as f64, self.memory_bound_below as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eplb::{LayerPlan, balance};

    /// Load of the slots, and how many are active, for 64 pairs over 16 experts with two copies each.
    fn split(batch: Batch, memory_bound_below: usize) -> (Vec<i32>, usize) {
        let placement = Placement::initial(16, 16).unwrap();
        let cluster = Cluster::new(4, 8).unwrap();
        let table = ReplicaTable::new(&LayerPlan::equal(placement.clone())).unwrap();
        let mut split = BatchSplit::new(&placement, &cluster, batch, memory_bound_below).unwrap();
        let mut load = vec![0; 32];
        let mut ids: Vec<i32> = (0..64).map(|pair| pair * pair % 17 - 1).collect();
        let logical_ids = ids.clone();
        let recorder = LoadRecorder { expert_load: &mut load, enabled: true, unpadded_tokens: 32 };
        split.map_and_record(&mut ids, 2, &table, recorder).unwrap();
        for (&slot, &logical) in ids.iter().zip(&logical_ids) {
            match usize::try_from(slot) {
                Ok(slot) => assert_eq!(placement.physical_to_logical()[slot], logical),
                Err(_) => assert_eq!((slot, logical), (-1, -1)),
            }
        }
        let active = load.iter().filter(|&&load| load > 0).count();
        (load, active)
    }

    #[test]
    fn tokens_or_active_experts_are_balanced() {
        let (even, active) = split(Batch::Replicated, 0);
        let even: Vec<f64> = even.into_iter().map(f64::from).collect();
        assert_eq!(balance::imbalance(&even, &Cluster::new(4, 8).unwrap()), 1.0);
        let experts = (0..64).map(|pair| pair * pair % 17).filter(|&id| id > 0);
        let experts = experts.collect::<std::collections::BTreeSet<_>>().len();
        assert!(active > experts, "several copies of some expert: {active}");
        let (few, active) = split(Batch::Replicated, 1000);
        assert_eq!(active, experts, "one copy of every active expert");
        assert_eq!(few.iter().sum::<i32>(), 60);
        // The batch of one rank is always split by tokens.
        assert_eq!(split(Batch::OfRank(2), 1000), split(Batch::OfRank(2), 0));
    }

    #[test]
    fn a_table_of_another_placement_is_refused() {
        let placement = Placement::initial(4, 0).unwrap();
        let cluster = Cluster::new(2, 2).unwrap();
        let mut split = BatchSplit::new(&placement, &cluster, Batch::Replicated, 0).unwrap();
        let other = LayerPlan::equal(Placement::initial(4, 2).unwrap());
        let table = ReplicaTable::new(&other).unwrap();
        let recorder = LoadRecorder { expert_load: &mut [0; 6], enabled: true, unpadded_tokens: 1 };
        assert!(split.map_and_record(&mut [0, 1], 2, &table, recorder).is_err());
        assert!(
            BatchSplit::new(&placement, &Cluster::new(3, 2).unwrap(), Batch::Replicated, 0)
                .is_err()
        );
    }
}
