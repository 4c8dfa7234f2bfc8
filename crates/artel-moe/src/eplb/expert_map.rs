use crate::MoeError;

/// One rank of an expert-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpRank {
    rank: usize,
    size: usize,
}

impl EpRank {
    /// Rank `rank` of `size`.
    ///
    /// # Errors
    /// [`MoeError::Config`] unless `rank < size`.
    pub fn new(rank: usize, size: usize) -> Result<Self, MoeError> {
        if rank < size {
            Ok(Self { rank, size })
        } else {
            let allowed = format!("below the number of ranks, {size}");
            Err(MoeError::config("ep_rank", rank, allowed))
        }
    }

    /// Number of this rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// How experts are dealt out to ranks when nothing is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpertPlacement {
    /// Consecutive experts on each rank.
    #[default]
    Linear,
    /// Local expert `i` of rank `r` is global expert `r + i * ranks`.
    RoundRobin,
}

/// Where each global expert lives on this rank: `expert_map` `[E]`, local id or -1.
///
/// With 5 experts on 2 ranks, rank 0 holds one more:
///
/// ```
/// use artel_moe::eplb::{EpRank, ExpertMap, ExpertPlacement};
/// let map = ExpertMap::new(5, ExpertPlacement::Linear, EpRank::new(1, 2)?)?;
/// assert_eq!(map.local_ids(), [-1, -1, -1, 0, 1]);
/// let map = ExpertMap::new(5, ExpertPlacement::RoundRobin, EpRank::new(0, 2)?)?;
/// assert_eq!(map.local_ids(), [0, -1, 1, -1, 2]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertMap {
    local_ids: Vec<i32>,
    num_local: usize,
}

impl ExpertMap {
    /// The experts of one rank. The first `num_experts % ranks` ranks hold one more than the rest.
    ///
    /// # Errors
    /// [`MoeError::Config`] when there are more ranks than experts, or more experts than ids.
    pub fn new(
        num_experts: usize,
        placement: ExpertPlacement,
        ep: EpRank,
    ) -> Result<Self, MoeError> {
        if num_experts < ep.size || i32::try_from(num_experts).is_err() {
            let allowed = format!("{} (the number of ranks) to {}", ep.size, i32::MAX);
            return Err(MoeError::config("num_experts", num_experts, allowed));
        }
        let (base, extra) = (num_experts / ep.size, num_experts % ep.size);
        let num_local = base + usize::from(ep.rank < extra);
        let first = ep.rank * base + ep.rank.min(extra);
        let mut local_ids = vec![-1; num_experts];
        for local in 0..num_local {
            let global = match placement {
                ExpertPlacement::Linear => first + local,
                ExpertPlacement::RoundRobin => ep.rank + local * ep.size,
            };
            local_ids[global] = local as i32;
        }
        Ok(Self { local_ids, num_local })
    }

    /// A map that somebody else made.
    ///
    /// # Errors
    /// [`MoeError::Element`] for an entry that is neither -1 nor a local id below `num_local`, and
    /// for a local id given twice; [`MoeError::Config`] for more local experts than global ones.
    pub fn from_local_ids(local_ids: Vec<i32>, num_local: usize) -> Result<Self, MoeError> {
        if num_local > local_ids.len() {
            let allowed = format!("at most the number of experts, {}", local_ids.len());
            return Err(MoeError::config("num_local", num_local, allowed));
        }
        let mut taken = vec![false; num_local];
        for (position, &local) in local_ids.iter().enumerate() {
            if local == -1 {
                continue;
            }
            match usize::try_from(local).ok().and_then(|local| taken.get_mut(local)) {
                Some(taken) if !*taken => *taken = true,
                _ => {
                    let allowed = format!("-1 or a local id below {num_local} not used before");
                    return Err(MoeError::element("expert_map", position, local, allowed));
                }
            }
        }
        Ok(Self { local_ids, num_local })
    }

    /// `expert_map` as kernels read it.
    pub fn local_ids(&self) -> &[i32] {
        &self.local_ids
    }

    /// Experts of the whole group.
    pub fn num_global(&self) -> usize {
        self.local_ids.len()
    }

    /// Experts of this rank.
    pub fn num_local(&self) -> usize {
        self.num_local
    }

    /// Local id of a global expert; `None` when it lives elsewhere or does not exist.
    pub fn local(&self, global: i32) -> Option<usize> {
        let local = *self.local_ids.get(usize::try_from(global).ok()?)?;
        usize::try_from(local).ok()
    }
}

/// The map of one rank, or `None` where one rank holds everything and ids need no translation.
///
/// # Errors
/// As [`ExpertMap::new`].
pub fn determine_expert_map(
    num_experts: usize,
    placement: ExpertPlacement,
    ep: EpRank,
) -> Result<Option<ExpertMap>, MoeError> {
    if ep.size == 1 {
        return Ok(None);
    }
    ExpertMap::new(num_experts, placement, ep).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(experts: usize, placement: ExpertPlacement, ranks: usize) -> Vec<ExpertMap> {
        let rank = |rank| EpRank::new(rank, ranks).unwrap();
        (0..ranks).map(|r| ExpertMap::new(experts, placement, rank(r)).unwrap()).collect()
    }

    #[test]
    fn every_expert_lives_on_exactly_one_rank() {
        for placement in [ExpertPlacement::Linear, ExpertPlacement::RoundRobin] {
            for (experts, ranks) in [(8, 2), (7, 3), (256, 8), (5, 5), (10, 4), (3, 1)] {
                let maps = maps(experts, placement, ranks);
                let total: usize = maps.iter().map(ExpertMap::num_local).sum();
                assert_eq!(total, experts);
                for global in 0..experts as i32 {
                    assert_eq!(maps.iter().filter_map(|map| map.local(global)).count(), 1);
                }
                // The first ranks take the remainder, and a legal map describes itself.
                assert!(maps.is_sorted_by_key(|map| std::cmp::Reverse(map.num_local())));
                for map in maps {
                    let again = ExpertMap::from_local_ids(map.local_ids.clone(), map.num_local);
                    assert_eq!(again.unwrap(), map);
                }
            }
        }
    }

    #[test]
    fn one_rank_needs_no_map() {
        let alone = EpRank::new(0, 1).unwrap();
        let map = determine_expert_map(8, ExpertPlacement::Linear, alone).unwrap();
        assert_eq!(map, None);
        let first = EpRank::new(0, 2).unwrap();
        let map = determine_expert_map(3, ExpertPlacement::RoundRobin, first).unwrap();
        assert_eq!(map.unwrap().local_ids(), [0, -1, 1]);
    }

    #[test]
    fn illegal_maps_are_refused() {
        assert!(EpRank::new(2, 2).is_err());
        assert!(EpRank::new(0, 0).is_err());
        let rank = EpRank::new(0, 4).unwrap();
        assert!(ExpertMap::new(3, ExpertPlacement::Linear, rank).is_err());
        for map in [vec![0, 0], vec![-2, 0], vec![0, 2], vec![i32::MIN, 0], vec![i32::MAX, 0]] {
            assert!(ExpertMap::from_local_ids(map, 2).is_err());
        }
        assert!(ExpertMap::from_local_ids(vec![-1, i32::MAX], usize::MAX).is_err());
        let map = ExpertMap::from_local_ids(vec![1, -1, 0], 2).unwrap();
        assert_eq!([-1, 0, 1, 2, 3].map(|id| map.local(id)), [None, Some(1), None, Some(0), None]);
    }
}
