use super::{
    Greedy, LayerPlan, LayerQuery, Policy, bounds, keep_slots,
    mask::{check_load, check_room},
    pack::Packing,
    replicate::replicate,
    resplit,
    swap::swap,
};
use crate::{
    MoeError,
    eplb::{Cluster, Placement, balance},
};

/// This close to the bound a plan is as good as perfect.
const CLOSE: f64 = 1e-4;
/// Up to here equal shares are kept, which every way of choosing copies can follow.
const EQUAL_SHARES: f64 = 3e-3;

/// Our policy: copies by load, packed the longest first, then exchanged between ranks until nothing
/// gains; never worse than [`Greedy`]. What equal shares cannot balance, shares by [`resplit`] do.
///
/// ```
/// use artel_moe::eplb::{Cluster, policy::Balanced};
/// let cluster = Cluster::new(2, 3)?;
/// let placement = Balanced::default().place(&[5.0, 4.0, 3.0, 3.0, 2.0, 1.0], &cluster)?;
/// let load_of = |slots: &[i32]| slots.iter().map(|&e| [5, 4, 3, 3, 2, 1][e as usize]).sum::<i32>();
/// assert_eq!(placement.physical_to_logical().chunks(3).map(load_of).collect::<Vec<_>>(), [9, 9]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Balanced {
    /// At most so many slots of a layer get another expert; `None` plans anew.
    pub max_moves_per_layer: Option<usize>,
    /// What a token costs that has to leave its node because no copy of its expert is there, over what
    /// computing it costs; 0 does not look at nodes.
    pub cross_node_penalty: f64,
}

impl Balanced {
    /// Experts in slots for equal shares: whatever was there before does not count.
    ///
    /// # Errors
    /// [`MoeError`] for loads below 0 or not finite, or fewer slots of living ranks than experts.
    pub fn place(&self, load: &[f64], cluster: &Cluster) -> Result<Placement, MoeError> {
        check_load(load, load.len())?;
        check_room(load.len(), cluster)?;
        let living = cluster.living().count();
        let counts = replicate(load, living * cluster.slots_per_rank(), living);
        let target = bounds::perfect_split(load, cluster)? * (1.0 + CLOSE);
        let mut packing = Packing::new(load, &counts, cluster);
        swap(&mut packing, target);
        let ours = Placement::new(packing.physical_to_logical(cluster), load.len())?;
        if packing.time(packing.slowest()) <= target {
            return Ok(ours);
        }
        let published = Greedy { groups: 1 }.place(load, cluster)?;
        let time = |placement: &Placement| {
            balance::imbalance_of(&LayerPlan::equal(placement.clone()), load, cluster)
        };
        Ok(if time(&published) < time(&ours) { published } else { ours })
    }
}

impl Policy for Balanced {
    fn name(&self) -> &'static str {
        "balanced"
    }

    fn plan(&self, query: &LayerQuery<'_>) -> Result<LayerPlan, MoeError> {
        query.check()?;
        let placement = self.place(query.load, query.cluster)?;
        let equal = LayerPlan::equal(keep_slots(query.current, &placement, query.cluster)?);
        if balance::imbalance_of(&equal, query.load, query.cluster) <= 1.0 + EQUAL_SHARES {
            return Ok(equal);
        }
        let shares = resplit(&equal.placement, query.load, query.cluster)?;
        Ok(LayerPlan { shares, ..equal })
    }
}
