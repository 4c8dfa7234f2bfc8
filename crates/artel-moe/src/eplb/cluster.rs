use std::ops::Range;

use super::Placement;
use crate::MoeError;

/// The ranks that share the experts of a layer. Slot `s` belongs to rank `s / slots_per_rank`, rank
/// `r` to node `r / (ranks / nodes)`.
///
/// ```
/// use artel_moe::eplb::Cluster;
/// let cluster = Cluster::new(4, 3)?.with_nodes(2)?;
/// assert_eq!((cluster.slots(), cluster.rank_of(7), cluster.node_of(2)), (12, 2, 1));
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    slots_per_rank: usize,
    nodes: usize,
    speeds: Vec<f64>,
    alive: Vec<bool>,
}

impl Cluster {
    /// Ranks that are equally fast, on one node.
    ///
    /// # Errors
    /// [`MoeError::Config`] for no rank, no slot, or more slots than expert ids allow.
    pub fn new(ranks: usize, slots_per_rank: usize) -> Result<Self, MoeError> {
        let slots = ranks.saturating_mul(slots_per_rank);
        if slots == 0 || slots > crate::router::RouterConfig::EXPERTS_MAX {
            let allowed = format!("1 to {}", crate::router::RouterConfig::EXPERTS_MAX);
            return Err(MoeError::config("slots of all ranks", slots, allowed));
        }
        Ok(Self { slots_per_rank, nodes: 1, speeds: vec![1.0; ranks], alive: vec![true; ranks] })
    }

    /// The ranks of a layer with `slots` slots.
    ///
    /// # Errors
    /// As [`Cluster::new`], and for slots that ranks cannot share evenly.
    pub fn of_slots(slots: usize, ranks: usize) -> Result<Self, MoeError> {
        if ranks == 0 || !slots.is_multiple_of(ranks) {
            let allowed = format!("a multiple of the number of ranks, {ranks}");
            return Err(MoeError::config("number of physical experts", slots, allowed));
        }
        Self::new(ranks, slots / ranks)
    }

    /// The same ranks on several nodes, evenly.
    ///
    /// # Errors
    /// [`MoeError::Config`] unless `nodes` divides the number of ranks.
    pub fn with_nodes(self, nodes: usize) -> Result<Self, MoeError> {
        if nodes == 0 || !self.ranks().is_multiple_of(nodes) {
            let allowed = format!("a divisor of the number of ranks, {}", self.ranks());
            return Err(MoeError::config("number of nodes", nodes, allowed));
        }
        Ok(Self { nodes, ..self })
    }

    /// The same with ranks of different speed: tokens in the time in which a rank of speed 1
    /// computes one.
    ///
    /// # Errors
    /// [`MoeError`] unless there is one positive, finite speed a rank.
    pub fn with_speeds(self, speeds: Vec<f64>) -> Result<Self, MoeError> {
        MoeError::check_shape("speeds of ranks", self.ranks(), speeds.len())?;
        if let Some(rank) = speeds.iter().position(|speed| !(*speed > 0.0 && speed.is_finite())) {
            return Err(MoeError::element("speeds of ranks", rank, speeds[rank], "above 0"));
        }
        Ok(Self { speeds, ..self })
    }

    /// The same without some ranks: their slots hold nothing.
    ///
    /// # Errors
    /// [`MoeError`] for a rank that does not exist, or when none is left.
    pub fn without(mut self, dead: &[usize]) -> Result<Self, MoeError> {
        let ranks = self.ranks();
        for (position, &rank) in dead.iter().enumerate() {
            let Some(alive) = self.alive.get_mut(rank) else {
                let allowed = format!("below the number of ranks, {ranks}");
                return Err(MoeError::element("dead ranks", position, rank, allowed));
            };
            *alive = false;
        }
        match self.alive.contains(&true) {
            true => Ok(self),
            false => Err(MoeError::config("living ranks", 0, format!("1 to {ranks}"))),
        }
    }

    /// Number of ranks, dead ones included.
    pub fn ranks(&self) -> usize {
        self.speeds.len()
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Slots of each rank.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// Slots of all ranks, `P`.
    pub fn slots(&self) -> usize {
        self.ranks() * self.slots_per_rank
    }

    /// Slots of one rank.
    pub fn slots_of(&self, rank: usize) -> Range<usize> {
        rank * self.slots_per_rank..(rank + 1) * self.slots_per_rank
    }

    /// The rank that a slot belongs to.
    pub fn rank_of(&self, slot: usize) -> usize {
        slot / self.slots_per_rank
    }

    /// The node that a rank stands on.
    pub fn node_of(&self, rank: usize) -> usize {
        rank / (self.ranks() / self.nodes)
    }

    /// Speed of each rank.
    pub fn speeds(&self) -> &[f64] {
        &self.speeds
    }

    /// Whether a rank computes.
    pub fn is_alive(&self, rank: usize) -> bool {
        self.alive[rank]
    }

    /// Ranks that compute.
    pub fn living(&self) -> impl Iterator<Item = usize> + Clone {
        (0..self.ranks()).filter(|&rank| self.alive[rank])
    }

    /// Checks that a placement is of these ranks: as many slots, and none of a dead rank in use.
    ///
    /// # Errors
    /// [`MoeError`] with the slot.
    pub fn check(&self, placement: &Placement) -> Result<(), MoeError> {
        MoeError::check_shape("slots of a placement", self.slots(), placement.num_physical())?;
        let slots = placement.physical_to_logical().iter().enumerate();
        let used = slots.filter(|&(_, &logical)| logical >= 0);
        match used.into_iter().find(|&(slot, _)| !self.alive[self.rank_of(slot)]) {
            None => Ok(()),
            Some((slot, &logical)) => {
                let allowed = "-1: the rank of this slot is dead";
                Err(MoeError::element("physical_to_logical", slot, logical, allowed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_ranks_are_dealt_out_in_order() {
        let cluster = Cluster::of_slots(16, 8).unwrap().with_nodes(4).unwrap();
        assert_eq!((cluster.ranks(), cluster.nodes(), cluster.slots_per_rank()), (8, 4, 2));
        assert_eq!(cluster.slots_of(3), 6..8);
        assert!((0..16).all(|slot| cluster.slots_of(cluster.rank_of(slot)).contains(&slot)));
        assert_eq!([0, 1, 2, 7].map(|rank| cluster.node_of(rank)), [0, 0, 1, 3]);
    }

    #[test]
    fn impossible_clusters_are_refused() {
        assert!(Cluster::new(0, 3).is_err() && Cluster::new(3, 0).is_err());
        assert!(Cluster::new(usize::MAX, 2).is_err());
        let uneven = Cluster::of_slots(7, 4).unwrap_err().to_string();
        assert!(uneven.contains("is 7") && uneven.contains("multiple"), "{uneven}");
        let cluster = || Cluster::new(4, 2).unwrap();
        assert!(cluster().with_nodes(3).is_err() && cluster().with_nodes(0).is_err());
        assert!(cluster().with_speeds(vec![1.0; 3]).is_err());
        assert!(cluster().with_speeds(vec![1.0, 0.0, 1.0, 1.0]).is_err());
        assert!(cluster().with_speeds(vec![1.0, f64::NAN, 1.0, 1.0]).is_err());
        assert!(cluster().without(&[4]).is_err() && cluster().without(&[0, 1, 2, 3]).is_err());
    }

    #[test]
    fn the_slots_of_dead_ranks_stay_empty() {
        let cluster = Cluster::new(3, 2).unwrap().without(&[1]).unwrap();
        assert_eq!(cluster.living().collect::<Vec<_>>(), [0, 2]);
        let placed = |slots| Placement::new(slots, 2).unwrap();
        assert!(cluster.check(&placed(vec![0, 1, -1, -1, 1, 0])).is_ok());
        let wrong = cluster.check(&placed(vec![0, 1, -1, 1, 1, 0])).unwrap_err().to_string();
        assert!(wrong.starts_with("physical_to_logical[3] is 1"), "{wrong}");
        assert!(cluster.check(&placed(vec![0, 1])).is_err());
    }
}
