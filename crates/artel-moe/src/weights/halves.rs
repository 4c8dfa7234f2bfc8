//! Gate and up apart: kernels of a GPU take the rows of all gates and then those of all ups, where
//! gpt-oss has them in turns.

use artel_device::HostBuffer;
use rayon::prelude::*;

use super::{ExpertMatrices, Stacked};
use crate::MoeError;
use crate::quant::{MatrixTensors, NumberFormat, ScaleGrid, WeightMatrix};

impl<F: NumberFormat> ExpertMatrices<F> {
    /// A copy of matrices whose rows are gate and up in turns, with two parts each, gate over up, and
    /// biases in the same order. What a row stores stays as it is.
    ///
    /// # Errors
    /// [`MoeError::Config`] for an odd number of rows, and for scales of blocks, of which neighbouring
    /// rows share one.
    pub fn in_halves(&self) -> Result<Self, MoeError> {
        if !self.rows().is_multiple_of(2) {
            let allowed = "an even number: gate and up in turns";
            return Err(MoeError::config("rows of w13", self.rows(), allowed));
        }
        let experts = (0..self.experts()).into_par_iter();
        let matrices = experts.map(|expert| halves_of(self.matrix(expert)));
        let halves = Self::new(matrices.collect::<Result<_, _>>()?)?;
        match self.biases() {
            Some(biases) => {
                let of_experts = biases.chunks(self.rows().max(1));
                let sorted = of_experts.flat_map(|biases| evens_then_odds(biases, self.rows()));
                halves.with_biases(sorted.collect())
            }
            None => Ok(halves),
        }
    }
}

fn halves_of<M: WeightMatrix>(matrix: &Stacked<M>) -> Result<Stacked<M>, MoeError> {
    let [whole] = matrix.parts() else {
        let allowed = "1: gate and up in turns";
        return Err(MoeError::config("parts of an expert's w13", matrix.parts().len(), allowed));
    };
    let (rows, grid) = (whole.rows(), whole.scale_grid());
    let sorted = |bytes: &[u8]| HostBuffer::from_vec(evens_then_odds(bytes, rows));
    let is_by_row = match grid {
        ScaleGrid::None | ScaleGrid::Tensor => false,
        ScaleGrid::Channel | ScaleGrid::Groups { .. } => true,
        ScaleGrid::Block { .. } => {
            let allowed = "of single rows, or gate rows over up rows";
            return Err(MoeError::config("scales of w13", format!("{grid:?}"), allowed));
        }
    };
    let scales = whole.scales().bytes();
    let sorted = whole.over(MatrixTensors {
        numbers: sorted(whole.numbers()),
        scales: match is_by_row {
            true => sorted(scales),
            false => HostBuffer::from_vec(scales.to_vec()),
        },
        zero_points: whole.zero_points().map(sorted),
        global_scale: whole.global_scale(),
        input_scale: whole.input_scale(),
    })?;
    Stacked::new(vec![sorted.cut_rows(0..rows / 2)?, sorted.cut_rows(rows / 2..rows)?])
}

/// The even ones of `rows` rows, and then the odd ones.
fn evens_then_odds<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let width = (values.len() / rows.max(1)).max(1);
    let every_other = |first: usize| values.chunks(width).skip(first).step_by(2);
    every_other(0).chain(every_other(1)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Bf16, DenseMatrix, Fit, Fp8Block128, Fp8BlockMatrix, Mxfp4};
    use half::bf16;

    const ROWS: usize = 6;
    const COLUMNS: usize = 64;

    fn number(row: usize, column: usize) -> f32 {
        (row * 100 + column) as f32 / 64.0
    }

    fn stacked<F: NumberFormat>(matrix: F::Matrix) -> ExpertMatrices<F> {
        ExpertMatrices::new(vec![Stacked::new(vec![matrix]).unwrap()]).unwrap()
    }

    /// Row `r` of either half is row `2 r` or `2 r + 1` of the whole, bit by bit.
    fn check<F: NumberFormat>(matrix: F::Matrix) {
        let biases: Vec<f32> = (0..ROWS).map(|row| row as f32).collect();
        let whole = stacked::<F>(matrix).with_biases(biases).unwrap();
        let halves = whole.in_halves().unwrap();
        assert_eq!(halves.matrix(0).parts().len(), 2);
        assert_eq!(halves.bias(0).unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let (mut expected, mut found) = (vec![0.0; COLUMNS], vec![0.0; COLUMNS]);
        for row in 0..ROWS {
            whole.matrix(0).dequantize_row(row, &mut expected);
            let place = row / 2 + row % 2 * (ROWS / 2);
            halves.matrix(0).dequantize_row(place, &mut found);
            assert_eq!(found, expected, "row {row}");
        }
    }

    #[test]
    fn gates_come_before_ups() {
        let numbers = (0..ROWS * COLUMNS).map(|at| number(at / COLUMNS, at % COLUMNS));
        let numbers: Vec<bf16> = numbers.map(bf16::from_f32).collect();
        check::<Bf16>(DenseMatrix::new(HostBuffer::from_vec(numbers), ROWS, COLUMNS).unwrap());
        let rows = |row: usize, out: &mut [f32]| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = number(row, column));
        };
        check::<Mxfp4>(Mxfp4::quantize(ROWS, COLUMNS, Fit::Weights, rows).unwrap());
    }

    #[test]
    fn what_cannot_be_taken_apart_is_refused() {
        let blocks = |rows: usize| {
            let codes = HostBuffer::from_vec(vec![0u8; rows * COLUMNS]);
            let scales = HostBuffer::from_vec(vec![1f32]);
            stacked::<Fp8Block128>(Fp8BlockMatrix::new(codes, scales, rows, COLUMNS).unwrap())
        };
        let error = blocks(6).in_halves().unwrap_err().to_string();
        assert!(error.contains("scales of w13") && error.contains("single rows"), "{error}");
        let error = blocks(5).in_halves().unwrap_err().to_string();
        assert!(error.contains("rows of w13") && error.contains('5'), "{error}");
    }
}
