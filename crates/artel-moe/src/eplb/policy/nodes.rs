use super::pack::Packing;
use crate::eplb::{Cluster, Placement};

/// Part of the load that has to leave its node when every node sends equally many tokens and takes a
/// copy on its own node where there is one.
pub(super) fn crossing(placement: &Placement, load: &[f64], cluster: &Cluster) -> f64 {
    let total: f64 = load.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let node = |slot: &i32| cluster.node_of(cluster.rank_of(*slot as usize));
    let leaves = |expert: usize| {
        // Slots ascend, and so do their nodes.
        let slots = placement.replicas(expert as i32);
        let nodes = slots.chunk_by(|a, b| node(a) == node(b)).count();
        load[expert] * (1.0 - nodes as f64 / cluster.nodes() as f64)
    };
    (0..load.len()).map(leaves).sum::<f64>() / total
}

/// Exchanges copies between nodes as long as what no longer crosses, times `penalty`, is worth more
/// than what the slowest rank loses; `mean` is the time of a perfect split.
pub(super) fn spread(
    packing: &mut Packing,
    load: &[f64],
    cluster: &Cluster,
    mean: f64,
    penalty: f64,
) {
    if cluster.nodes() == 1 || penalty <= 0.0 || mean <= 0.0 {
        return;
    }
    let mut on_nodes = OnNodes::new(packing, load.len(), cluster.nodes());
    // A copy that crosses less costs this much less, for each unit of its load.
    let worth = penalty / cluster.nodes() as f64 / load.iter().sum::<f64>();
    for rank in 0..packing.loads.len() {
        for place in 0..packing.copies[rank].len() {
            let expert = packing.copies[rank][place].expert;
            if on_nodes.count(expert, packing.nodes[rank]) < 2 {
                continue;
            }
            let best = partners(packing, rank)
                .filter(|&(other, _)| on_nodes.count(expert, packing.nodes[other]) == 0)
                .filter_map(|(other, theirs)| {
                    let back = packing.copies[other][theirs].expert;
                    let [from, to] = [packing.nodes[rank], packing.nodes[other]];
                    let known = f64::from(on_nodes.count(back, to) > 1)
                        + f64::from(on_nodes.count(back, from) == 0)
                        - 1.0;
                    let gain = worth * (load[expert] + known * load[back]);
                    let slower = slower_by(packing, (rank, place), (other, theirs)) / mean;
                    (gain > slower + 1e-9).then_some((gain - slower, other, theirs))
                })
                .max_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, other, theirs)) = best {
                let back = packing.copies[other][theirs].expert;
                let [from, to] = [packing.nodes[rank], packing.nodes[other]];
                on_nodes.move_one(expert, from, to);
                on_nodes.move_one(back, to, from);
                packing.exchange((rank, [place; 2]), (other, [theirs; 2]));
            }
        }
    }
}

/// Places on other nodes whose copy a rank could take.
fn partners(packing: &Packing, rank: usize) -> impl Iterator<Item = (usize, usize)> {
    let others =
        (0..packing.loads.len()).filter(move |&other| packing.nodes[other] != packing.nodes[rank]);
    others
        .flat_map(|other| (0..packing.copies[other].len()).map(move |place| (other, place)))
        .filter(move |&(other, place)| !packing.holds(rank, packing.copies[other][place].expert))
}

/// How much later the slowest rank is done after an exchange.
fn slower_by(packing: &Packing, (a, place_a): (usize, usize), (b, place_b): (usize, usize)) -> f64 {
    let moved = packing.copies[a][place_a].load - packing.copies[b][place_b].load;
    let after_a = (packing.loads[a] - moved) / packing.speeds[a];
    let after_b = (packing.loads[b] + moved) / packing.speeds[b];
    (after_a.max(after_b) - packing.time(packing.slowest())).max(0.0)
}

/// Copies of each expert on each node.
struct OnNodes {
    nodes: usize,
    counts: Vec<u16>,
}

impl OnNodes {
    fn new(packing: &Packing, experts: usize, nodes: usize) -> Self {
        let mut counts = vec![0; experts * nodes];
        for (copies, node) in packing.copies.iter().zip(&packing.nodes) {
            copies.iter().for_each(|copy| counts[copy.expert * nodes + node] += 1);
        }
        Self { nodes, counts }
    }

    fn count(&self, expert: usize, node: usize) -> u16 {
        self.counts[expert * self.nodes + node]
    }

    fn move_one(&mut self, expert: usize, from: usize, to: usize) {
        self.counts[expert * self.nodes + from] -= 1;
        self.counts[expert * self.nodes + to] += 1;
    }
}
