use super::pack::Packing;

/// Exchanges copies between the slowest rank and others until no exchange makes the slower of the two
/// faster, or the slowest rank needs no more than `target`.
pub(super) fn swap(packing: &mut Packing, target: f64) {
    // Every exchange lowers the sorted times of the ranks, so this ends; the limit is for rounding.
    let exchanges_max = 64 * packing.loads.len();
    for _ in 0..exchanges_max {
        let slowest = packing.slowest();
        if packing.time(slowest) <= target {
            break;
        }
        let others = (0..packing.loads.len()).filter(|&rank| rank != slowest);
        let best = others
            .filter_map(|rank| best_exchange(packing, slowest, rank))
            .min_by(|a, b| a.time.total_cmp(&b.time));
        let Some(best) = best else { break };
        packing.exchange((slowest, best.from_slowest), (best.rank, best.from_other));
    }
}

/// A copy of the slowest rank for one of another rank.
struct Exchange {
    /// Time of the slower of the two afterwards.
    time: f64,
    rank: usize,
    from_slowest: usize,
    from_other: usize,
}

/// The exchange with one rank that makes the slower of the two fastest, if any makes it faster. Both
/// ranks have their copies in descending order: one walk over both finds, for each copy of one, the
/// two of the other between which the ideal partner lies.
fn best_exchange(packing: &Packing, slowest: usize, rank: usize) -> Option<Exchange> {
    let [v_slow, v_other] = [slowest, rank].map(|rank| packing.speeds[rank]);
    let [l_slow, l_other] = [slowest, rank].map(|rank| packing.loads[rank]);
    let ideal = (l_slow * v_other - l_other * v_slow) / (v_slow + v_other);
    let [ours, theirs] = [slowest, rank].map(|rank| &packing.copies[rank]);
    let mut best: Option<Exchange> = None;
    // Rounding must not pass for a gain.
    let mut limit = packing.time(slowest) * (1.0 - 1e-12);
    let mut below = 0;
    for (from_slowest, our) in ours.iter().enumerate() {
        while below < theirs.len() && theirs[below].load > our.load - ideal {
            below += 1;
        }
        for from_other in below.saturating_sub(1)..=below {
            let Some(their) = theirs.get(from_other) else { continue };
            let moved = our.load - their.load;
            let time = ((l_slow - moved) / v_slow).max((l_other + moved) / v_other);
            if time < limit
                && !packing.holds(rank, our.expert)
                && !packing.holds(slowest, their.expert)
            {
                limit = time;
                best = Some(Exchange { time, rank, from_slowest, from_other });
            }
        }
    }
    best
}
