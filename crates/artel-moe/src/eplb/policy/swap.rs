use super::pack::{Copy, Packing};

/// A rank does not give up a copy of an expert with several copies if it has no more of them.
const SPREAD_MIN: usize = 2;

/// Exchanges copies between the slowest rank and others until no exchange makes the slower of the two
/// faster, or the slowest rank needs no more than `target`. One copy against one, and where that gets
/// stuck two against two.
pub(super) fn swap(packing: &mut Packing, target: f64) {
    let mut search = Search::default();
    // Every exchange lowers the sorted times of the ranks, so this ends; the limit is for rounding.
    let exchanges_max = 64 * packing.loads.len();
    for _ in 0..exchanges_max {
        let slowest = packing.slowest();
        if packing.time(slowest) <= target {
            break;
        }
        let best = STEPS.into_iter().find_map(|step| search.best(packing, slowest, step));
        let Some(best) = best else { break };
        packing.exchange((slowest, best.ours), (best.rank, best.theirs));
    }
}

/// One copy of a rank or two: their places. One copy has the same place twice.
type Places = [usize; 2];

/// Copies of the slowest rank for as many of another.
struct Exchange {
    /// Time of the slower of the two afterwards.
    time: f64,
    rank: usize,
    ours: Places,
    theirs: Places,
}

/// What may be exchanged, and its load.
#[derive(Debug, Clone, Copy)]
struct Bundle {
    load: f64,
    places: Places,
}

/// What is tried, in this order. Copies of which there are several stay where they are if possible:
/// packing has spread them so that load can flow between all ranks.
const STEPS: [Step; 4] = [
    Step { pairs: false, spread: false },
    Step { pairs: true, spread: false },
    Step { pairs: false, spread: true },
    Step { pairs: true, spread: true },
];

/// What may be exchanged.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Two copies for two, or one for one.
    pairs: bool,
    /// Copies of which there are several, too.
    spread: bool,
}

impl Step {
    /// All bundles of a rank, the heaviest first.
    fn bundles(self, packing: &Packing, rank: usize, bundles: &mut Vec<Bundle>) {
        bundles.clear();
        let copies = || {
            let copies = packing.copies[rank].iter().enumerate();
            copies.filter(|(_, copy)| self.spread || !copy.spread)
        };
        if !self.pairs {
            let single =
                |(place, copy): (usize, &Copy)| Bundle { load: copy.load, places: [place; 2] };
            return bundles.extend(copies().map(single));
        }
        for (first, a) in copies() {
            for (second, b) in copies().filter(|&(second, _)| second > first) {
                bundles.push(Bundle { load: a.load + b.load, places: [first, second] });
            }
        }
        bundles.sort_unstable_by(|a, b| b.load.total_cmp(&a.load));
    }
}

/// Buffers of a search.
#[derive(Debug, Default)]
struct Search {
    ours: Vec<Bundle>,
    theirs: Vec<Bundle>,
}

impl Search {
    /// The exchange with any rank that leaves the slower of the two fastest.
    fn best(&mut self, packing: &Packing, slowest: usize, step: Step) -> Option<Exchange> {
        step.bundles(packing, slowest, &mut self.ours);
        let mut best: Option<Exchange> = None;
        for rank in (0..packing.loads.len()).filter(|&rank| rank != slowest) {
            step.bundles(packing, rank, &mut self.theirs);
            // Rounding must not pass for a gain.
            let limit = packing.time(slowest) * (1.0 - 1e-12);
            let limit = best.as_ref().map_or(limit, |best| best.time);
            best = self.better(packing, (slowest, rank), limit).or(best);
        }
        best
    }

    /// The best exchange with one rank, if it is below the limit. Both have their bundles in
    /// descending order: one walk over both finds, for each of ours, the two of theirs between which
    /// the ideal partner lies.
    fn better(
        &self,
        packing: &Packing,
        (slowest, rank): (usize, usize),
        mut limit: f64,
    ) -> Option<Exchange> {
        let [v_slow, v_other] = [slowest, rank].map(|rank| packing.speeds[rank]);
        let [l_slow, l_other] = [slowest, rank].map(|rank| packing.loads[rank]);
        let ideal = (l_slow * v_other - l_other * v_slow) / (v_slow + v_other);
        let mut best = None;
        let mut below = 0;
        for our in &self.ours {
            while self.theirs.get(below).is_some_and(|their| their.load > our.load - ideal) {
                below += 1;
            }
            for their in &self.theirs[below.saturating_sub(1)..(below + 1).min(self.theirs.len())] {
                let moved = our.load - their.load;
                let time = ((l_slow - moved) / v_slow).max((l_other + moved) / v_other);
                if time < limit
                    && is_new(packing, (slowest, our.places), rank)
                    && is_new(packing, (rank, their.places), slowest)
                    && stay_connected(packing, (slowest, our.places), (rank, their.places))
                {
                    limit = time;
                    best = Some(Exchange { time, rank, ours: our.places, theirs: their.places });
                }
            }
        }
        best
    }
}

/// Whether a rank has no copy of the experts that would come: a second one takes no load off it.
fn is_new(packing: &Packing, (from, places): (usize, Places), to: usize) -> bool {
    places.iter().all(|&place| !packing.holds(to, packing.copies[from][place].expert))
}

/// Whether both ranks keep enough copies by which load can flow to other ranks when it drifts.
fn stay_connected(
    packing: &Packing,
    (a, places_a): (usize, Places),
    (b, places_b): (usize, Places),
) -> bool {
    let spread = |rank: usize, places: Places| {
        let count = places.iter().filter(|&&place| packing.copies[rank][place].spread).count();
        if places[0] == places[1] { count / 2 } else { count }
    };
    let [from_a, from_b] = [spread(a, places_a), spread(b, places_b)];
    let enough =
        |rank, less, more| more >= less || packing.spread_on(rank) + more - less >= SPREAD_MIN;
    enough(a, from_a, from_b) && enough(b, from_b, from_a)
}
