use super::Placement;
use crate::MoeError;

/// The load of the experts in the last recorded steps, `[W, layers, L]`, and its sum.
///
/// Rows are of logical experts: a count belongs to the expert that a slot held when the token came,
/// and that is known only then. The published window keeps slots and converts all its rows by the
/// placement of the moment, so that after a change the rows before it are credited to experts that
/// had nothing to do with them.
///
/// As published, rows stay until newer ones overwrite them, also over a rebalance.
///
/// ```
/// use artel_moe::eplb::{LoadWindow, Placement};
/// let mut window = LoadWindow::new(2, 1, 3)?;
/// window.record(&[vec![4, 1, 2, 3]], &[Placement::new(vec![0, 1, 2, 0], 3)?])?;
/// window.record(&[vec![5, 0, 0, 0]], &[Placement::new(vec![2, 1, 0, 0], 3)?])?;
/// assert_eq!(window.layer(0), [7, 1, 7]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct LoadWindow {
    layers: usize,
    num_logical: usize,
    rows: usize,
    next_row: usize,
    /// The lower halves of the counts, `[W, layers, L]`. Fresh memory costs nothing before it is
    /// written, so a long window of a short run is small.
    lower: Vec<u16>,
    /// The upper halves; empty until a count needs more than 16 bits.
    upper: Vec<u16>,
    /// Sum over the rows, `[layers, L]`.
    sums: Vec<u64>,
    /// One row in the making, `[layers, L]`.
    row: Vec<u32>,
}

impl LoadWindow {
    /// An empty window of `rows` steps, for layers of `num_logical` experts.
    ///
    /// # Errors
    /// [`MoeError::Config`] when something is 0 or the rows do not fit into memory.
    pub fn new(rows: usize, layers: usize, num_logical: usize) -> Result<Self, MoeError> {
        let row_len = layers.saturating_mul(num_logical);
        let counts = row_len.saturating_mul(rows);
        if counts == 0 || counts > COUNTS_MAX {
            let allowed = format!("1 to {COUNTS_MAX} (rows, layers and experts multiplied)");
            return Err(MoeError::config("counts of the load window", counts, allowed));
        }
        Ok(Self {
            layers,
            num_logical,
            rows,
            next_row: 0,
            lower: vec![0; counts],
            upper: Vec::new(),
            sums: vec![0; row_len],
            row: vec![0; row_len],
        })
    }

    /// Adds one step in place of the oldest: load of the slots `[layers][P]` and what they held.
    ///
    /// # Errors
    /// [`MoeError::Shape`] for another number of layers, slots or experts; the window is unchanged.
    pub fn record(
        &mut self,
        slot_loads: &[Vec<i32>],
        placements: &[Placement],
    ) -> Result<(), MoeError> {
        MoeError::check_shape("layers of the load", self.layers, slot_loads.len())?;
        MoeError::check_shape("layers of the placements", self.layers, placements.len())?;
        for (loads, placement) in slot_loads.iter().zip(placements) {
            let experts = placement.num_logical();
            MoeError::check_shape("experts of a placement", self.num_logical, experts)?;
            MoeError::check_shape("load of a layer", placement.num_physical(), loads.len())?;
        }
        self.row.fill(0);
        let of_layers = self.row.chunks_exact_mut(self.num_logical);
        for ((row, loads), placement) in of_layers.zip(slot_loads).zip(placements) {
            add_logical(row, loads, placement);
        }
        self.store_row();
        Ok(())
    }

    /// Load of the experts of one layer, `[L]`, over all rows.
    pub fn layer(&self, layer: usize) -> &[u64] {
        &self.sums[layer * self.num_logical..][..self.num_logical]
    }

    /// Load of the experts of all layers, `[layers][L]`, as policies take it.
    pub fn logical_loads(&self) -> Vec<Vec<f64>> {
        let of_layers = self.sums.chunks_exact(self.num_logical);
        of_layers.map(|sums| sums.iter().map(|&sum| sum as f64).collect()).collect()
    }

    /// Bytes that the counts take when all rows have been written.
    pub fn bytes(&self) -> usize {
        2 * (self.lower.len() + self.upper.len()) + 8 * self.sums.len() + 4 * self.row.len()
    }

    fn store_row(&mut self) {
        let from = self.next_row * self.row.len();
        if self.upper.is_empty() && self.row.iter().any(|&count| count > u32::from(u16::MAX)) {
            self.upper = vec![0; self.lower.len()];
        }
        let lower = &mut self.lower[from..][..self.row.len()];
        for ((sum, stored), &count) in self.sums.iter_mut().zip(lower).zip(&self.row) {
            *sum = *sum + u64::from(count as u16) - u64::from(*stored);
            *stored = count as u16;
        }
        if !self.upper.is_empty() {
            let upper = &mut self.upper[from..][..self.row.len()];
            for ((sum, stored), &count) in self.sums.iter_mut().zip(upper).zip(&self.row) {
                *sum = *sum + (u64::from(count >> 16) << 16) - (u64::from(*stored) << 16);
                *stored = (count >> 16) as u16;
            }
        }
        self.next_row = (self.next_row + 1) % self.rows;
    }
}

/// Most counts of a window: 8 GiB of them.
const COUNTS_MAX: usize = 1 << 32;

/// Adds the load of slots `[P]` to that of the experts `[L]` which they hold.
fn add_logical(row: &mut [u32], slot_loads: &[i32], placement: &Placement) {
    for (&load, &logical) in slot_loads.iter().zip(placement.physical_to_logical()) {
        if let (Ok(expert), Ok(load)) = (usize::try_from(logical), u32::try_from(load)) {
            row[expert] = row[expert].saturating_add(load);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placement(slots: &[i32]) -> Placement {
        Placement::new(slots.to_vec(), 3).unwrap()
    }

    #[test]
    fn the_oldest_row_leaves_the_sum() {
        let mut window = LoadWindow::new(3, 1, 3).unwrap();
        let same = [placement(&[0, 1, 2])];
        for step in 1..=5 {
            window.record(&[vec![step, 10 * step, 0]], &same).unwrap();
        }
        assert_eq!(window.layer(0), [3 + 4 + 5, 30 + 40 + 50, 0]);
        assert_eq!(window.logical_loads(), [[12.0, 120.0, 0.0]]);
    }

    #[test]
    fn a_new_placement_in_the_middle_keeps_the_load_of_experts() {
        let mut window = LoadWindow::new(4, 2, 3).unwrap();
        let before = [placement(&[0, 1, 2, 0]), placement(&[0, 1, 2, 2])];
        let after = [placement(&[2, 0, 1, 1]), before[1].clone()];
        // Expert 0 has 6 tokens a step, expert 1 has 2, expert 2 has 1, wherever they are.
        let loads_before = [vec![4, 2, 1, 2], vec![6, 2, 1, 0]];
        let loads_after = [vec![1, 6, 0, 2], vec![6, 2, 0, 1]];
        for (loads, placements) in [(&loads_before, &before), (&loads_after, &after)] {
            window.record(loads, placements).unwrap();
            window.record(loads, placements).unwrap();
        }
        assert_eq!([window.layer(0), window.layer(1)], [&[24, 8, 4]; 2]);
    }

    #[test]
    fn counts_beyond_sixteen_bits_are_exact() {
        let mut window = LoadWindow::new(2, 1, 3).unwrap();
        let same = [placement(&[0, 1, 2, 0])];
        let bytes = window.bytes();
        let steps = [[65_535, 1, 0, 0], [70_000, 2, 65_536, i32::MAX], [1, 3, 5, 0]];
        for loads in steps {
            window.record(&[loads.to_vec()], &same).unwrap();
        }
        assert_eq!(window.layer(0), [70_000 + i32::MAX as u64 + 1, 5, 65_541]);
        assert!(window.bytes() > bytes);
        // All of it leaves again.
        for _ in 0..2 {
            window.record(&[vec![0; 4]], &same).unwrap();
        }
        assert_eq!(window.layer(0), [0; 3]);
    }

    #[test]
    fn a_deepseek_window_is_small() {
        let window = LoadWindow::new(1000, 58, 256).unwrap();
        assert!(window.bytes() < 30 << 20, "{}", window.bytes());
    }

    #[test]
    fn wrong_shapes_are_refused() {
        assert!(LoadWindow::new(0, 1, 3).is_err() && LoadWindow::new(1, 0, 3).is_err());
        assert!(LoadWindow::new(usize::MAX, 2, 2).is_err());
        let mut window = LoadWindow::new(2, 1, 3).unwrap();
        let same = [placement(&[0, 1, 2, 0])];
        assert!(window.record(&[vec![1; 3]], &same).is_err());
        assert!(window.record(&[], &same).is_err());
        assert!(window.record(&[vec![1; 4]], &[]).is_err());
        let other = [Placement::new(vec![0, 1, 0, 1], 2).unwrap()];
        assert!(window.record(&[vec![1; 4]], &other).is_err());
        assert_eq!(window.layer(0), [0; 3]);
        // Nobody counts below zero, and slots without an expert have no load.
        window.record(&[vec![-5, 1, 2, 9]], &[placement(&[0, 1, 2, -1])]).unwrap();
        assert_eq!(window.layer(0), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn the_running_sum_is_the_sum_of_the_last_rows(
            rows in 1usize..5,
            steps in prop::collection::vec(prop::collection::vec(0i32..200_000, 6), 0..12),
        ) {
            let mut window = LoadWindow::new(rows, 2, 3).unwrap();
            let same = vec![placement(&[0, 1, 2]), placement(&[2, 0, 1])];
            for loads in &steps {
                window.record(&[loads[..3].to_vec(), loads[3..].to_vec()], &same).unwrap();
            }
            let last = &steps[steps.len().saturating_sub(rows)..];
            let sum = |slot: usize| last.iter().map(|loads| loads[slot] as u64).sum::<u64>();
            prop_assert_eq!(window.layer(0), [sum(0), sum(1), sum(2)]);
            prop_assert_eq!(window.layer(1), [sum(4), sum(5), sum(3)]);
        }
    }
}
