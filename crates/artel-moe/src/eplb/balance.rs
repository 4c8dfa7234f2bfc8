//! How even load is. Always the maximum over ranks of one layer in one step first, averages later:
//! the mean over layers or steps of loads hides exactly what costs time.

use super::{Cluster, LayerPlan};

/// Load of each rank, `[ranks]`: the sum over its slots.
pub fn rank_loads(slot_loads: &[f64], cluster: &Cluster) -> Vec<f64> {
    slot_loads.chunks(cluster.slots_per_rank()).map(|slots| slots.iter().sum()).collect()
}

/// Time of each rank, `[ranks]`, in which a rank of speed 1 computes one token.
pub fn rank_times(slot_loads: &[f64], cluster: &Cluster) -> Vec<f64> {
    let loads = rank_loads(slot_loads, cluster);
    loads.iter().zip(cluster.speeds()).map(|(load, speed)| load / speed).collect()
}

/// Slowest rank over the time that a perfect split would take, at least 1; 1 without load. With
/// equal speeds this is the maximum over the mean.
pub fn imbalance(slot_loads: &[f64], cluster: &Cluster) -> f64 {
    let total: f64 = slot_loads.iter().sum();
    let speed: f64 = cluster.living().map(|rank| cluster.speeds()[rank]).sum();
    let slowest = rank_times(slot_loads, cluster).into_iter().fold(0.0, f64::max);
    if total > 0.0 { slowest / (total / speed) } else { 1.0 }
}

/// The imbalance that a plan has for a load `[L]` of the experts.
pub fn imbalance_of(plan: &LayerPlan, load: &[f64], cluster: &Cluster) -> f64 {
    imbalance(&plan.shares.slot_loads(&plan.placement, load), cluster)
}

/// Load of the mean rank and of the most loaded one, each summed over layers, from `[layers][ranks]`.
pub fn mean_and_max(rank_loads: &[Vec<f64>]) -> (f64, f64) {
    let mean = |loads: &Vec<f64>| loads.iter().sum::<f64>() / loads.len().max(1) as f64;
    let max = |loads: &Vec<f64>| loads.iter().copied().fold(0.0, f64::max);
    (rank_loads.iter().map(mean).sum(), rank_loads.iter().map(max).sum())
}

/// The published figure over layers, `[layers][ranks]` loads: sum of the means over the sum of the
/// maxima, between 0 and 1, 0 without load.
pub fn balancedness(rank_loads: &[Vec<f64>]) -> f64 {
    let (means, maxima) = mean_and_max(rank_loads);
    if maxima > 0.0 { means / maxima } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imbalance_is_the_slowest_rank() {
        let cluster = Cluster::new(2, 2).unwrap();
        assert_eq!(imbalance(&[1.0, 2.0, 3.0, 0.0], &cluster), 1.0);
        assert_eq!(imbalance(&[4.0, 2.0, 1.0, 1.0], &cluster), 1.5);
        assert_eq!(imbalance(&[0.0; 4], &cluster), 1.0);
        // A rank that is three times as fast should have three times the load.
        let fast = Cluster::new(2, 2).unwrap().with_speeds(vec![3.0, 1.0]).unwrap();
        assert_eq!(imbalance(&[4.0, 2.0, 1.0, 1.0], &fast), 1.0);
        // One rank is dead, so the other has everything, and that is as even as it gets.
        let alone = Cluster::new(2, 2).unwrap().without(&[1]).unwrap();
        assert_eq!(imbalance(&[4.0, 2.0, 0.0, 0.0], &alone), 1.0);
    }

    /// Averages are over ranks, not over layers.
    #[test]
    fn balancedness_has_its_published_value() {
        let loads = vec![vec![100.0, 0.0, 0.0, 0.0]; 2];
        assert_eq!(mean_and_max(&loads), (50.0, 200.0));
        assert_eq!(balancedness(&loads), 0.25);
        // Over layers it would be perfect: each has the same.
        let loads = vec![vec![3.0, 1.0], vec![1.0, 3.0]];
        assert_eq!((mean_and_max(&loads), balancedness(&loads)), ((4.0, 6.0), 4.0 / 6.0));
        assert_eq!(balancedness(&[vec![0.0; 4]]), 0.0);
    }
}
