//! Which batch sizes get a graph.

/// Sizes up to `rows_max`, smallest first: close together where a row more costs most.
pub(super) fn graph_rows(rows_max: usize) -> Vec<usize> {
    let small = [1, 2, 4].into_iter();
    let steps = (8..64).step_by(8).chain((64..256).step_by(16)).chain((256..).step_by(32));
    let mut rows: Vec<usize> = small.chain(steps).take_while(|rows| *rows < rows_max).collect();
    rows.push(rows_max);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_reach_the_largest_batch_and_no_further() {
        assert_eq!(graph_rows(1), [1]);
        assert_eq!(graph_rows(5), [1, 2, 4, 5]);
        assert_eq!(graph_rows(8), [1, 2, 4, 8]);
        let rows = graph_rows(300);
        assert_eq!(rows[3..6], [8, 16, 24]);
        assert_eq!(rows[rows.len() - 3..], [256, 288, 300]);
        assert!(rows.is_sorted_by(|a, b| a < b));
    }
}
