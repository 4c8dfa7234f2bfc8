use super::{MovePlan, Transfer};

/// The transfers in rounds in which every rank talks to at most one other: all experts with the same
/// sender and receiver stay together, and each such pair goes into the first round in which both ranks
/// are free.
pub fn rounds(plan: MovePlan) -> Vec<Vec<Transfer>> {
    let mut pairs: Vec<((usize, usize), Vec<Transfer>)> = Vec::new();
    for transfer in plan.transfers {
        let ends = (transfer.from, transfer.to);
        match pairs.iter_mut().find(|(pair, _)| *pair == ends) {
            Some((_, transfers)) => transfers.push(transfer),
            None => pairs.push((ends, vec![transfer])),
        }
    }
    let mut rounds: Vec<Vec<Transfer>> = Vec::new();
    for ((from, to), transfers) in pairs {
        let is_free = |round: &&mut Vec<Transfer>| {
            round
                .iter()
                .all(|busy| ![busy.from, busy.to].iter().any(|rank| [from, to].contains(rank)))
        };
        match rounds.iter_mut().find(is_free) {
            Some(round) => round.extend(transfers),
            None => rounds.push(transfers),
        }
    }
    rounds
}
