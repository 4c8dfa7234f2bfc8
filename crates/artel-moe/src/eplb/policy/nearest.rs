use super::super::{Cluster, Placement};
use crate::MoeError;

/// The copy of each expert that the tokens of each rank always take, `[ranks][L]` slots: static
/// dispatch, as SGLang has it. Nothing is counted and little travels: a rank takes its own copy, else
/// one of its node, else any. Ranks that have no copy of their own are dealt out to the copies of
/// their node, or to all, in turn.
///
/// ```
/// use artel_moe::eplb::{Cluster, Placement, policy::nearest_copies};
/// let placement = Placement::new(vec![0, 1, 0, 2], 3)?;
/// let copies = nearest_copies(&placement, &Cluster::new(2, 2)?)?;
/// assert_eq!(copies, [[0, 1, 3], [2, 1, 3]]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
///
/// # Errors
/// [`MoeError`] for a placement that is not of these ranks.
pub fn nearest_copies(placement: &Placement, cluster: &Cluster) -> Result<Vec<Vec<i32>>, MoeError> {
    cluster.check(placement)?;
    let mut nearest = vec![vec![-1; placement.num_logical()]; cluster.ranks()];
    for expert in 0..placement.num_logical() {
        let copies = placement.replicas(expert as i32);
        let rank_of = |slot: i32| cluster.rank_of(slot as usize);
        // Ranks that went to copies of their node, and to any copy, so far.
        let (mut of_node, mut elsewhere) = (vec![0; cluster.nodes()], expert);
        for (rank, nearest) in nearest.iter_mut().enumerate() {
            let node = cluster.node_of(rank);
            let near: Vec<i32> = copies
                .iter()
                .copied()
                .filter(|&slot| cluster.node_of(rank_of(slot)) == node)
                .collect();
            let own = near.iter().copied().find(|&slot| rank_of(slot) == rank);
            nearest[expert] = match (own, &near[..]) {
                (Some(own), _) => own,
                (None, []) => next(copies, &mut elsewhere),
                (None, near) => next(near, &mut of_node[node]),
            };
        }
    }
    Ok(nearest)
}

/// The copy whose turn it is.
fn next(copies: &[i32], turn: &mut usize) -> i32 {
    let copy = copies[*turn % copies.len()];
    *turn += 1;
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_copies_come_first_then_those_of_the_node_then_any_in_turn() {
        // Expert 0 is on ranks 0 and 3, expert 1 on rank 1, expert 2 on rank 2 and twice on rank 5.
        let slots = vec![0, 3, 1, 4, 2, 5, 0, 6, 7, 8, 2, 2];
        let placement = Placement::new(slots.clone(), 9).unwrap();
        let cluster = Cluster::new(6, 2).unwrap().with_nodes(2).unwrap();
        let copies = nearest_copies(&placement, &cluster).unwrap();
        for (rank, copies) in copies.iter().enumerate() {
            for (expert, &slot) in copies.iter().enumerate() {
                assert_eq!(slots[slot as usize], expert as i32, "rank {rank}");
            }
        }
        let of = |expert: usize| copies.iter().map(|copies| copies[expert]).collect::<Vec<_>>();
        assert_eq!(of(0), [0, 0, 0, 6, 6, 6], "each node has one");
        assert_eq!(of(1), [2; 6], "there is one");
        assert_eq!(of(2), [4, 4, 4, 10, 11, 10], "a rank's own; the others of its node in turn");
    }

    #[test]
    fn far_ranks_are_dealt_out_evenly() {
        let placement = Placement::new(vec![0, 0, 1, 1, 1, 1, 1, 1], 2).unwrap();
        let cluster = Cluster::new(8, 1).unwrap().with_nodes(4).unwrap();
        let copies = nearest_copies(&placement, &cluster).unwrap();
        let far: Vec<i32> = copies[2..].iter().map(|copies| copies[0]).collect();
        assert_eq!(far, [0, 1, 0, 1, 0, 1]);
        assert!(nearest_copies(&placement, &Cluster::new(4, 1).unwrap()).is_err());
    }
}
