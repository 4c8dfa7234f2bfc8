use std::{cmp::Reverse, collections::BinaryHeap};

/// Copies of each expert, `[L]`: one each, then again and again one of the expert with the most load
/// a copy; of equals the one with fewest copies, then the first. No other counts have a lighter
/// heaviest copy. An expert gets a copy on every rank before any gets two on one, because a second one
/// there takes no load off a rank; `ranks` living ranks offer `slots` slots, at least `L`.
pub(super) fn replicate(load: &[f64], slots: usize, ranks: usize) -> Vec<usize> {
    let mut counts = vec![1; load.len()];
    let mut copies_max = ranks;
    let mut heap = heaviest_first(load, &counts);
    for _ in load.len()..slots {
        while heap.peek().is_some_and(|&(_, Reverse(copies), _)| copies >= copies_max) {
            heap.pop();
        }
        if heap.is_empty() {
            copies_max += ranks;
            heap = heaviest_first(load, &counts);
        }
        let Some(mut top) = heap.peek_mut() else { break };
        let (_, _, Reverse(expert)) = *top;
        counts[expert] += 1;
        *top = key(load, expert, counts[expert]);
    }
    counts
}

/// Load a copy as bits, which are in the order of values; copies; expert.
type Key = (u64, Reverse<usize>, Reverse<usize>);

fn key(load: &[f64], expert: usize, copies: usize) -> Key {
    // Adding zero makes -0 into 0.
    let load_a_copy = load[expert] / copies as f64 + 0.0;
    (load_a_copy.to_bits(), Reverse(copies), Reverse(expert))
}

fn heaviest_first(load: &[f64], counts: &[usize]) -> BinaryHeap<Key> {
    counts.iter().enumerate().map(|(expert, &copies)| key(load, expert, copies)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of TensorRT-LLM's `doReplication` tests.
    #[test]
    fn published_counts() {
        let check = |load: &[f64], slots, expect: &[usize]| {
            assert_eq!(replicate(load, slots, slots), expect, "{load:?} {slots}");
        };
        check(&[1.0, 2.0, 3.0, 4.0], 4, &[1, 1, 1, 1]);
        check(&[0.0; 4], 6, &[2, 2, 1, 1]);
        check(&[1.0, 4.0, 2.0, 1.0], 8, &[1, 4, 2, 1]);
        check(&[10.0, 5.0, 2.0, 15.0, 8.0], 9, &[2, 1, 1, 3, 2]);
        check(&[0.0, 10.0, 0.0], 4, &[1, 2, 1]);
    }

    #[test]
    fn copies_go_to_every_rank_before_they_double_up() {
        assert_eq!(replicate(&[100.0, 1.0, 1.0], 8, 3), [3, 3, 2]);
        assert_eq!(replicate(&[100.0, 1.0, 1.0], 12, 3), [6, 3, 3]);
        assert_eq!(replicate(&[-0.0, 0.0], 3, 3), [2, 1]);
    }
}
