//! Lower bounds: no placement is faster than these times. The time of a rank is its load over its
//! speed.

use super::{
    mask::{check_load, check_room},
    replicate::replicate,
};
use crate::{MoeError, eplb::Cluster};

/// Time when every living rank is busy to the end; holds for any shares.
///
/// # Errors
/// [`MoeError`] for loads below 0 or not finite, or fewer slots of living ranks than experts.
pub fn perfect_split(load: &[f64], cluster: &Cluster) -> Result<f64, MoeError> {
    check_load(load, load.len())?;
    check_room(load.len(), cluster)?;
    let speed: f64 = cluster.living().map(|rank| cluster.speeds()[rank]).sum();
    Ok(load.iter().sum::<f64>() / speed)
}

/// Time of the fastest rank for the heaviest copy, when copies share evenly and there are as many as
/// slots: the best counts of copies are known, so this is exact with one slot a rank.
///
/// # Errors
/// As [`perfect_split`].
pub fn heaviest_copy(load: &[f64], cluster: &Cluster) -> Result<f64, MoeError> {
    check_load(load, load.len())?;
    check_room(load.len(), cluster)?;
    let slots = cluster.living().count() * cluster.slots_per_rank();
    let counts = replicate(load, slots, slots);
    let heaviest = load.iter().zip(counts).map(|(load, count)| load / count as f64);
    Ok(heaviest.fold(0.0, f64::max) / fastest(cluster))
}

/// The larger of [`perfect_split`] and [`heaviest_copy`]: the bound for equal shares.
///
/// # Errors
/// As [`perfect_split`].
pub fn equal_shares(load: &[f64], cluster: &Cluster) -> Result<f64, MoeError> {
    Ok(perfect_split(load, cluster)?.max(heaviest_copy(load, cluster)?))
}

/// Bound for packing exactly these copies, one for each slot of the living ranks:
/// - the heaviest shares its rank with others, at best the lightest;
/// - of the heaviest `k G + 1` copies, some of the `G` ranks gets `k + 1`.
///
/// # Errors
/// [`MoeError`] for loads below 0 or not finite, or another number than that of slots.
pub fn fixed_copies(copy_loads: &[f64], cluster: &Cluster) -> Result<f64, MoeError> {
    let (ranks, room) = (cluster.living().count(), cluster.slots_per_rank());
    check_load(copy_loads, ranks * room)?;
    let mut descending = copy_loads.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let with_lightest =
        descending[0] + descending[descending.len() - (room - 1)..].iter().sum::<f64>();
    let pigeonhole = (1..room).map(|k| descending[k * ranks - k..=k * ranks].iter().sum::<f64>());
    let heaviest = pigeonhole.fold(with_lightest, f64::max);
    Ok(perfect_split(copy_loads, cluster)?.max(heaviest / fastest(cluster)))
}

fn fastest(cluster: &Cluster) -> f64 {
    cluster.living().map(|rank| cluster.speeds()[rank]).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_small_clusters() {
        let cluster = Cluster::new(2, 2).unwrap();
        let load = [6.0, 1.0, 1.0];
        assert_eq!(perfect_split(&load, &cluster), Ok(4.0));
        assert_eq!(heaviest_copy(&load, &cluster), Ok(3.0));
        assert_eq!(heaviest_copy(&[6.0, 1.0, 1.0], &Cluster::new(3, 1).unwrap()), Ok(6.0));
        assert_eq!(equal_shares(&load, &cluster), Ok(4.0));
        // 5 with 1 at best; two of the three heaviest meet: 4 + 4.
        assert_eq!(fixed_copies(&[5.0, 4.0, 4.0, 1.0], &cluster), Ok(8.0));
        let uneven = Cluster::new(2, 2).unwrap().with_speeds(vec![1.0, 3.0]).unwrap();
        assert_eq!(perfect_split(&load, &uneven), Ok(2.0));
        assert_eq!(heaviest_copy(&load, &uneven), Ok(1.0));
    }

    #[test]
    fn bounds_refuse_what_does_not_fit() {
        let cluster = Cluster::new(2, 2).unwrap();
        assert!(perfect_split(&[1.0; 5], &cluster).is_err());
        assert!(perfect_split(&[], &cluster).is_err());
        assert!(heaviest_copy(&[1.0, -1.0], &cluster).is_err());
        assert!(fixed_copies(&[1.0; 3], &cluster).is_err());
    }
}
