//! One rank's part of the experts when ranks share the intermediate features of each: gate and up
//! features `r * I / R .. (r + 1) * I / R`, and the columns of `w2` that meet them. The sum of all
//! ranks' outputs is the output of the whole.

use std::ops::Range;

use super::{AnyExperts, ExpertMatrices, ExpertWeights, Stacked};
use crate::MoeError;
use crate::activation::GateLayout;
use crate::quant::{NumberFormat, WeightMatrix, map_format};

impl<F: NumberFormat> ExpertWeights<F> {
    /// The part of rank `rank` of `ranks`. Rows of `w13` share the bytes of the whole, columns of
    /// `w2` are copied. Biases of `w2`, which are added once, are rank 0's.
    ///
    /// FP8 blocks may be cut anywhere; activations of a rank are quantised in groups that begin with
    /// its own first feature.
    ///
    /// # Errors
    /// [`MoeError`] when there is no such rank, ranks do not divide the intermediate size, or `w13`
    /// does not have the rows that `layout` says.
    pub fn shard(&self, layout: GateLayout, rank: usize, ranks: usize) -> Result<Self, MoeError> {
        let intermediate_size = self.intermediate_size();
        if ranks == 0 || !intermediate_size.is_multiple_of(ranks) {
            let allowed = format!("a divisor of the intermediate size, {intermediate_size}");
            return Err(MoeError::config("tensor parallel size", ranks, allowed));
        }
        if rank >= ranks {
            return Err(MoeError::config("tensor parallel rank", rank, format!("below {ranks}")));
        }
        let size = intermediate_size / ranks;
        let features = rank * size..(rank + 1) * size;
        let rows = gate_up_rows(layout, &features, intermediate_size);
        let local_rows: usize = rows.iter().map(Range::len).sum();
        MoeError::check_shape("rows of w13", local_rows * ranks, self.w13.rows())?;
        let w13 = self.w13.map(|matrix| matrix.cut_rows(&rows))?;
        let w2 = self.w2.map(|matrix| {
            let parts = matrix.parts().iter().map(|part| part.cut_columns(features.clone()));
            Stacked::new(parts.collect::<Result<_, _>>()?)
        })?;
        Self::new(
            match self.w13.biases() {
                Some(biases) => w13.with_biases(rows_of_all(biases, self.w13.rows(), &rows))?,
                None => w13,
            },
            match self.w2.biases().filter(|_| rank == 0) {
                Some(biases) => w2.with_biases(biases.to_vec())?,
                None => w2,
            },
        )
    }
}

impl AnyExperts {
    /// As [`ExpertWeights::shard`].
    ///
    /// # Errors
    /// As there.
    pub fn shard(&self, layout: GateLayout, rank: usize, ranks: usize) -> Result<Self, MoeError> {
        Ok(map_format!(Self => Self, self, |weights| weights.shard(layout, rank, ranks)?))
    }
}

impl<F: NumberFormat> ExpertMatrices<F> {
    /// The same experts with other matrices, without biases.
    fn map(
        &self,
        cut: impl Fn(&Stacked<F::Matrix>) -> Result<Stacked<F::Matrix>, MoeError>,
    ) -> Result<Self, MoeError> {
        let matrices = (0..self.experts()).map(|expert| cut(self.matrix(expert)));
        Self::new(matrices.collect::<Result<_, _>>()?)
    }
}

impl<M: WeightMatrix> Stacked<M> {
    /// Runs of rows, on top of each other. All rows must be there.
    fn cut_rows(&self, runs: &[Range<usize>]) -> Result<Self, MoeError> {
        let mut cut = Vec::new();
        for run in runs {
            let mut first_row = 0;
            for part in self.parts() {
                let end = first_row + part.rows();
                let (from, to) = (run.start.max(first_row), run.end.min(end));
                if from < to {
                    cut.push(part.cut_rows(from - first_row..to - first_row)?);
                }
                first_row = end;
            }
        }
        Self::new(cut)
    }
}

/// The rows of `w13` that compute `features` of `intermediate_size`.
fn gate_up_rows(
    layout: GateLayout,
    features: &Range<usize>,
    intermediate_size: usize,
) -> Vec<Range<usize>> {
    let rows_per_feature = |rows: usize| rows * features.start..rows * features.end;
    match layout {
        GateLayout::Halves => {
            let up = intermediate_size + features.start..intermediate_size + features.end;
            vec![features.clone(), up]
        }
        GateLayout::Interleaved => vec![rows_per_feature(2)],
        GateLayout::Ungated => vec![rows_per_feature(1)],
    }
}

/// Runs of rows of every expert's `rows` biases.
fn rows_of_all(biases: &[f32], rows: usize, runs: &[Range<usize>]) -> Vec<f32> {
    let of_expert = |expert: &[f32]| -> Vec<f32> {
        runs.iter().flat_map(|run| &expert[run.clone()]).copied().collect()
    };
    biases.chunks(rows.max(1)).flat_map(of_expert).collect()
}
