use crate::eplb::Cluster;

/// A copy of an expert, and the load it brings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Copy {
    pub expert: usize,
    pub load: f64,
    /// Whether there are more copies of the expert.
    pub spread: bool,
}

/// How much later than the first, in parts of its own load, a rank may be done with a copy that is one
/// of several: exchanges make up for it.
const SLACK: f64 = 0.5;
/// With fewer slots a rank copies of an expert may meet and nothing gives way, for there are too few
/// exchanges to make up for it; two are packed exactly, the heaviest with the lightest.
const APART_SLOTS: usize = 3;

/// Copies on living ranks, each rank's slots full, in descending order of load.
#[derive(Debug, Clone)]
pub(super) struct Packing {
    /// Number of the rank in the cluster.
    pub rank_ids: Vec<usize>,
    pub speeds: Vec<f64>,
    pub nodes: Vec<usize>,
    pub copies: Vec<Vec<Copy>>,
    pub loads: Vec<f64>,
}

impl Packing {
    /// Longest processing time first: copies in descending order of load, each to the rank with room
    /// that would be done first with it, if possible one that has no copy of the expert. Copies of which
    /// there are several give way a little to be on ranks that share few experts so far: then load can
    /// flow from any rank to any other when it drifts.
    pub fn new(load: &[f64], counts: &[usize], cluster: &Cluster) -> Self {
        let rank_ids: Vec<usize> = cluster.living().collect();
        let ranks = rank_ids.len();
        let mut packing = Self {
            speeds: rank_ids.iter().map(|&rank| cluster.speeds()[rank]).collect(),
            copies: vec![Vec::with_capacity(cluster.slots_per_rank()); ranks],
            loads: vec![0.0; ranks],
            nodes: rank_ids.iter().map(|&rank| cluster.node_of(rank)).collect(),
            rank_ids,
        };
        let copies = descending(load, counts);
        let mut links = Links::new(packing.nodes.clone());
        for same in copies.chunk_by(|a, b| a.expert == b.expert) {
            links.placed.clear();
            for &copy in same {
                packing.put(copy, cluster.slots_per_rank(), &mut links);
            }
        }
        packing
    }

    fn put(&mut self, copy: Copy, room: usize, links: &mut Links) {
        let time = |rank: usize| (self.loads[rank] + copy.load) / self.speeds[rank];
        let apart = room >= APART_SLOTS;
        let mut first: Option<(f64, usize)> = None;
        let mut first_with_room: Option<(f64, usize)> = None;
        for rank in (0..self.loads.len()).filter(|&rank| self.copies[rank].len() < room) {
            let time = time(rank);
            if first.is_none_or(|first| time < first.0) && !(apart && links.placed.contains(&rank))
            {
                first = Some((time, rank));
            } else if first.is_none() && first_with_room.is_none_or(|first| time < first.0) {
                first_with_room = Some((time, rank));
            }
        }
        if let Some((time_first, rank)) = first.filter(|_| copy.spread && apart) {
            let limit = time_first + SLACK * copy.load / self.speeds[rank];
            let near = (0..self.loads.len()).filter(|&rank| {
                self.copies[rank].len() < room
                    && time(rank) <= limit
                    && !links.placed.contains(&rank)
            });
            first = near
                .min_by_key(|&rank| links.key(rank, copy.expert))
                .map(|rank| (time_first, rank));
        }
        let Some((_, rank)) = first.or(first_with_room) else { return };
        self.loads[rank] += copy.load;
        self.copies[rank].push(copy);
        if copy.spread {
            links.place(rank);
        }
    }

    /// Copies on a rank that can hand load to other ranks.
    pub fn spread_on(&self, rank: usize) -> usize {
        self.copies[rank].iter().filter(|copy| copy.spread).count()
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

    /// Exchanges copies of one rank for copies of another. A place that is named twice counts once.
    pub fn exchange(
        &mut self,
        (a, places_a): (usize, [usize; 2]),
        (b, places_b): (usize, [usize; 2]),
    ) {
        let [from_a, from_b] = [self.take(a, places_a), self.take(b, places_b)];
        from_a.into_iter().for_each(|copy| self.insert(b, copy));
        from_b.into_iter().for_each(|copy| self.insert(a, copy));
    }

    fn take(&mut self, rank: usize, [first, second]: [usize; 2]) -> Vec<Copy> {
        let mut taken = vec![self.copies[rank].remove(first.max(second))];
        if first != second {
            taken.push(self.copies[rank].remove(first.min(second)));
        }
        self.loads[rank] -= taken.iter().map(|copy| copy.load).sum::<f64>();
        taken
    }

    fn insert(&mut self, rank: usize, copy: Copy) {
        let place = self.copies[rank].partition_point(|other| other.load >= copy.load);
        self.copies[rank].insert(place, copy);
        self.loads[rank] += copy.load;
    }

    /// Copies of each expert.
    pub fn counts(&self, experts: usize) -> Vec<usize> {
        let mut counts = vec![0; experts];
        self.copies.iter().flatten().for_each(|copy| counts[copy.expert] += 1);
        counts
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

/// Which ranks share experts, while copies are placed.
#[derive(Debug)]
struct Links {
    nodes: Vec<usize>,
    /// Ranks that have a copy of the expert at hand.
    placed: Vec<usize>,
    /// Copies of experts with several copies on each rank.
    spread: Vec<usize>,
    /// Experts that two ranks share, `[ranks, ranks]`.
    shared: Vec<u16>,
}

impl Links {
    fn new(nodes: Vec<usize>) -> Self {
        let ranks = nodes.len();
        Self { nodes, placed: Vec::new(), spread: vec![0; ranks], shared: vec![0; ranks * ranks] }
    }

    /// The smallest is the best rank for the next copy: on a node without one, with few links.
    fn key(&self, rank: usize, expert: usize) -> (bool, usize, usize, u64) {
        let same_node = self.placed.iter().any(|&other| self.nodes[other] == self.nodes[rank]);
        (same_node, self.to_placed(rank), self.spread[rank], scatter(expert, rank))
    }

    /// Experts that a rank shares with those of the expert at hand.
    fn to_placed(&self, rank: usize) -> usize {
        let ranks = self.spread.len();
        self.placed.iter().map(|other| usize::from(self.shared[rank * ranks + other])).sum()
    }

    fn place(&mut self, rank: usize) {
        let ranks = self.spread.len();
        for &other in &self.placed {
            for pair in [rank * ranks + other, other * ranks + rank] {
                self.shared[pair] = self.shared[pair].saturating_add(1);
            }
        }
        self.placed.push(rank);
        self.spread[rank] += 1;
    }
}

/// An order of the ranks that is another one for each expert.
fn scatter(expert: usize, rank: usize) -> u64 {
    ((expert << 16 | rank) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// Copies by load, the heaviest first; of equals the first expert.
pub(super) fn descending(load: &[f64], counts: &[usize]) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::with_capacity(counts.iter().sum());
    for (expert, &count) in counts.iter().enumerate() {
        let copy = Copy { expert, load: load[expert] / count as f64, spread: count > 1 };
        copies.extend(std::iter::repeat_n(copy, count));
    }
    copies.sort_by(|a, b| b.load.total_cmp(&a.load));
    copies
}
