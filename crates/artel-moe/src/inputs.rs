//! What products are given: the squares of their input columns, summed while a model runs. From them
//! follows how much an error of a weight matters (`quant::Fit`).

use rayon::prelude::*;

use crate::quant::Element;
use crate::router::TopK;

/// Sums of the squares of each column over the rows that a matrix has met.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputSquares {
    /// `[columns]`; empty before the first row.
    sums: Vec<f64>,
    rows: usize,
}

impl InputSquares {
    /// Adds one row. All rows have the same length.
    pub fn add_row<T: Element>(&mut self, row: &[T]) {
        self.sums.resize(row.len(), 0.0);
        for (sum, value) in self.sums.iter_mut().zip(row) {
            *sum += f64::from(value.to_f32()).powi(2);
        }
        self.rows += 1;
    }

    /// Adds all rows of another one.
    pub fn add(&mut self, other: &Self) {
        self.sums.resize(self.sums.len().max(other.sums.len()), 0.0);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
        self.rows += other.rows;
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Mean squares `[columns]`, as if rows like those of `prior` had been `prior_rows` more of them.
    /// Zeros where there is neither.
    pub fn mean_squares(&self, prior: &Self, prior_rows: f64) -> Vec<f32> {
        let weight = if prior.rows == 0 { 0.0 } else { prior_rows / prior.rows as f64 };
        let rows = self.rows as f64 + weight * prior.rows as f64;
        let columns = self.sums.len().max(prior.sums.len());
        let sum = |squares: &Self, column| squares.sums.get(column).copied().unwrap_or(0.0);
        let mean = |column| match rows {
            0.0 => 0.0,
            _ => ((sum(self, column) + weight * sum(prior, column)) / rows) as f32,
        };
        (0..columns).map(mean).collect()
    }
}

/// What the experts of one layer have met, expert by expert.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertInputs {
    /// Hidden states of the tokens routed to each expert, `[E]` times `[H]`: input of the first product.
    pub w13: Vec<InputSquares>,
    /// What the activation makes of them, `[E]` times `[I]`: input of the second product.
    pub w2: Vec<InputSquares>,
}

impl ExpertInputs {
    /// Adds a step: hidden states `[T, H]` and activated rows of all pairs `[T * K, I]`. Ids beyond the
    /// experts are left out.
    pub(crate) fn add_step<T: Element>(
        &mut self,
        experts: usize,
        topk: &TopK,
        hidden_states: &[T],
        activated: &[T],
    ) {
        self.w13.resize_with(experts, InputSquares::default);
        self.w2.resize_with(experts, InputSquares::default);
        let (pairs, top_k) = (topk.ids.len().max(1), topk.top_k.max(1));
        let (hidden, intermediate) = (hidden_states.len() * top_k / pairs, activated.len() / pairs);
        let both = self.w13.par_iter_mut().zip(&mut self.w2).enumerate();
        // One task an expert, so that sums have one order.
        both.for_each(|(expert, (w13, w2))| {
            let is_here = |(_, id): &(usize, &i32)| usize::try_from(**id) == Ok(expert);
            for (pair, _) in topk.ids.iter().enumerate().filter(is_here) {
                w13.add_row(&hidden_states[pair / top_k * hidden..][..hidden]);
                w2.add_row(&activated[pair * intermediate..][..intermediate]);
            }
        });
    }

    /// Adds what another step has met.
    pub fn add(&mut self, other: &Self) {
        for (sums, others) in [(&mut self.w13, &other.w13), (&mut self.w2, &other.w2)] {
            sums.resize_with(sums.len().max(others.len()), InputSquares::default);
            sums.iter_mut().zip(others).for_each(|(sum, other)| sum.add(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(rows: &[[f32; 2]]) -> InputSquares {
        let mut squares = InputSquares::default();
        rows.iter().for_each(|row| squares.add_row(row));
        squares
    }

    #[test]
    fn means_are_over_the_rows_and_a_prior_counts_as_more_of_them() {
        let (seen, none) = (squares(&[[1.0, 2.0], [3.0, -2.0]]), InputSquares::default());
        assert_eq!(seen.mean_squares(&none, 0.0), [5.0, 4.0]);
        assert_eq!(seen.mean_squares(&none, 9.0), [5.0, 4.0], "a prior of no rows says nothing");
        let prior = squares(&[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]);
        assert_eq!(seen.mean_squares(&prior, 2.0), [4.5, 2.0]);
        assert_eq!(none.mean_squares(&prior, 2.0), [4.0, 0.0]);
        assert!(none.mean_squares(&none, 2.0).is_empty());
        let mut both = none.clone();
        both.add(&seen);
        both.add(&none);
        both.add(&prior);
        assert_eq!((both.rows(), both.mean_squares(&none, 0.0)), (6, vec![26.0 / 6.0, 8.0 / 6.0]));
    }

    #[test]
    fn an_expert_sees_the_rows_of_its_pairs() {
        let topk = TopK { ids: vec![0, 2, 2, -1, 7, 0], weights: vec![0.5; 6], top_k: 2 };
        let (hidden, activated) = ([1f32, 2.0, 3.0], [1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut inputs = ExpertInputs::default();
        inputs.add_step(3, &topk, &hidden, &activated);
        let none = InputSquares::default();
        let means = |all: &[InputSquares]| -> Vec<Vec<f32>> {
            all.iter().map(|squares| squares.mean_squares(&none, 0.0)).collect()
        };
        assert_eq!(means(&inputs.w13), [vec![5.0], vec![], vec![2.5]]);
        assert_eq!(means(&inputs.w2), [vec![(1.0 + 36.0) / 2.0], vec![], vec![(4.0 + 9.0) / 2.0]]);
        let once = inputs.clone();
        inputs.add(&once);
        inputs.add(&ExpertInputs::default());
        assert_eq!(inputs.w2[2].rows(), 4);
        inputs.add_step::<f32>(3, &TopK { ids: vec![], weights: vec![], top_k: 2 }, &[], &[]);
        assert_eq!(means(&inputs.w2), means(&once.w2));
    }
}
