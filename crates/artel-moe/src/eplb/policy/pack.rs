use crate::eplb::Cluster;

/// A copy of an expert, and the load it brings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Copy {
    pub expert: usize,
    pub load: f64,
}

/// Copies on living ranks, each rank's slots full, in descending order of load.
#[derive(Debug, Clone)]
pub(super) struct Packing {
    /// Number of the rank in the cluster.
    pub rank_ids: Vec<usize>,
    pub speeds: Vec<f64>,
    pub copies: Vec<Vec<Copy>>,
    pub loads: Vec<f64>,
}

impl Packing {
    /// Longest processing time first: copies in descending order of load, each to the rank with room
    /// that would be done first with it, if possible one that has no copy of the expert.
    pub fn new(load: &[f64], counts: &[usize], cluster: &Cluster) -> Self {
        let rank_ids: Vec<usize> = cluster.living().collect();
        let ranks = rank_ids.len();
        let mut packing = Self {
            speeds: rank_ids.iter().map(|&rank| cluster.speeds()[rank]).collect(),
            copies: vec![Vec::with_capacity(cluster.slots_per_rank()); ranks],
            loads: vec![0.0; ranks],
            rank_ids,
        };
        for copy in descending(load, counts) {
            packing.put(copy, cluster.slots_per_rank());
        }
        packing
    }

    fn put(&mut self, copy: Copy, room: usize) {
        let mut best = (true, f64::INFINITY, usize::MAX);
        for rank in 0..self.loads.len() {
            let time = (self.loads[rank] + copy.load) / self.speeds[rank];
            if self.copies[rank].len() == room
                || (best.2 != usize::MAX && !best.0 && time >= best.1)
            {
                continue;
            }
            let key = (self.holds(rank, copy.expert), time, rank);
            if best.2 == usize::MAX || (key.0, key.1) < (best.0, best.1) {
                best = key;
            }
        }
        let rank = best.2;
        self.loads[rank] += copy.load;
        self.copies[rank].push(copy);
    }

    pub fn holds(&self, rank: usize, expert: usize) -> bool {
        self.copies[rank].iter().any(|copy| copy.expert == expert)
    }

    pub fn time(&self, rank: usize) -> f64 {
        self.loads[rank] / self.speeds[rank]
    }

    /// The slowest rank.
    pub fn slowest(&self) -> usize {
        let ranks = 0..self.loads.len();
        ranks.max_by(|&a, &b| self.time(a).total_cmp(&self.time(b))).unwrap_or(0)
    }

    /// Exchanges a copy of one rank for a copy of another.
    pub fn exchange(&mut self, (a, place_a): (usize, usize), (b, place_b): (usize, usize)) {
        let [from_a, from_b] = [self.copies[a].remove(place_a), self.copies[b].remove(place_b)];
        for (rank, gone, come) in [(a, from_a, from_b), (b, from_b, from_a)] {
            let copies = &mut self.copies[rank];
            let place = copies.partition_point(|copy| copy.load >= come.load);
            copies.insert(place, come);
            self.loads[rank] += come.load - gone.load;
        }
    }

    /// Expert in each slot of the cluster; -1 on dead ranks.
    pub fn physical_to_logical(&self, cluster: &Cluster) -> Vec<i32> {
        let mut slots = vec![-1; cluster.slots()];
        for (&rank, copies) in self.rank_ids.iter().zip(&self.copies) {
            let experts = copies.iter().map(|copy| copy.expert as i32);
            slots[cluster.slots_of(rank)].iter_mut().zip(experts).for_each(|(slot, e)| *slot = e);
        }
        slots
    }
}

/// Copies by load, the heaviest first; of equals the first expert.
pub(super) fn descending(load: &[f64], counts: &[usize]) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::with_capacity(counts.iter().sum());
    for (expert, &count) in counts.iter().enumerate() {
        let copy = Copy { expert, load: load[expert] / count as f64 };
        copies.extend(std::iter::repeat_n(copy, count));
    }
    copies.sort_by(|a, b| b.load.total_cmp(&a.load));
    copies
}
